"""Two real processes of one run (gloo, on a CPU): they learn what one learns, and end together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from spar_lite.distributed import _take_own_card, told_of_end
from spar_lite.errors import ModelError, TrainingError
from spar_lite.loop import execute
from spar_lite.recipe import dump_recipe
from spar_lite.store import read_json
from tests.loops import recipe, records_of, start

pytestmark = pytest.mark.tensors

PATIENCE = 240.0
"""Seconds that a run may take; it takes a few."""

ROUNDING = 1e-3
"""How far two processes' weights may be from one's, as a share of the way that training went.

Sums of float32 in another order differ by about 1e-7 of their terms. AdamW divides a gradient by
its own size, so that where one is near 0 its rounding may become as much as a step. Found: 4e-6;
with the gradients of one process doubled: 0.4.
"""

ROLES = ("actor", "refiner")


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with answers by rule; beside it its recipe.

    Neither role's examples divide by the batch, nor a batch by two: the last one has one example.
    """
    folder = tmp_path_factory.mktemp("whole")
    changes: dict[str, Any] = {"iterations": 1, "evaluate__prompts": 0}
    changes |= {"dpo__batch_size": 4, "rft__batch_size": 3, "dpo__epochs": 2}
    settings = recipe(tiny_folder, **changes)
    (folder / "recipe.yaml").write_text(dump_recipe(settings))
    found = execute(start(folder / "run", settings))
    assert found["iteration-1/actor"]["examples"] % 4 == 1
    assert found["iteration-1/refiner"]["examples"] % 3 == 1
    return folder / "run"


def untrained(whole: Path, folder: Path) -> Path:
    """The run as it was before its iteration's trainings."""
    shutil.copytree(whole, folder)
    for role in ROLES:
        shutil.rmtree(folder / "iteration-1" / role)
        (folder / "iteration-1" / f"{role}.done.json").unlink()
    return folder


def weights(folder: Path) -> torch.Tensor:
    """All of an adapter's weights in a row."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def assert_same_training(two: Path, one: Path) -> None:
    assert records_of(two) == records_of(one)
    for role in ROLES:
        found, wanted = (weights(at / "iteration-1" / role) for at in (two, one))
        way = wanted - weights(one / "bootstrap" / role)
        assert (found - wanted).norm() <= ROUNDING * way.norm()
        said, known = (read_json(at / "iteration-1" / f"{role}.done.json") for at in (two, one))
        assert said is not None and known is not None
        for name in ("examples", "dropped", "steps", "tokens"):
            assert said[name] == known[name]
        for name in ("loss_first", "loss_last"):
            assert said[name] == pytest.approx(known[name], rel=1e-5)


def member(rank: int, port: int, said: Path, *arguments: str) -> None:
    """The command line in one of two processes; what it says is added to a file."""
    from spar_lite.app.cli import main

    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    group |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    group |= {"TORCHELASTIC_RESTART_COUNT": 0}
    os.environ |= {name: str(value) for name, value in group.items()}
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # As if memory had run out in one of them: its share goes through the model in smaller parts.
    smaller = [f"-o{role}.pass_tokens=300" for role in ("dpo", "rft") if rank]
    main([*arguments, *smaller], prog_name="spar-lite")


@contextmanager
def two(
    processes: ForkServerContext, said: Path, *arguments: object
) -> Iterator[tuple[BaseProcess, BaseProcess]]:
    """Both processes of a run; this one is their launcher, and holds what they tell each other."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    words = (store.port, said, "run", *map(str, arguments))
    found = [processes.Process(target=member, args=(rank, *words)) for rank in range(2)]
    for process in found:
        process.start()
    try:
        yield found[0], found[1]
    finally:
        for process in found:
            process.kill()
            process.join()


def errors(said: Path) -> list[str]:
    """The lines of a run's output that are no progress; a traceback is many."""
    lines = said.read_text().splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith(("Error", "Trace"))), None)
    return [] if first is None else lines[first:]


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} never said {text}"
        time.sleep(0.02)


