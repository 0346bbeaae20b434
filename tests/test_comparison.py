"""Runs side by side, from folders that the test writes: figures by hand, words where due."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spar_lite.app.cli import main
from spar_lite.evaluation.compare import differences, run_alarms
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.stats import wilson
from spar_lite.evaluation.tasks.judge import JudgeResult
from spar_lite.recipe import load_recipe
from spar_lite.records import Cost
from spar_lite.store import Marker, StageFile


def answers(met: list[bool], **changes: Any) -> list[HeldoutResult]:
    """One constraint a prompt, and an answer that counts where it is met."""
    found = [
        HeldoutResult(f"h-{n}", "a b", True, (ok,), (), None, None, False, None, None, (), Cost())
        for n, ok in enumerate(met)
    ]
    return [dataclasses.replace(result, **changes) for result in found]


def scored(folder: Path, name: str, results: list[HeldoutResult]) -> None:
    """Leave a held-out score of a checkpoint in a run."""
    StageFile(folder / name, "heldout", HeldoutResult).finish(results)
    Marker(folder / name, "heldout").write({"recipe": {}, "seconds": 3.0})


def make_run(
    folder: Path,
    met: list[bool],
    judge: list[bool] = (),  # type: ignore[assignment]
    seed: int = 0,
    prompts: str = "{}",
) -> Path:
    """A finished run with one held-out score: one constraint a prompt."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        f"seed: {seed}\niterations: 1\nmodel: {{id: none}}\nbootstrap: {{source: none}}\n"
        f"prompts: {prompts}\n"
    )
    place = folder / "iteration-1"
    StageFile(place, "heldout", HeldoutResult).finish(answers(met))
    Marker(place, "pairs").write({"recipe": {}, "pairs": 7, "seconds": 1.5})
    cost = {"seconds": 10.0, "prompt_tokens": 100, "completion_tokens": 40, "device": "cpu"}
    Marker(place, "heldout").write({"recipe": {}, **cost, "peak_memory_bytes": 2**30})
    if judge:
        place = folder / "eval" / "iteration-1"
        StageFile(place, "judge-llmbar", JudgeResult).finish(
            [
                JudgeResult(f"c-{n}", "p", "s", True, (), None, ok, float(ok), Cost())
                for n, ok in enumerate(judge)
            ]
        )
        Marker(place, "judge-llmbar").write(
            {
                "task": "judge",
                "settings": {"texts": 1, "source": "llmbar", "model": "none"},
                "scores": {"accuracy": dataclasses.asdict(wilson(sum(judge), len(judge)))},
                "results_file": "judge-llmbar.jsonl",
            }
        )
    return folder


