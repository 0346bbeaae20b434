"""SIGKILL in every stage of a real run (tiny model, real engine and trainers), then finish it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import adapters_of, recipe, records_of

from spar_lite.recipe import dump_recipe

PATIENCE = 240.0
"""Seconds that one process may take; it takes about ten."""


def started(folder: Path) -> list[str]:
    """The stages that the ledger says have begun."""
    ledger = folder / "ledger.jsonl"
    lines = ledger.read_text().split("\n")[:-1] if ledger.exists() else []
    return [line["stage"] for line in map(json.loads, lines) if line["event"] == "start"]


def run_until_new_stage(command: list[str], folder: Path, killed: list[str]) -> int | None:
    """Run; SIGKILL in the first stage that was not killed yet. The exit code if there is none."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ}
    )
    assert process.stderr is not None
    with process.stderr:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            stages = started(folder)
            if stages and stages[-1] not in killed:
                time.sleep(0.1 if stages[-1].endswith(("actor", "refiner")) else 0.02)
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed.append(stages[-1])
                return None
        assert process.poll() == 0, process.stderr.read().decode()
    return 0


@pytest.mark.slow
def test_a_kill_in_every_stage_loses_and_doubles_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe(tiny_folder, iterations=1, model__threads=1)))
    base = [sys.executable, "-m", "spar_lite", "run", str(file), "--run"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*base, str(whole)], check=True, capture_output=True)
    killed: list[str] = []
    while run_until_new_stage([*base, str(broken)], broken, killed) is None:
        assert len(killed) <= len(set(started(whole)))
    # Stages that take a few milliseconds may be over before the signal comes.
    assert len(killed) >= len(set(started(whole))) // 2
    assert records_of(broken) == records_of(whole)
    assert adapters_of(broken) == adapters_of(whole)
    assert not [p for p in broken.rglob("*") if ".part." in p.name or p.name.endswith(".tmp")]