def test_two_processes_learn_what_one_learns(
    whole: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    folder, said = untrained(whole, tmp_path / "two"), tmp_path / "said"
    with two(processes, said, whole.with_name("recipe.yaml"), "--run", folder) as both:
        for process in both:
            process.join(PATIENCE)
            assert process.exitcode == 0, said.read_text()
    assert_same_training(folder, whole)
    assert said.read_text().count("iteration-1/actor: done") == 1  # one of them alone speaks


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_with_one_line_and_it_goes_on(
    whole: Path, tmp_path: Path, processes: ForkServerContext, victim: int
) -> None:
    folder, said = untrained(whole, tmp_path / "two"), tmp_path / "said"
    arguments = (whole.with_name("recipe.yaml"), "--run", folder)
    with two(processes, said, *arguments) as both:
        wait_for(said, "float32")  # the first has its model, and asks for the other
        both[victim].kill()
        both[1 - victim].join(PATIENCE)
        assert both[1 - victim].exitcode == 2, said.read_text()
    assert len(found := errors(said)) == 1 and "another process of this training" in found[0]
    assert not (folder / "iteration-1" / "refiner.done.json").exists()
    again = tmp_path / "again"
    with two(processes, again, *arguments) as both:
        for process in both:
            process.join(PATIENCE)
            assert process.exitcode == 0, again.read_text()
    assert_same_training(folder, whole)


def test_a_launcher_that_ends_the_first_is_told_of_in_one_line(
    tiny_folder: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """It does so when another was killed while the first is in rollouts."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(tiny_folder, iterations=1)))
    said, folder = tmp_path / "said", tmp_path / "run"
    with two(processes, said, tmp_path / "recipe.yaml", "--run", folder) as both:
        wait_for(said, "base/heldout_answers: done")
        both[1].kill()
        os.kill(both[0].pid or 0, signal.SIGTERM)
        both[0].join(PATIENCE)
        assert both[0].exitcode == 2, said.read_text()
    assert len(found := errors(said)) == 1 and "another process of this training" in found[0]


def test_an_end_that_is_told_while_an_object_is_destroyed_is_not_lost() -> None:
    class Dies:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingError, match="another process of this training"), told_of_end():
        Dies()
        time.sleep(20)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("change", "words"), [("dpo.lr=1e30", "gone wrong"), ("dpo.nonsense=1", "nonsense")]
)
def test_what_fails_in_both_is_said_once(
    whole: Path, tmp_path: Path, processes: ForkServerContext, change: str, words: str
) -> None:
    folder, said = untrained(whole, tmp_path / "two"), tmp_path / "said"
    arguments = (whole.with_name("recipe.yaml"), "--run", folder, "-o", change)
    with two(processes, said, *arguments) as both:
        for process in both:
            process.join(PATIENCE)
            assert process.exitcode == 2, said.read_text()
    assert len(found := errors(said)) == 1 and words in found[0]


@pytest.mark.parametrize(
    ("seen", "place", "own"), [(None, 0, "0"), (None, 1, "1"), ("4,7", 1, "7")]
)
def test_each_process_sees_its_own_card_alone(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, place: int, own: str
) -> None:
    launched(monkeypatch, place, seen)
    _take_own_card()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_a_launch_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 2)
    with pytest.raises(ModelError, match="found 2 for process 3"):
        _take_own_card()
    launched(monkeypatch, 0)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelError, match="set up for FSDP"):
        _take_own_card()


def launched(monkeypatch: pytest.MonkeyPatch, place: int, seen: str | None = None) -> None:
    """As a launcher would on a machine with two cards."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen or "")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(place))


@pytest.mark.slow
def test_accelerate_launch_starts_them(whole: Path, tmp_path: Path) -> None:
    folder = untrained(whole, tmp_path / "two")
    # On a machine without cards --multi_gpu is what starts more than one.
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--module"]
    arguments = ["spar_lite", "run", str(whole.with_name("recipe.yaml")), "--run", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert_same_training(folder, whole)
