"""What the machine has to give: free memory, peak memory, threads."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from spar_lite.errors import ModelError

CACHE_SHARE = {"cuda": 0.75, "cpu": 0.5}
"""Share of the free memory that keys and values may take; the rest is for activations."""

NEAR = 0.9
"""Speeds from this share of the best on count as a tie."""

ROUNDS, TRIES = 10, 10
"""How often each number of threads is tried, and products timed each time: half a second in all."""

LINUX = sys.platform == "linux"


def pick_device(wanted: str) -> torch.device:
    """Resolve "auto" and refuse a CUDA that is not there.

    Raises:
        ModelError: "cuda" was wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device wanted cuda, found no CUDA device. Use -o model.device=cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def total_memory(device: torch.device) -> int:
    """All bytes of the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def free_memory(device: torch.device, fraction: float) -> int:
    """Bytes that this process may still take on ``device``, of ``fraction`` of its memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - ours
        return max(0, min(free, int(fraction * total) - ours))
    memory = psutil.virtual_memory()
    ours = psutil.Process().memory_info().rss
    return max(0, min(int(memory.available), int(fraction * memory.total) - int(ours)))


def cache_budget(device: torch.device, fraction: float) -> int:
    """Bytes that keys and values may take now."""
    return int(CACHE_SHARE[device.type] * free_memory(device, fraction))


def freeze_libraries() -> None:
    """Take all that is imported out of the garbage collector's sight; it lives as long as we do.

    torch, transformers and TRL bring more than half a million objects. With them in sight a
    collection took 0.3 s, and the engine makes one whenever it gives memory back (LOG.md).
    """
    gc.collect()
    gc.freeze()


def give_back(device: torch.device) -> None:
    """Return memory that nothing uses any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, could not give the memory asked for."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of the peak, where the system allows it (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak is then the process's whole past


def peak_memory(device: torch.device) -> int:
    """Peak bytes since ``reset_peak``: allocated on CUDA, resident in the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def best_threads(hidden: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """The fastest number of CPU threads now, by a short measurement of a decoding step's product.

    More threads than free cores can be ten times slower than one: they wait for one another by
    spinning. A near tie goes to fewer threads.
    """
    before = torch.get_num_threads()
    cores = len(psutil.Process().cpu_affinity()) if LINUX else psutil.cpu_count() or 1
    weight, x = torch.ones(4 * hidden, hidden), torch.ones(hidden, 64)
    seconds: dict[int, float] = {}
    # In turns, so that a core that is busy for a moment does not decide.
    for threads in sorted({1, max(1, cores // 2), cores}) * ROUNDS:
        torch.set_num_threads(threads)
        took = least_seconds(lambda: torch.mm(weight, x), clock)
        seconds[threads] = min(took, seconds.get(threads, took))
    torch.set_num_threads(before)
    least = min(seconds.values())
    return min(threads for threads, took in seconds.items() if took * NEAR <= least)


def least_seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Least time of one call, of a few."""
    took = []
    for _ in range(TRIES):
        start = clock()
        call()
        took.append(clock() - start)
    return min(took)
