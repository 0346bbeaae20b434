"""The machine's limits: bandwidth and arithmetic, and what a decoding step needs of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from spar_lite.model import Policy
from spar_lite.model.cache import bytes_per_position


def roofline(policy: Policy, ours: dict[str, Any]) -> dict[str, Any]:
    """The least time that a mean decoding step could take on this machine, and our share of it.

    bytes: all weights as they are stored (once), plus the keys and values of the running rows, over
    the measured bandwidth; operations: two a parameter and row, over the measured rate of a large
    product. The larger of both bounds the step.
    """
    rows = ours["occupancy"] * ours["slots"]
    length = (ours["prompt_tokens"] + ours["completion_tokens"] / 2) / max(1, ours["requests"])
    config = policy.inner.config.get_text_config()
    itemsize = policy.inner.dtype.itemsize
    merged = ours["merged_weights"]
    weights = sum(
        _read_bytes(p, itemsize, merged)
        for n, p in policy.inner.named_parameters()
        if "embed_tokens" not in n and not ("lora_" in n and (merged or ".refiner." not in n))
    )
    if config.tie_word_embeddings:  # the head reads the embedding's weights
        weights += config.vocab_size * config.hidden_size * itemsize
    moved = weights + rows * length * bytes_per_position(config, itemsize)
    products = config.vocab_size * config.hidden_size + sum(
        m.in_features * m.out_features
        for name, m in policy.inner.named_modules()
        if name.endswith("base_layer")
    )
    bandwidth, arithmetic = _bandwidth(policy.device), _arithmetic(policy)
    seconds = {"bytes": moved / bandwidth, "operations": 2 * products * rows / arithmetic}
    bound = max(seconds, key=lambda key: seconds[key])
    return {
        "bytes_per_step": moved,
        "operations_per_step": 2 * products * rows,
        "bytes_per_s": bandwidth,
        "operations_per_s": arithmetic,
        "bound": bound,
        "bytes_share": seconds["bytes"] / ours["seconds_per_step"],
        "share": seconds[bound] / ours["seconds_per_step"],
    }


def _read_bytes(parameter: Any, itemsize: int, merged: bool) -> int:
    """Bytes of one parameter that a step reads; two 4-bit weights share a byte."""
    packed = parameter.dtype == torch.uint8
    return int(parameter.numel() * (2 * itemsize if packed and merged else parameter.itemsize))


def _bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum over far more than any cache reads."""
    numbers = torch.ones((1 << 30 if device.type == "cuda" else 256 << 20) // 4, device=device)
    return float(numbers.numel()) * 4 / _best(device, lambda: numbers.sum())


def _arithmetic(policy: Policy) -> float:
    """Operations a second of a large matrix product in the model's dtype."""
    cuda = policy.device.type == "cuda"
    size = 8192 if cuda else 1024
    a = torch.ones(size, size, dtype=policy.inner.dtype, device=policy.device)
    return 2.0 * size**3 / _best(policy.device, lambda: a @ a)


def _best(device: torch.device, call: Callable[[], Any], tries: int = 7) -> float:
    took = []
    for _ in range(tries):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return min(took)
