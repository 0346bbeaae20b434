"""One real run: SmolLM2-135M-Instruct from its wheel, through a shrunken quickstart, on CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.loop import summaries
from spar_lite.recipe import load_recipe
from spar_lite.records import Judgement, Response, Tree
from spar_lite.store import StageFile

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"

SHRUNK = {
    "prompts.count": 3,
    "bootstrap.prompts": 5,
    "bootstrap.minimal": 0,
    "sample.k": 2,
    "sample.temperature": 0.7,
    "judge.votes": 2,
    "search.depth": 1,
    "evaluate.prompts": 4,
    "evaluate.review": 2,
}


@pytest.mark.slow
def test_the_real_model_goes_through_the_whole_loop(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "spar_lite", "run", str(QUICKSTART), "--run", str(folder)]
    for key, value in SHRUNK.items():
        command += ["-o", f"{key}={value}"]
    # The wheel comes from a registry; nothing comes from a hub.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr

    one = folder / "iteration-1"
    responses = StageFile(one, "responses", Response).load()
    assert [r.id for r in responses] == [f"train-000{n}/{k}" for n in range(3) for k in range(2)]
    assert all(r.text and r.cost.completion_tokens > 0 for r in responses)
    judgements = StageFile(one, "judgements", Judgement).load()
    assert all(len(j.votes) == 2 and j.verdict is not None for j in judgements)
    assert StageFile(one, "trees", Tree).load()
    assert len(StageFile(one, "heldout", HeldoutResult).load()) == 4

    marks = summaries(load_recipe(folder / "recipe.yaml"), folder)
    first, second = (marks[f"bootstrap/{role}"]["fingerprints"] for role in ("refiner", "actor"))
    assert first["actor"] != second["actor"] and first["refiner"] == second["refiner"]
    assert marks["bootstrap/refiner"]["loss_last"] < marks["bootstrap/refiner"]["loss_first"]
