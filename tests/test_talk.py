"""Talking to a checkpoint: what is answered, judged and drawn, and what a model cannot do."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from spar_lite.app.cli import main
from spar_lite.app.console import harmless
from spar_lite.app.talk import Chat, grow
from spar_lite.engines.base import Completion, Request
from spar_lite.recipe import Recipe, dump_recipe, parse_recipe
from spar_lite.records import Prompt, Role
from tests.loops import mends
from tests.scripted import ScriptedEngine

HOSTILE = "tea \x1b[31mred\x1b[0m \u202eflipped\u200b [bold]markup[/] \ud83d <b>html</b>"


def recipe() -> Recipe:
    small = {"votes": 3, "mode": "llm"}
    search = {"branch": 2, "keep": 1, "depth": 2}
    return parse_recipe({"model": {"id": "none"}, "judge": small, "search": search})


def reply(role: Role, request: Request) -> str:
    """The base, actor and refiner say who they are; only what is mended passes the judge."""
    return mends(role, request, f"{role} says {HOSTILE}")


def talk(*lines: str, engine: ScriptedEngine | None = None) -> str:
    """What the screen shows when these lines are typed."""
    console = Console(file=io.StringIO(), width=200)
    given = iter(lines)

    def read(*_: object, **__: object) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    console.input = read  # type: ignore[method-assign]
    Chat(console, engine or ScriptedEngine(reply), recipe()).listen()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_whoever_is_chosen_answers_with_the_chat_so_far() -> None:
    engine = ScriptedEngine(reply)
    lines = "hello", "/adapter refiner", "again", "/new", "/adapter none", "third"
    shown = talk(*lines, engine=engine)
    assert [role for role, _ in engine.calls] == ["actor", "refiner", "base"]
    assert [len(request.messages) for request in engine.requests] == [1, 3, 1]
    assert shown.index("actor says") < shown.index("refiner says") < shown.index("base says")


def test_a_model_cannot_colour_forge_or_turn_the_screen() -> None:
    shown = talk("hello", "/both what?", "/judge", "/refine")
    assert "[bold]markup[/]" in shown
    assert "<b>html</b>" in shown
    assert not any(char in shown for char in "\x1b\u202e\u200b\ud83d")
    assert harmless("a\x07b\r\nc\td") == "ab\nc\td"


def test_both_puts_three_answers_side_by_side_and_leaves_the_chat_alone() -> None:
    engine = ScriptedEngine(reply)
    shown = talk("/both hello", "hi", engine=engine)
    assert all(f"{role} says" in shown for role in ("base", "actor", "refiner"))
    assert len(engine.requests[-1].messages) == 1


def test_judge_shows_votes_and_whose_verdict_it_is() -> None:
    shown = talk("hello", "/judge", "/judge this is mended")
    assert "vote 1, No" in shown
    assert "verdict (votes of the model itself): it does not" in shown
    assert "it does what was asked" in shown


def test_judge_without_an_answer_says_so() -> None:
    assert "There is no answer yet" in talk("/judge")
    assert "/adapter actor|refiner|none" in talk("/adapter nobody")


def test_a_tree_grows_level_by_level_and_ends_accepted() -> None:
    engine, console = ScriptedEngine(reply), Console(file=io.StringIO(), width=200)
    tree = grow(console, engine, recipe(), Prompt("refine", "Say it."), "wrong")
    assert tree is not None
    assert tree.accepted == "0.1"
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "0.1 value 1.00 ✓ accepted mended" in shown
    assert "stopped: accepted" in shown


def test_what_passes_is_not_mended() -> None:
    console = Console(file=io.StringIO(), width=200)
    assert grow(console, ScriptedEngine(reply), recipe(), Prompt("p", "Say it."), "mended") is None
    assert isinstance(console.file, io.StringIO)
    assert "Nothing to mend" in console.file.getvalue()


def test_a_stream_is_shown_as_it_comes_and_ctrl_c_keeps_what_is_there() -> None:
    class Streams(ScriptedEngine):
        def stream(self, role: Role, request: Request) -> Iterator[str]:
            yield "one"
            yield "one two"
            if request.id == "chat-1":
                raise KeyboardInterrupt
            yield "one two \ufffd"  # half a character so far
            yield "one two é"

    engine = Streams(lambda role, request: Completion(request.id, "", 0, 0, True))
    shown = talk("first", "second", engine=engine)
    assert "one two (stopped)" in shown
    assert "one two é" in shown
    assert "\ufffd" not in shown


def test_ctrl_c_twice_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=200)
    asked = []

    def interrupted(*_: object, **__: object) -> str:
        asked.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "input", interrupted)
    Chat(console, ScriptedEngine(reply), recipe()).listen()
    assert len(asked) == 2


def test_refine_writes_its_tree_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report's own page, with this tree alone; a user's file stays, which is said first."""
    monkeypatch.setattr("spar_lite.app.talk._open", lambda *_: ScriptedEngine(reply))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe()))
    page, own = tmp_path / "tree.html", tmp_path / "own.html"
    own.write_text("my thesis")
    words = ["refine", str(tmp_path / "recipe.yaml"), "Say it.", "--html"]
    refused = CliRunner().invoke(main, [*words, str(own)])
    assert refused.exit_code == 2 and "--html FILE" in refused.output
    assert own.read_text() == "my thesis" and "answer" not in refused.output
    done = CliRunner().invoke(main, [*words, str(page)])
    assert done.exit_code == 0 and str(page) in done.output
    text = page.read_text()
    blocks = [re.findall(rf'id="{id}">(.*?)</script>', text, re.S)[0] for id in ("texts", "data")]
    texts, data = map(json.loads, blocks)
    (run,) = data["runs"]
    (tree,) = run["trees"]["rows"]
    assert (tree["accepted"], tree["stop"]) == ("0.1", "accepted")
    nodes = {node["path"]: texts[node["text"]["t"]] for node in tree["nodes"]}
    assert nodes["0.1"] == "mended" and nodes["0"] == "still wrong" and "<b>html" in nodes[""]
    assert "<b>html" not in text
    kept = tmp_path / "none.html"
    done = CliRunner().invoke(main, [*words, str(kept), "--answer", "mended"])
    assert done.exit_code == 0 and not kept.exists()
    assert f"There is no tree, so {kept} is not written" in done.output


def test_ctrl_c_while_a_word_is_written_does_not_write_it_twice() -> None:
    class Streams(ScriptedEngine):
        def stream(self, role: Role, request: Request) -> Iterator[str]:
            yield "one"

    class File(io.StringIO):
        pressed = False

        def flush(self) -> None:
            if self.getvalue().endswith("one") and not self.pressed:
                self.pressed = True
                raise KeyboardInterrupt

    console = Console(file=File(), width=200)
    chat = Chat(console, Streams(lambda *_: ""), recipe())
    with pytest.raises(KeyboardInterrupt):
        chat.take("hello")
    assert isinstance(console.file, File) and console.file.pressed
    assert console.file.getvalue() == "one (stopped)"
    assert [turn.content for turn in chat.turns] == ["hello", "one"]
