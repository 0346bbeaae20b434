"""`iterate.keep`: an iteration that lowers the answers that count is not started from."""

from __future__ import annotations

from pathlib import Path

import pytest

from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.scoring import keep_better
from spar_lite.evaluation.target import find_target
from spar_lite.loop import spar
from spar_lite.recipe import Recipe, parse_recipe
from spar_lite.records import Cost
from spar_lite.run import Run, adapters_after, standing
from spar_lite.store import Marker, StageFile
from tests.scripted import Silence


def recipe(keep: str = "better", **more: object) -> Recipe:
    evaluate = {"prompts": 10}
    return parse_recipe(
        {"model": {"id": "m"}, "evaluate": evaluate, "iterate": {"keep": keep}, **more}
    )


def score(folder: Path, name: str, good: int, of: int = 10, faults: tuple[str, ...] = ()) -> None:
    """A finished checkpoint ``good`` of whose answers count, and the others have these faults."""
    results = [
        HeldoutResult(
            str(n), "a", True, (n < good,), () if n < good else faults, None, None, False, None,
            None, (), Cost(),
        )
        for n in range(of)
    ]  # fmt: skip
    StageFile(folder / name, "heldout", HeldoutResult).finish(results)
    Marker(folder / name, "heldout").write({})
    for role in ("actor", "refiner"):
        (folder / name / role).mkdir(parents=True, exist_ok=True)
        (folder / name / role / "adapter_config.json").write_text("{}")


def decide(folder: Path, settings: Recipe, number: int) -> tuple[int, list[str]]:
    """Do the step that decides after an iteration; (the iteration kept, what was said)."""
    screen = Silence()
    keep_better(Run(settings, folder, screen), number)
    summary = Marker(folder / f"iteration-{number}", "keep").read()
    assert summary is not None
    return summary["kept"], screen.said


def labels(settings: Recipe, folder: Path) -> list[str]:
    return Run(settings, folder, Silence()).unfinished(spar)


# answers of ten that count after the warm-up and each iteration; the iteration kept after each
@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([4, 5, 6, 7], [1, 2, 3]),
        ([4, 3, 5, 5], [0, 2, 3]),  # equal is no worse
        ([4, 5, 3, 4], [1, 1, 1]),  # each against what it started from
        ([4, 3, 2, 1], [0, 0, 0]),
    ],
)
def test_the_better_checkpoint_stays(tmp_path: Path, scores: list[int], kept: list[int]) -> None:
    settings = recipe()
    (tmp_path / "recipe.yaml").write_text("model: {id: m}\n")
    for number, good in enumerate(scores):
        name = f"iteration-{number}" if number else "bootstrap"
        score(tmp_path, name, good)
        if not number:
            continue
        found, said = decide(tmp_path, settings, number)
        assert found == kept[number - 1]
        better = f"iteration-{found}" if found else "bootstrap"
        assert standing(settings, tmp_path, number) == better
        stay = tmp_path / better
        assert adapters_after(settings, tmp_path, number) == (stay / "actor", stay / "refiner")
        assert find_target(str(tmp_path)).adapters["actor"] == tmp_path / better / "actor"
        if found != number:
            assert f"the adapters of {better} stay" in said[0]
            assert f"{10 * (good - scores[found]):+.1f} points" in said[0]
        else:
            assert said == []


def test_more_answers_that_count_do_not_pay_for_worse_ones(tmp_path: Path) -> None:
    """No step may be clear of the noise, and both together are: the warm-up is looked at too."""
    score(tmp_path, "bootstrap", 40, 100)
    score(tmp_path, "iteration-1", 50, 100)
    assert decide(tmp_path, recipe(), 1) == (1, [])
    score(tmp_path, "iteration-2", 60, 100, ("says it twice",))
    kept, (said,) = decide(tmp_path, recipe(), 2)
    assert kept == 1
    assert "answers got worse: said twice 0.0 → 40.0 %" in said and "since bootstrap" in said
    assert "the adapters of iteration-1 stay" in said


def test_always_goes_on_with_the_new_ones_and_looks_at_no_earlier_decision(tmp_path: Path) -> None:
    for name, good in (("bootstrap", 4), ("iteration-1", 1)):
        score(tmp_path, name, good)
    decide(tmp_path, recipe(), 1)
    always = recipe("always")
    assert "iteration-1/keep" not in labels(always, tmp_path / "none")
    assert "iteration-1/keep" in labels(recipe(), tmp_path / "none")
    assert standing(always, tmp_path, 1) == "iteration-1"
    for keep, name in (("better", "bootstrap"), ("always", "iteration-1")):
        (tmp_path / "recipe.yaml").write_text(f"model: {{id: m}}\niterate: {{keep: {keep}}}\n")
        assert find_target(str(tmp_path)).adapters["actor"] == tmp_path / name / "actor"
    assert standing(recipe(), tmp_path, 1) == "bootstrap"


def test_a_run_that_has_gone_on_already_is_not_told_otherwise(tmp_path: Path) -> None:
    """It was run without a score, and is scored afterwards."""
    for name, good in (("bootstrap", 4), ("iteration-1", 1)):
        score(tmp_path, name, good)
    Marker(tmp_path / "iteration-2", "responses").write({})
    assert decide(tmp_path, recipe(), 1) == (1, [])


def test_without_a_warm_up_the_base_stays(tmp_path: Path) -> None:
    settings = recipe(bootstrap={"source": "none"})
    score(tmp_path, "base", 4)
    score(tmp_path, "iteration-1", 3)
    assert decide(tmp_path, settings, 1)[0] == 0
    assert adapters_after(settings, tmp_path, 1) == (None, None)
    assert standing(settings, tmp_path, 1) == "base"


def test_without_a_score_there_is_nothing_to_decide_by(tmp_path: Path) -> None:
    settings = recipe(evaluate={"prompts": 0})
    assert not [label for label in labels(settings, tmp_path) if label.endswith("keep")]
