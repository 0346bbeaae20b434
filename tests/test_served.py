"""A run whose server is killed in every stage and started again: nothing is lost or doubled."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from spar_lite.engines.served import RoleServer
from spar_lite.loop import execute
from spar_lite.run import Run
from spar_lite.store import read_lines
from tests.loops import adapters_of, recipe, records_of
from tests.scripted import Silence
from tests.serving import State, serving

pytestmark = [pytest.mark.tensors, pytest.mark.slow]

AWAY = 0.3
"""Seconds between a server's end and the start of the next one."""


class Server:
    """A server process on one port, answering by rule, that can be killed and started anew."""

    def __init__(self) -> None:
        with serving(State()) as url:
            self.url = url
        self.starting: threading.Timer | None = None
        self.start()

    def start(self) -> None:
        port = self.url.rpartition(":")[2].partition("/")[0]
        command = [sys.executable, "-m", "tests.serving", "--port", port, "--rule"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "serving\n"

    def kill(self) -> None:
        if self.starting is not None:
            self.starting.join()
        self.process.kill()
        self.process.communicate()

    def kill_for_a_while(self) -> None:
        self.kill()
        self.starting = threading.Timer(AWAY, self.start)
        self.starting.start()


class Killer(Silence):
    """Kills the server when a stage has made its first record, or a training its first step."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server, self.stage = server, ""
        self.killed: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        super().start(stage, total, unit)
        self.stage = stage if total > 1 else ""

    def advance(self, items: int) -> None:
        super().advance(items)
        if items and self.stage and self.stage not in self.killed:
            self.killed.append(self.stage)
            self.server.kill_for_a_while()


def served_run(tiny_folder: Path, folder: Path, server: Server, screen: Silence) -> Run:
    engine = {"kind": "openai", "url": server.url, "parallel": 4}
    engine["models"] = {"base": "small", "actor": "actor", "refiner": "refiner"}
    run = Run(recipe(tiny_folder, iterations=1, engine=engine), folder, screen)
    opened = run.open_engine()
    assert isinstance(opened, RoleServer)
    opened.pause = opened.poll = 0.05
    execute(run)
    return run


def test_a_server_killed_in_every_stage_loses_and_doubles_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    server = Server()
    try:
        served_run(tiny_folder, tmp_path / "whole", server, Silence())
        killer = Killer(server)
        served_run(tiny_folder, tmp_path / "broken", server, killer)
    finally:
        server.kill()
    stages = {stage.partition("/")[2] for stage in killer.killed}
    wanted = {"answers", "responses", "judgements", "trees", "heldout_answers", "heldout"}
    assert wanted <= stages
    # In a training, so that its adapter is loaded by a server that has forgotten the others.
    assert {"iteration-1/actor", "iteration-1/refiner"} <= set(killer.killed)
    assert records_of(tmp_path / "broken") == records_of(tmp_path / "whole")
    assert adapters_of(tmp_path / "broken") == adapters_of(tmp_path / "whole")
    ledger = list(read_lines(tmp_path / "broken" / "ledger.jsonl"))
    assert set(Counter(e["stage"] for e in ledger if e["event"] == "start").values()) == {1}
    assert not list((tmp_path / "broken").rglob("*.part.*"))
