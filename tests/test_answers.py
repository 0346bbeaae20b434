"""`spar-lite show RUN --answers N`: which answers are shown is a rule, and what is said of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from spar_lite.app.cli import main
from spar_lite.app.show import first_of_each_kind, verdict
from spar_lite.data.prompts import builtin_prompts
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.recipe import dump_recipe, parse_recipe
from spar_lite.records import Cost, Prompt
from spar_lite.store import Marker, StageFile


def result(id: str, answer: str, *faults: str, met: bool = True, finished: bool = True):
    return HeldoutResult(
        id, answer, finished, (met,), faults, None, None, False, None, None, (), Cost()
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (result("p", "a"), "counts"),
        (result("p", "a", "off topic", "says it twice"), "met, but off topic, says it twice"),
        (result("p", "a", finished=False), "met, but cut off"),
        (result("p", "a", "cut off", finished=False), "met, but cut off"),
        (result("p", "a", met=False), "not met"),
        (result("p", "a", "off topic", met=False), "not met, off topic"),
    ],
)
def test_verdict(found: HeldoutResult, words: str) -> None:
    assert verdict(found) == words


def test_the_first_of_each_kind_in_turn() -> None:
    kinds = "aabcab"
    prompts = [Prompt(str(n), "", ({"kind": kind},)) for n, kind in enumerate(kinds)]
    assert [p.id for p in first_of_each_kind(prompts, 5)] == ["0", "2", "3", "1", "5"]
    assert [p.id for p in first_of_each_kind(prompts, 99)] == ["0", "2", "3", "1", "5", "4"]


def test_show_answers(tmp_path: Path) -> None:
    recipe = parse_recipe({"model": {"id": "m"}, "iterations": 1, "evaluate": {"prompts": 4}})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    run = CliRunner()
    shown = run.invoke(main, ["show", str(tmp_path), "--answers", "2"])
    assert shown.exit_code != 0 and "no held-out answers yet" in shown.output
    prompts = builtin_prompts(recipe.prompts, 0, "heldout", 4)
    for name, text in (("base", "So.\n[red]So."), ("iteration-1", "Fine.")):
        file = StageFile(tmp_path / name, "heldout", HeldoutResult)
        file.finish([result(p.id, text, "off topic") for p in prompts])
        Marker(tmp_path / name, "heldout").write({})
    shown = run.invoke(main, ["show", str(tmp_path), "--answers", "1"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines() == [
        f"{prompts[0].id}: {prompts[0].text}",
        "  base (met, but off topic): So. [red]So.",
        "  iteration-1 (met, but off topic): Fine.",
        "",
    ]
