"""Training on several cards: the processes of one run, as ``accelerate launch`` starts them.

The first does the whole run. The others walk the same loop, wait for each of its steps to be marked
on disk, and take part where an adapter is trained. There every process has all examples in the same
order; of the examples of an optimizer step each learns a share, the gradients are added up, and all
take the same step. A loss is a sum over examples or tokens, divided by how many the whole step has,
so its gradient is that of one process, however unequal the shares. No process waits within its
share: each may send it through the model in parts of its own, and halve them when memory runs out.

TRL and accelerate are not told of the others. They would deal whole batches out to processes, and
wrap the model; and a server that the run starts must not take this group for its own.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from spar_lite.errors import ModelError, SparError, TrainingError

PATIENCE = datetime.timedelta(days=2)
"""How long a process may wait for another within a training, which a slow disk or card delays."""

LOST = (
    "another process of this training has ended, and this one with it. If it said nothing, it was "
    "killed: look at the memory of its machine. The same command goes on from here."
)

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
            "GROUP_WORLD_SIZE", "ROLE_", "ACCELERATE_", "TORCHELASTIC_")  # fmt: skip
"""How the names of a launcher's variables begin."""


@contextmanager
def together() -> Iterator[bool]:
    """Join the processes of this launch for as long as the context lasts; whether we are the first.

    Where one fails, all end, and one alone says why.

    Raises:
        ModelError: the launcher is to share one model out, or has more processes than cards.
        TrainingError: they do not find each other.
    """
    _take_own_card()
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes of this launch do not meet: {error}") from None
    for name in [name for name in os.environ if name.startswith(LAUNCHER)]:
        del os.environ[name]
    try:
        with told_of_end():
            yield rank == 0
    except (SparError, KeyboardInterrupt):
        said = 1
        with suppress(RuntimeError):  # of a launcher that is gone
            said = store.add("said", 1)
        if said > 1:
            sys.exit(2)  # another process says why
        raise
    dist.destroy_process_group()


@contextmanager
def told_of_end() -> Iterator[None]:
    """Make an error of the signal by which a launcher ends the processes that are left.

    Python drops an error that is raised while an object is destroyed; then it is raised again.
    """
    hook = sys.unraisablehook

    def again(dropped: Any) -> None:
        if str(dropped.exc_value) == LOST:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        else:
            hook(dropped)

    before = [signal.signal(number, _ended) for number in (signal.SIGTERM, signal.SIGALRM)]
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGTERM, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def _take_own_card() -> None:
    """Let this process see one card alone, which libraries then take without being told."""
    for way in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        asked = os.environ.get(f"ACCELERATE_USE_{way}", "").lower() == "true"
        if asked and os.environ["RANK"] == "0":  # the others are waiting for it, and end with it
            raise ModelError(
                f"accelerate is set up for {way}, and every process here holds the whole base: "
                "launch with --multi_gpu, and without its configuration (--config_file)."
            )
    place, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if cards and place >= cards:
        raise ModelError(
            f"wanted a card for each process of this machine, found {cards} for process "
            f"{place + 1}. Lower --num_processes."
        )
    if cards:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards)))
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[place]


def _ended(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TrainingError(LOST)


def processes() -> int:
    """How many take part in a training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> Sequence[int]:
    """The places of those examples, of ``count`` in a row, that are this process's; maybe none."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return range(rank, count, processes())


def add_up(*tensors: Tensor) -> None:
    """Put in place of each tensor its sum over all processes, in which it has the same shape.

    Raises:
        TrainingError: another process has ended.
    """
    if processes() > 1:
        with _heard():
            for tensor in tensors:
                dist.all_reduce(tensor)


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Put in place of each tensor that of the first process.

    Fresh adapters differ between kinds of cards, whose random numbers do.

    Raises:
        TrainingError: another process has ended.
    """
    if processes() > 1:
        with _heard():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # of the transport, whose words name sockets
        raise TrainingError(LOST) from None
