"""From logits to tokens: greedy, or by inversion with each sequence's own random numbers.

A draw does not depend on what else is in the batch, so a resumed run gives the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from spar_lite.engines.base import Sampling
from spar_lite.errors import EngineError


class Drawer(Protocol):
    """What a draw asks of a sequence: how to draw, and its next random number."""

    sampling: Sampling
    random: random.Random


def draw(logits: Tensor, sequences: Sequence[Drawer]) -> list[int]:
    """Draw one token a row; logits (batch, vocabulary); one random number a token.

    Raises:
        EngineError: a row holds NaN or infinity, from which any token could come.
    """
    logits = logits.float()
    refuse_not_finite(logits)
    chosen = [0] * len(sequences)
    groups: dict[Sampling, list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault(sequence.sampling, []).append(row)
    for sampling, rows in groups.items():
        some = logits if len(rows) == len(sequences) else logits[rows]
        if sampling.temperature > 0:
            uniform = torch.tensor([sequences[row].random.random() for row in rows])
            tokens = sample(some / sampling.temperature, sampling, uniform.to(logits.device))
        else:
            tokens = some.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            chosen[row] = token
    return chosen


def refuse_not_finite(logits: Tensor) -> None:
    """Raise EngineError unless every row (batch, vocabulary) has a finite maximum.

    A maximum passes NaN and +inf on; -inf in places is how a vocabulary is masked.
    """
    bad = int((~logits.amax(-1).isfinite()).sum())
    if bad:
        raise EngineError(
            f"the model's logits are NaN or infinite for {bad} of {len(logits)} sequences. Is it "
            "the adapter (look at the loss of its last training), the model, or its dtype (float16 "
            "overflows)? spar-lite doctor RECIPE checks the model with fresh adapters."
        )


def sample(scores: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Draw by inversion from softmax(scores) cut to top_k and the nucleus top_p.

    scores (batch, vocabulary), uniform (batch,) in [0, 1); returns (batch,). The nucleus is exact:
    it is looked for among the likeliest 256 tokens, and a row is sorted only where those hold too
    little of its mass: sorting 64 rows of 49,152 takes twice as long as a small model's step.
    """
    mass = torch.softmax(scores, -1)
    if not sampling.top_k and sampling.top_p == 1:
        return _invert(mass, uniform)
    likeliest, tokens = mass.topk(min(sampling.top_k or 256, mass.shape[-1]))
    drawn = _draw_ranked(likeliest, tokens, sampling, uniform)
    if not sampling.top_k:
        short = (likeliest.sum(-1) < sampling.top_p).nonzero().flatten()
        if len(short):
            ranked = mass[short].sort(descending=True)
            drawn[short] = _draw_ranked(*ranked, sampling, uniform[short])
    return drawn


def _draw_ranked(
    probabilities: Tensor, tokens: Tensor, sampling: Sampling, uniform: Tensor
) -> Tensor:
    """Draw from the nucleus of a row's likeliest tokens, likeliest first."""
    if sampling.top_k:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    index = _invert(probabilities.masked_fill(before >= sampling.top_p, 0.0), uniform)
    return tokens.gather(-1, index[:, None]).squeeze(-1)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The index at which the cumulated probability passes ``uniform`` of the total."""
    # Rounded to 1.0, the largest random numbers would pass every token, those cut off too.
    cumulated = probabilities.cumsum(-1)
    target = uniform[:, None].clamp(max=1 - 2**-24) * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target.to(cumulated.dtype), right=True)
    return index.clamp(max=probabilities.shape[-1] - 1).squeeze(-1)