def compare(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["compare", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_scores_costs_and_paired_differences(tmp_path: Path) -> None:
    """20 prompts, 4 met before and 14 after, none lost: +50 points; McNemar 2 / 2^10."""
    before = make_run(tmp_path / "a", [True] * 4 + [False] * 16)
    after = make_run(tmp_path / "b", [True] * 14 + [False] * 6)
    found = compare(before, after)
    first, second = found["runs"]
    assert first["scores"]["held-out answers"]["answers_that_count"]["value"] == 0.2
    assert (second["preference_pairs"], second["tokens_in"], second["tokens_out"]) == (7, 100, 40)
    assert (second["seconds"], second["peak_memory_bytes"]) == (11.5, 2**30)
    assert second["judged_by"] == "itself" and "gpu_seconds" not in second
    (difference,) = found["differences"]
    assert difference["difference"]["value"] == 0.5 and difference["difference"]["n"] == 20
    assert difference["mcnemar_p"] == pytest.approx(2 / 2**10)
    assert difference["distinguishable"] and difference["left_out"] == 0


def test_a_small_difference_is_not_distinguishable(tmp_path: Path) -> None:
    """Three gained and one lost of 20: McNemar 2 * (1 + 4) / 16 = 0.625. And two not shared."""
    before = make_run(tmp_path / "a", [True] + [False] * 21)
    after = make_run(tmp_path / "b", [False] + [True] * 3 + [False] * 16)
    (difference,) = compare(before, after)["differences"]
    assert difference["mcnemar_p"] == pytest.approx(0.625)
    assert not difference["distinguishable"] and difference["left_out"] == 2
    done = CliRunner().invoke(main, ["compare", str(before), str(after)])
    assert "not distinguishable (2 prompts not shared)" in done.stdout
    assert "McNemar p = 0.625" in done.stdout and "judged by" in done.stdout


def test_evaluations_in_common_are_compared(tmp_path: Path) -> None:
    before = make_run(tmp_path / "a", [True, False], [True] * 5 + [False] * 5)
    after = make_run(tmp_path / "b", [True, False], [True] * 10)
    found = compare(before, after, before)
    named = {(d["task"], d["to"]): d for d in found["differences"]}
    assert named["judge-llmbar", "b:iteration-1"]["difference"]["value"] == 0.5
    assert named["judge-llmbar", "a:iteration-1"]["difference"]["value"] == 0
    assert len(found["runs"]) == 3


def test_what_counts_is_compared_and_not_what_meets_constraints(tmp_path: Path) -> None:
    """All met on both sides, by answers that say it twice on one: 9 of 9 lost, and said so."""
    before = make_run(tmp_path / "a", [True] * 9)
    after = make_run(tmp_path / "b", [True] * 9)
    StageFile(after / "iteration-1", "heldout", HeldoutResult).finish(
        answers([True] * 9, faults=("says it twice",))
    )
    found = compare(before, after)
    (difference,) = found["differences"]
    assert difference["difference"]["value"] == -1 and difference["mcnemar_p"] == 2 / 2**9
    (alarm,) = found["alarms"]
    assert (alarm["from"], alarm["to"]) == ("a:iteration-1", "b:iteration-1")
    done = CliRunner().invoke(main, ["compare", str(before), str(after)])
    step = "a:iteration-1 → b:iteration-1"
    assert f"{step}: the answers got worse: said twice 0.0 → 100.0 % (+100.0" in done.stdout
    assert compare(after, before)["alarms"] == []


def test_runs_of_other_seeds_have_the_same_prompts(tmp_path: Path) -> None:
    before = make_run(tmp_path / "a", [True] * 9)
    after = make_run(tmp_path / "b", [False] * 9, seed=1)
    (difference,) = compare(before, after)["differences"]
    assert difference["difference"] == {"value": -1, "low": -1, "high": -1, "n": 9}


def test_other_prompts_under_the_same_ids_are_not_compared(tmp_path: Path) -> None:
    """Other kinds of constraints make other prompts for the ids h-0, h-1, …"""
    before = make_run(tmp_path / "a", [True] * 9)
    after = make_run(tmp_path / "b", [False] * 9, prompts="{kinds: [no_commas]}")
    found = compare(before, after)
    assert found["differences"] == found["alarms"] == []
    done = CliRunner().invoke(main, ["compare", str(before), str(after)])
    assert "nothing was compared prompt by prompt" in done.stdout


def test_evaluations_of_another_version_are_shown_and_not_compared(tmp_path: Path) -> None:
    """Nothing in their settings says which prompts their ids stood for."""
    runs = [make_run(tmp_path / name, [True], [True] * 9) for name in "ab"]
    for run in runs:
        file = Marker(run / "eval" / "iteration-1", "judge-llmbar")
        card = file.read()
        assert card is not None
        del card["settings"]["texts"]
        file.write(card)
    found = compare(*runs)
    assert "judge-llmbar" in found["runs"][0]["scores"]
    assert {d["task"] for d in found["differences"]} == {"held-out answers"}


def test_a_run_is_what_it_ends_with(tmp_path: Path) -> None:
    """Iteration 1 was worse, so the run ends with what it started from."""
    folder = make_run(tmp_path / "a", [False] * 9)
    scored(folder, "base", answers([True] * 9))
    assert compare(folder, f"{folder}:base")["runs"][0]["name"] == "a:iteration-1"
    Marker(folder / "iteration-1", "keep").write({"recipe": {}, "kept": 0})
    assert compare(folder, f"{folder}:iteration-1")["runs"][0]["name"] == "a:base"


def run_of_three(folder: Path) -> Path:
    """Warm-up and three iterations; the second was not kept, so the third starts from the first."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("iterations: 3\nmodel: {id: none}\n")
    for name, met in {"base": 1, "bootstrap": 2, "iteration-1": 12, "iteration-3": 13}.items():
        scored(folder, name, answers([n < met for n in range(20)]))
    twice = answers([True] * 20, faults=("says it twice",))
    scored(folder, "iteration-2", [*twice[:9], *answers([True] * 20)[9:]])
    for number, kept in {1: 1, 2: 1, 3: 3}.items():
        Marker(folder / f"iteration-{number}", "keep").write({"recipe": {}, "kept": kept})
    return folder


def test_each_checkpoint_is_compared_with_the_one_it_started_from(tmp_path: Path) -> None:
    folder = run_of_three(tmp_path / "a")
    recipe = load_recipe(folder / "recipe.yaml")
    found = {(d["from"], d["to"]): d["difference"]["value"] for d in differences(recipe, folder)}
    assert found == {
        ("base", "bootstrap"): pytest.approx(1 / 20),
        ("bootstrap", "iteration-1"): pytest.approx(10 / 20),
        ("iteration-1", "iteration-2"): pytest.approx(-1 / 20),
        ("iteration-1", "iteration-3"): pytest.approx(1 / 20),
        ("bootstrap", "iteration-3"): pytest.approx(11 / 20),
        ("base", "iteration-3"): pytest.approx(12 / 20),
    }


def test_a_run_says_what_got_worse_and_where(tmp_path: Path) -> None:
    """Iteration 2: 12 to 20 of 20 met, but 9 say it twice, and 11 count instead of 12."""
    folder = run_of_three(tmp_path / "a")
    done = CliRunner().invoke(main, ["status", str(folder)], catch_exceptions=False)
    lines = [x for x in done.stdout.split("\n") if "won without" in x or "got worse" in x]
    step = "iteration-1 → iteration-2"
    won = "the score was won without answering: constraints met 60.0 → 100.0 %"
    assert [line.partition(" (")[0] for line in lines] == [
        f"{step}: {won}",
        f"{step}: the answers got worse: said twice 0.0 → 45.0 %",
    ]
    assert "answers that count, base → iteration-3: +60.0 points [" in done.stdout


def test_a_run_without_scores_has_nothing_to_compare(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [True])
    recipe = load_recipe(folder / "recipe.yaml")
    assert differences(recipe, folder) == [] and run_alarms(recipe, folder) == {}
    assert differences(recipe, tmp_path) == [] and run_alarms(recipe, tmp_path) == {}


# --- Several seeds --------------------------------------------------------------------------------


def test_seeds_are_pooled_by_prompt(tmp_path: Path) -> None:
    """Three runs, four prompts: of 12 pairs 5 gained and 1 lost, so +4 / 12.

    By prompt: +1 in all runs; +1, +1, 0; 0; -1, 0, 0. Resampling these four whole, the mean of 12
    lies between -4 / 12 and 1.
    """
    gains = ([True, True, False, False], [True, True, False, True], [True, False, False, True])
    starts = ([False, False, False, True], [False, False, False, True], [False, False, False, True])
    runs = []
    for seed, (before, after) in enumerate(zip(starts, gains, strict=True)):
        runs.append(make_run(tmp_path / f"seed{seed}", after, seed=seed))
        scored(runs[-1], "base", answers(before))
    found = compare(*runs, "--from", "base")
    (pooled,) = found["pooled"]
    assert pooled["difference"]["value"] == pytest.approx(4 / 12)
    assert (pooled["difference"]["n"], pooled["runs"], pooled["left_out"]) == (4, 3, 0)
    assert (pooled["from"], pooled["to"]) == ("base", "iteration-1")
    assert -4 / 12 <= pooled["difference"]["low"] < 4 / 12 < pooled["difference"]["high"] <= 1
    assert [d["difference"]["value"] for d in found["differences"]] == [0.25, 0.5, 0.25]
    assert [run["name"] for run in found["runs"]][:2] == ["seed0:base", "seed0:iteration-1"]
    done = CliRunner().invoke(main, ["compare", *map(str, runs), "--from", "base"])
    assert "held-out answers, base → iteration-1: +33.3 points [" in done.stdout
    assert "3 runs pooled, the same prompts in each, n=4: not distinguishable" in done.stdout


def test_pooling_leaves_out_what_one_run_lacks(tmp_path: Path) -> None:
    """One run is enough; of two with 9 and 7 prompts the last two are left out and counted."""
    runs = [make_run(tmp_path / name, [True] * n) for name, n in (("a", 9), ("b", 7))]
    for run, n in zip(runs, (9, 7), strict=True):
        scored(run, "base", answers([False] * n))
    (one,) = compare(runs[0], "--from", "base")["pooled"]
    assert one["difference"] == {"value": 1, "low": 1, "high": 1, "n": 9} and one["runs"] == 1
    (both,) = compare(*runs, "--from", "base")["pooled"]
    assert (both["difference"]["n"], both["left_out"], both["distinguishable"]) == (7, 2, True)


def test_pooling_what_has_nothing_in_common_is_said(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", [True]),
        make_run(tmp_path / "b", [True], prompts="{kinds: [no_commas]}"),
    ]
    for run in runs:
        scored(run, "base", answers([False]))
    done = CliRunner().invoke(main, ["compare", *map(str, runs), "--from", "base"])
    assert "nothing was pooled" in done.stdout


# --- Files and faults -----------------------------------------------------------------------------


def test_checkpoints_of_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [True, False])
    scored(folder, "base", answers([False]))
    found = compare(f"{folder}:base", folder)
    assert [run["name"] for run in found["runs"]] == ["a:base", "a:iteration-1"]
    assert found["runs"][0]["seconds"] == 3.0
    assert found["differences"][0]["difference"]["value"] == 1


def test_faults_are_one_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [True])
    for words, said in (
        ((folder,), "wants two runs or more"),
        ((folder, tmp_path), "holds no recipe.yaml"),
        ((folder, f"{folder}:iteration-2"), "has no scores of iteration-2, but of iteration-1"),
    ):
        done = CliRunner().invoke(main, ["compare", *map(str, words)])
        assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output


def test_a_run_of_an_older_version_is_one_line(tmp_path: Path) -> None:
    """Its held-out records lack what today's have; theirs may have what today's lack."""
    folder = make_run(tmp_path / "a", [True])
    file = folder / "iteration-1" / "heldout.jsonl"
    now = json.loads(file.read_text())
    old = {key: value for key, value in now.items() if key not in ("faults", "logp")}
    for record, said in (
        (old, "faults: Field required"),
        ({**now, "all_met": True}, "all_met: Unexpected keyword argument"),
    ):
        file.write_text(json.dumps(record) + "\n")
        for words in (["compare", folder, folder], ["status", folder]):
            done = CliRunner().invoke(main, list(map(str, words)))
            assert done.exit_code == 2 and "Traceback" not in done.output
            (error,) = (x for x in done.output.split("\n") if x.startswith("Error:"))
            assert said in error and "another version" in error and "heldout.jsonl line 1" in error
