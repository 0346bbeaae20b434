"""What the machine has to give: free memory, peak memory, threads."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from spar_lite.errors import ModelError

CACHE_SHARE = {"cuda": 0.75, "cpu": 0.5}
"""Share of the free memory that keys and values may take; the rest is for activations."""

NO_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""What errors of no class of their own say where there was no memory."""

NEAR = 0.9
"""Speeds from this share of the best on count as a tie."""

ROUNDS, SLICE = 5, 0.01
"""How often each number of threads is tried, and for how many seconds: a sixth of one in all."""

TRIES = 10
"""Products of which the fastest counts, where one is compared with another."""

TUNE_EVERY = 20.0
"""Seconds after which the threads are chosen anew: a browser opens, a backup ends."""

LINUX = sys.platform == "linux"


def pick_device(wanted: str) -> torch.device:
    """Resolve "auto" and refuse a CUDA that is not there.

    Raises:
        ModelError: "cuda" was wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device wanted cuda, found no CUDA device. Use -o model.device=cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """What products are computed in: bf16 on CUDA, fp16 where that is emulated, fp32 on a CPU.

    A T4 or V100 (below compute capability 8.0) has no bf16 units. On a CPU without them bf16
    products are hundreds of times slower than fp32.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


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
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


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

    Threads wait for one another by spinning: where another process takes one of two cores, two
    threads are eight times slower than one (LOG.md). A near tie goes to fewer threads.
    """
    before = torch.get_num_threads()
    cores = len(psutil.Process().cpu_affinity()) if LINUX else psutil.cpu_count() or 1
    weight, x = torch.ones(4 * hidden, hidden), torch.ones(hidden, 64)
    products = Counter[int]()
    seconds: dict[int, float] = defaultdict(float)
    # In turns, so that what lasts a moment does not decide. All of the time counts, not the best of
    # it: a core that others use is free now and then.
    for threads in sorted({1, max(1, cores // 2), cores}) * ROUNDS:
        torch.set_num_threads(threads)
        torch.mm(weight, x)  # the first one wakes them
        start, took = clock(), 0.0
        while took < SLICE:
            torch.mm(weight, x)
            products[threads] += 1
            took = clock() - start
        seconds[threads] += took
    torch.set_num_threads(before)
    rates = {threads: count / seconds[threads] for threads, count in products.items()}
    return min(threads for threads, rate in rates.items() if rate >= NEAR * max(rates.values()))


def least_seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Least time of one call, of a few."""
    took = []
    for _ in range(TRIES):
        start = clock()
        call()
        took.append(clock() - start)
    return min(took)
