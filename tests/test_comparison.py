"""Runs side by side, from folders that the test writes: figures by hand, words where due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spar_lite.cli import main
from spar_lite.evaluate import HeldoutResult, Scorecard
from spar_lite.evaluate.judge import JudgeResult
from spar_lite.records import Cost
from spar_lite.statistics import wilson
from spar_lite.store import Marker, StageFile


def make_run(folder: Path, met: list[bool], judge: list[bool] = (), seed: int = 0) -> Path:  # type: ignore[assignment]
    """A finished run with one held-out score: one constraint a prompt."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        f"seed: {seed}\niterations: 1\nmodel: {{id: none}}\nbootstrap: {{source: none}}\n"
    )
    results = [
        HeldoutResult(f"h-{n}", "a b", True, (ok,), None, False, None, None, (), Cost())
        for n, ok in enumerate(met)
    ]
    place = folder / "iteration-1"
    StageFile(place, "heldout", HeldoutResult).finish(results)
    Marker(place, "pairs").write({"recipe": {}, "pairs": 7, "seconds": 1.5})
    cost = {"seconds": 10.0, "prompt_tokens": 100, "completion_tokens": 40, "device": "cpu"}
    Marker(place, "heldout").write({"recipe": {}, **cost, "peak_memory_bytes": 2**30})
    if judge:
        card = Scorecard(folder / "eval" / "iteration-1", "judge-llmbar", JudgeResult)
        card.results.finish(
            [
                JudgeResult(f"c-{n}", "p", "s", True, (), None, ok, float(ok), Cost())
                for n, ok in enumerate(judge)
            ]
        )
        scores = {"accuracy": wilson(sum(judge), len(judge))}
        card.finish("judge", "x", {"seed": seed, "source": "llmbar", "model": "none"}, scores)
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
    assert first["scores"]["held-out constraints"]["all_met"]["value"] == 0.2
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


def test_other_prompts_under_the_same_ids_are_not_compared(tmp_path: Path) -> None:
    """Another seed draws other prompts for the ids h-0, h-1, …"""
    before = make_run(tmp_path / "a", [True] * 9)
    after = make_run(tmp_path / "b", [False] * 9, seed=1)
    assert compare(before, after)["differences"] == []
    done = CliRunner().invoke(main, ["compare", str(before), str(after)])
    assert "nothing was compared prompt by prompt" in done.stdout


def test_checkpoints_of_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [True, False])
    place = folder / "base"
    results = [HeldoutResult("h-0", "a", True, (False,), None, False, None, None, (), Cost())]
    StageFile(place, "heldout", HeldoutResult).finish(results)
    Marker(place, "heldout").write({"recipe": {}, "seconds": 3.0})
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
