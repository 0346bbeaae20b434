"""SIGKILL in every stage of a real run (tiny model, real engine and trainers), then finish it."""

from __future__ import annotations

import json
import os
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from spar_lite.recipe import dump_recipe
from tests.loops import adapters_of, recipe, records_of

PATIENCE = 240.0
"""Seconds that one process may take; it takes a few."""


def spar_lite(said: Path, *arguments: str) -> None:
    """The command line, in a process of its own; what it says goes to a file."""
    from spar_lite.app.cli import main

    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main(arguments, prog_name="spar-lite")


def started(folder: Path) -> list[str]:
    """The stages that the ledger says have begun."""
    ledger = folder / "ledger.jsonl"
    lines = ledger.read_text().split("\n")[:-1] if ledger.exists() else []
    return [line["stage"] for line in map(json.loads, lines) if line["event"] == "start"]


def run_until_new_stage(
    processes: ForkServerContext, recipe: Path, folder: Path, killed: list[str] | None
) -> bool:
    """Run; SIGKILL in the first stage that was not killed yet (None: in none). Whether it ended."""
    said = folder.with_suffix(".log")
    process = processes.Process(
        target=spar_lite, args=(said, "run", str(recipe), "--run", str(folder))
    )
    process.start()
    deadline = time.monotonic() + PATIENCE
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
        stages = started(folder)
        if stages and killed is not None and stages[-1] not in killed:
            time.sleep(0.1 if stages[-1].endswith(("actor", "refiner")) else 0.02)
            process.kill()
            process.join()
            killed.append(stages[-1])
            return False
    assert process.exitcode == 0, said.read_text()
    return True


@pytest.mark.slow
def test_a_kill_in_every_stage_loses_and_doubles_nothing(
    tiny_folder: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe(tiny_folder, iterations=1, model__threads=1)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_until_new_stage(processes, file, whole, None)
    killed: list[str] = []
    while not run_until_new_stage(processes, file, broken, killed):
        assert len(killed) <= len(set(started(whole)))
    # Stages that take a few milliseconds may be over before the signal comes.
    assert len(killed) >= len(set(started(whole))) // 2
    assert records_of(broken) == records_of(whole)
    assert adapters_of(broken) == adapters_of(whole)
    assert not [p for p in broken.rglob("*") if ".part." in p.name or p.name.endswith(".tmp")]
