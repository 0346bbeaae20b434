"""Runs side by side: a step that a sibling has done alike is copied, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from spar_lite import loop
from spar_lite.engines.base import Completion, Request
from spar_lite.errors import EngineError, StoreError
from spar_lite.recipe import Recipe
from spar_lite.records import Role
from spar_lite.run import Run
from spar_lite.store import Marker, read_lines
from tests.loops import adapters_of, recipe, records_of, rule, start
from tests.scripted import ScriptedEngine, Silence

pytestmark = pytest.mark.tensors

WARM = [
    *("base/heldout_answers", "base/heldout", "bootstrap/answers", "bootstrap/refiner"),
    *("bootstrap/actor", "bootstrap/heldout_answers", "bootstrap/heldout"),
]
PLAYED = ["iteration-1/responses", "iteration-1/judgements", "iteration-1/trees"]
TRAINED = [
    *("iteration-1/actor", "iteration-1/refiner"),
    *("iteration-1/heldout_answers", "iteration-1/heldout"),
]


@pytest.fixture(scope="module")
def first(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    loop.execute(start(folder, recipe(tiny_folder, iterations=1)))
    return folder


def beside(first: Path, name: str, settings: Recipe) -> tuple[Path, list[str], ScriptedEngine]:
    """Execute a run that knows the first one: its folder, what it copied, the engine it asked."""
    folder, engine = first.parent / name, ScriptedEngine(rule, shuffle_seed=7)
    loop.execute(Run(settings, folder, Silence(), lambda _: engine, siblings=[first]))
    lines = [line for line in read_lines(folder / "ledger.jsonl") if "reused_from" in line]
    assert {line["reused_from"] for line in lines} <= {"../first"}
    return folder, [line["stage"] for line in lines], engine


@pytest.mark.parametrize(
    ("changes", "copied", "anew"),
    [
        # The refiner learns the same from the same trees.
        ({"dpo__beta": 0.5}, [*WARM, *PLAYED, "iteration-1/refiner"], ["iteration-1/actor"]),
        # The scripted answers are all alike, so the same may be learnt from more of them.
        ({"sample__k": 3}, WARM, PLAYED),
        ({"seed": 1}, [], [*WARM, *PLAYED, *TRAINED]),
        ({}, [*WARM, *PLAYED, *TRAINED], []),
    ],
    ids=["beta", "k", "seed", "nothing"],
)
def test_a_run_beside_another_is_what_it_would_be_alone(
    changes: dict[str, Any],
    copied: list[str],
    anew: list[str],
    first: Path,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    """Every record, metric and adapter is the same."""
    settings = recipe(tiny_folder, iterations=1, **changes)
    loop.execute(start(tmp_path, settings))
    folder, steps, engine = beside(first, "-".join(["beside", *changes]), settings)
    assert set(copied) <= set(steps) and not set(anew) & set(steps)
    assert records_of(folder) == records_of(tmp_path)
    assert adapters_of(folder) == adapters_of(tmp_path)
    assert Run(settings, folder, Silence()).unfinished(loop.spar) == []
    for step in copied:
        marks = [
            Marker(place / Path(step).parent, Path(step).name).read() for place in (first, folder)
        ]
        assert marks[0] == marks[1], "costs are those of the step"
    assert bool(engine.calls) == bool(anew)


def test_a_run_of_another_beta_asks_for_held_out_answers_alone(
    first: Path, tiny_folder: Path
) -> None:
    settings = recipe(tiny_folder, iterations=1, dpo__beta=0.7)
    _, _, engine = beside(first, "asked", settings)
    assert engine.requests and all("heldout" in request.id for request in engine.requests)


def test_a_step_that_began_here_goes_on_here(first: Path, tiny_folder: Path) -> None:
    settings, folder, answered = recipe(tiny_folder, iterations=1), first.parent / "begun", []

    def stops(role: Role, request: Request) -> str | Completion:
        answered.append(request.id)
        if len(answered) > 2:
            raise EngineError("the server is gone")
        return rule(role, request)

    with pytest.raises(EngineError):
        loop.execute(Run(settings, folder, Silence(), lambda _: ScriptedEngine(stops)))
    assert (folder / "base" / "heldout_answers.part.jsonl").exists()
    folder, steps, engine = beside(first, "begun", settings)
    assert steps == [*WARM[1:], *PLAYED, *TRAINED] and engine.calls
    assert records_of(folder) == records_of(first)
    # What is finished here is not looked for again.
    _, again, engine = beside(first, "begun", settings)
    assert again == steps and not engine.calls


def test_what_is_learnt_within_a_limit_of_tokens_is_not_taken_for_what_is_learnt_of_all(
    first: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """The pairs are the same; the passed answers beside them are not."""
    changes: dict[str, Any] = {"iterations": 1, "dpo__passed": 9, "iterate__pairs": 1}
    whole = tmp_path / "whole"
    settings = recipe(tiny_folder, **changes, iterate={"pairs": 1, "keep": "always"})
    loop.execute(start(whole, settings))
    limit = recipe(tiny_folder, **changes, iterate={"pairs": 1, "keep": "always", "tokens": 10**6})
    folder, engine = tmp_path / "part", ScriptedEngine(rule, shuffle_seed=7)
    loop.execute(Run(limit, folder, Silence(), lambda _: engine, siblings=[whole]))
    pairs = "iteration-1/pairs.jsonl"
    assert records_of(folder)[pairs] == records_of(whole)[pairs]
    lines = [line for line in read_lines(folder / "ledger.jsonl") if "reused_from" in line]
    assert "iteration-1/actor" not in {line["stage"] for line in lines}


def test_a_step_whose_files_are_gone_is_done_again(
    first: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Somebody made room: the mark alone is no adapter."""
    lean = tmp_path / "first"
    shutil.copytree(first, lean)
    shutil.rmtree(lean / "iteration-1" / "actor")
    (lean / "iteration-1" / "trees.jsonl").unlink()
    folder, steps, _ = beside(lean, "beside", recipe(tiny_folder, iterations=1))
    assert "iteration-1/actor" not in steps and "iteration-1/trees" not in steps
    assert adapters_of(folder) == adapters_of(first)


def test_records_whose_copy_was_cut_off_keep_the_recipe_that_they_are_of(
    first: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "run", Marker.write

    def killed(mark: Marker, summary: dict[str, Any]) -> None:
        if mark.path.name == "responses.done.json":
            raise KeyboardInterrupt
        real(mark, summary)

    settings, engine = recipe(tiny_folder, iterations=1), ScriptedEngine(rule)
    monkeypatch.setattr(Marker, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.execute(Run(settings, folder, Silence(), lambda _: engine, siblings=[first]))
    monkeypatch.undo()
    assert (folder / "iteration-1" / "responses.jsonl").exists()
    warmer = recipe(tiny_folder, iterations=1, sample__temperature=0.1)
    with pytest.raises(StoreError, match=r"responses was begun with sample\.temperature: 0\.9"):
        loop.execute(Run(warmer, folder, Silence(), lambda _: engine))
    loop.execute(Run(settings, folder, Silence(), lambda _: ScriptedEngine(rule)))
    assert records_of(folder) == records_of(first)
