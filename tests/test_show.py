"""`spar-lite show RUN ID`: whatever has an id, whole and as plain text; a tree grown as a page."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spar_lite.app.cli import main
from spar_lite.app.console import INVISIBLE
from spar_lite.app.show import difference
from spar_lite.records import Judgement, PreferencePair, Tree
from spar_lite.store import Marker, StageFile
from tests.loops import HOSTILE, play


def show(run: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["show", str(run), *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("show") / "run", judge__early_stop=False)


def test_a_prompts_id_shows_answers_judgements_tree_and_pair(run: Path) -> None:
    pair = StageFile(run / "iteration-1", "pairs", PreferencePair).load()[0]
    said = show(run, pair.id)
    assert said.exit_code == 0
    for words in (f"answer {pair.id}/0", f"judgement {pair.id}/1", "vote 3", "stopped: accepted"):
        assert words in said.output
    assert "rejected → chosen" in said.output and "{+" in said.output and "[-" in said.output
    assert "a program checks: An answer about" in said.output


def test_a_responses_id_shows_its_judgement_alone(run: Path) -> None:
    judged = StageFile(run / "iteration-1", "judgements", Judgement).load()[1]
    said = show(run, judged.id).output
    assert said.count("answer train-") == said.count("judgement train-") == 1
    assert all(" ".join(vote.text.split()) in said for vote in judged.votes)


def test_a_held_out_prompts_id_shows_its_answers_over_the_checkpoints(run: Path) -> None:
    said = show(run, "heldout-0001").output
    assert said.index("base (") < said.index("iteration-1 (")
    assert "[-Well," in said and "{+No comma" in said


def test_json_is_the_records(run: Path) -> None:
    tree = StageFile(run / "iteration-1", "trees", Tree).load()[0]
    rows = json.loads(show(run, tree.id, "--json").output)
    assert {row["in"] for row in rows} == {"iteration-1"}
    found = {kind: row[kind] for row in rows for kind in row if kind != "in"}
    assert found["Prompt"]["id"] == found["Tree"]["id"] == tree.id
    assert len(found["Tree"]["nodes"]) == len(tree.nodes)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train-001"], 'Did you mean "train-0001"?'),
        (["heldout-12"], 'Did you mean "heldout-0002"?'),
        (["0\x1b[31m"], "nothing with the id"),
    ],
)
def test_an_unknown_id_is_one_line(run: Path, words: list[str], expected: str) -> None:
    said = show(run, *words)
    assert said.exit_code == 2 and expected in said.output
    assert said.output.count("\n") == 1 and "\x1b" not in said.output


def test_ids_that_users_chose_and_pairs_without_a_prompt(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    for path in (own / "iteration-1").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"train-', '"my/own-'))
    said = show(own, "my/own-0000")
    assert said.exit_code == 0 and "answer my/own-0000/0" in said.output
    assert "judgement my/own-0000/1" in said.output
    pair = StageFile(own / "iteration-1", "pairs", PreferencePair).load()[0]
    released = StageFile(own / "bootstrap", "pairs", PreferencePair)
    released.finish([dataclasses.replace(pair, id="theirs", prompt_id="theirs")])
    Marker(own / "bootstrap", "pairs").write({})
    said = show(own, "theirs")
    assert said.exit_code == 0 and "bootstrap, pair theirs" in said.output


def test_words_that_differ_by_hand() -> None:
    assert str(difference("a b c", "a x c d")) == "a [-b-] {+x+} c {+d+} "
    assert str(difference(None, "a b")) == str(difference("a b", "a b")) == "a b"


def test_hostile_text_is_plain_on_a_terminal(tmp_path: Path) -> None:
    """Prompt, answer, votes, critique, refinement and a line of a megabyte."""
    run = play(tmp_path / "run", HOSTILE, judge__early_stop=False)
    for name in ("iteration-1/prompts", "iteration-1/responses", "iteration-1/heldout"):
        path = run / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        key = "answer" if "answer" in rows[0] else "text"
        rows[0][key] += HOSTILE + "x" * 1_000_000
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in ([], ["train-0000"], ["train-0000/0"], ["heldout-0000"], ["--answers", "2"]):
        said = show(run, *words)
        assert said.exit_code == 0, said.output
        assert not INVISIBLE.search(said.output) and len(said.output) < 500_000
        for part in ("<script>alert(1)</script>", "[bold]rich[/bold]", "[U+202E]", "[U+001B][31m"):
            assert part in said.output


def test_a_lone_surrogate_is_refused_or_named(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    path = broken / "iteration-1" / "responses.jsonl"
    path.write_text(path.read_text().replace("Well,", "Well\\ud83d", 1))
    said = show(broken, "train-0000")
    assert said.exit_code == 2 and "responses.jsonl line 1" in said.output
    assert str(difference(None, "a\ud83db")) == "a[U+D83D]b"


def test_answers_from_elsewhere_are_found_by_their_id(tmp_path: Path) -> None:
    """Those that are rejected in place of the actor's own, and their judgements."""
    changes = {"pairs__source": "constraint-drop", "search__strategy": "none"}
    folder = play(tmp_path / "run", **changes)
    judged = StageFile(folder / "iteration-1", "other_judgements", Judgement).load()[0]
    said = show(folder, judged.id).output
    assert f"answer {judged.id}" in said and f"judgement {judged.id}" in said
    assert f"answer {judged.id}" in show(folder, judged.id.rpartition("/")[0]).output


def test_that_there_are_no_trees_is_said_with_what_there_is(tmp_path: Path) -> None:
    folder = play(tmp_path / "run", search__strategy="none", pairs__source="sampled")
    said = show(folder)
    assert said.exit_code == 0 and "has no trees (no search). See: spar-lite show" in said.output
    assert show(folder, said.output.split()[-1]).exit_code == 0
