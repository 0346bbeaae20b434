"""What the engine is held against: plain ``generate``, one at a time and in static batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from spar_lite.app.bench.workloads import SAMPLING
from spar_lite.engines.base import Request
from spar_lite.model import Policy

NAIVE_SAMPLE = 16
"""Requests that are also answered one at a time: that is slow, and the rate is steady."""

STATIC_SAMPLE = 6
"""Batches that are also answered statically, for the same reason."""


def one_at_a_time(policy: Policy, requests: Sequence[Request]) -> dict[str, Any]:
    """Some of the requests, evenly chosen by length, one ``generate`` call each."""
    ordered = sorted(requests, key=lambda r: r.max_new_tokens)
    every = max(1, len(ordered) // NAIVE_SAMPLE)
    return _generate(policy, [[r] for r in ordered[every // 2 :: every]])


def static_batches(policy: Policy, requests: Sequence[Request], size: int) -> dict[str, Any]:
    """Batches sorted by the reply's length, which no real batch knows before; evenly chosen."""
    ordered = sorted(requests, key=lambda r: r.max_new_tokens)
    batches = [ordered[n : n + size] for n in range(0, len(ordered), size)]
    every = max(1, len(batches) // STATIC_SAMPLE)
    return {"batch": size, **_generate(policy, batches[every // 2 :: every])}


def _generate(policy: Policy, batches: Sequence[Sequence[Request]]) -> dict[str, Any]:
    """Plain ``generate``, batch by batch; a batch runs until its longest reply is done."""
    tokens = 0
    start = time.perf_counter()
    for batch in batches:
        prompts = [policy.encode(r.messages) for r in batch]
        longest = max(map(len, prompts))
        pad = policy.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=policy.device)
        mask = torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=policy.device
        )
        limit = max(r.max_new_tokens for r in batch)
        with torch.no_grad():
            policy.inner.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=limit,
                min_new_tokens=limit,
                pad_token_id=pad,
                do_sample=True,
                temperature=SAMPLING.temperature,
                top_k=0,
            )
        tokens += sum(r.max_new_tokens for r in batch)
    seconds = time.perf_counter() - start
    return {
        "requests": sum(map(len, batches)),
        "tokens": tokens,
        "seconds": seconds,
        "finished_tokens_per_s": tokens / seconds,
    }
