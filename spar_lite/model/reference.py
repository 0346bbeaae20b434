"""Plain transformers: the engine's reference and fallback, and the fast path's check by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from spar_lite.engines.base import Sampling
from spar_lite.errors import SparError
from spar_lite.footprint import PREFILL_TOKENS
from spar_lite.model.decoder import (
    BatchDecoder,
    TokenSequence,
    attention_windows,
)
from spar_lite.model.draw import refuse_not_finite
from spar_lite.model.machine import give_back, is_out_of_memory
from spar_lite.model.merged import Weights
from spar_lite.model.policy import Policy
from spar_lite.records import Message

CHECK_CHATS = (
    "Name a colour.",
    "Say hello to a friend in one short sentence.",
    "Name a colour of the sky.",
)
CHECK_STEPS = 3
"""Decoding steps that are compared, after the prompt's own."""

CHECK_TOKENS = {"cpu": 512, "cuda": 4096}
"""Prompt tokens that one check computes, and the length of its longest sequence, at most."""

TOLERANCE = {
    torch.float32: (0.005, 0.01),
    torch.bfloat16: (0.15, 0.4),
    torch.float16: (0.05, 0.15),
}
"""Distances between logits that count as rounding, (the median, the largest): the root mean square
of the difference, as a share of the logits' standard deviation. SmolLM2-135M in bf16: median 0.03
to 0.04, largest 0.1 to 0.2; a mask, scale or cap left out: 0.4 to 15 everywhere (LOG.md)."""


def plain_generate(
    policy: Policy, prompts: Sequence[list[int]], limit: int, sampling: Sampling, seed: int = 0
) -> list[list[int]]:
    """The reference path: transformers' ``generate`` on a left-padded batch; new tokens only.

    Raises:
        EngineError: the logits are not finite.
    """
    pad = policy.tokenizer.pad_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        torch.manual_seed(seed)
        options = {"do_sample": True, **dataclasses.asdict(sampling)}
    with torch.no_grad():
        output = policy.inner.generate(
            input_ids=ids.to(policy.device),
            attention_mask=mask.to(policy.device),
            max_new_tokens=limit,
            eos_token_id=list(policy.eos),
            pad_token_id=pad,
            logits_processor=LogitsProcessorList([_finite]),
            **options,
        )
    new: list[list[int]] = output[:, longest:].tolist()
    return new


def _finite(_: Tensor, logits: Tensor) -> Tensor:
    """A logits processor that changes nothing and lets no NaN pass."""
    refuse_not_finite(logits)
    return logits


def cut(reply: list[int], eos: Sequence[int], limit: int) -> tuple[list[int], bool]:
    """Cut a reply at its first end token or at ``limit``; say whether it ended by itself."""
    for place, token in enumerate(reply[:limit]):
        if token in eos:
            return reply[:place], True
    return reply[:limit], False


# --- The self-check -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """What a self-check found: ``fault`` or None, and in words what was compared."""

    fault: str | None
    proved: str = ""


def self_check(
    policy: Policy,
    slots: int,
    weights: Weights = "separate",
    prompts: Sequence[list[int]] = (),
    new_tokens: int = CHECK_STEPS,
    budget: int | None = None,
) -> Check:
    """Compare the fast path's logits with those of plain forward passes, for the present role.

    Teacher-forced: both are given the same tokens, so that one early difference does not hide what
    follows, and no near tie decides. Two rounds: as many sequences as ``slots``, of prompts from
    the shortest to the longest; then one as long as a reply of ``new_tokens`` makes it, beside the
    shortest.

    Args:
        policy: in the role to check; plain forward passes never use merged weights.
        slots: sequences at a time.
        weights: how the fast path computes its products.
        prompts: token ids of what will be asked, some short chats if there are none.
        new_tokens: longest reply that will be asked for.
        budget: bytes that keys and values may take; None for no limit.

    Raises:
        EngineError: the model's own logits are not finite.
    """
    try:
        windows = attention_windows(policy.inner.config.get_text_config()).values()
    except ValueError as error:
        return Check(f"the fast path does not serve it ({error})")
    # 1. The two rounds. A window shows only in sequences that are longer.
    most = CHECK_TOKENS[policy.device.type]
    known = [*prompts] or [policy.encode((Message("user", text),)) for text in CHECK_CHATS]
    known = sorted((prompt[: policy.positions - CHECK_STEPS] for prompt in known), key=len)
    wide = _spread(known, most)
    rounds = [[wide[n % len(wide)] for n in range(slots)]]
    reach = max(most, *(w + 2 * CHECK_STEPS for w in windows if w is not None), 0)
    longest = min(len(known[-1]) + new_tokens, policy.positions, reach)
    if longest > len(wide[-1]) + CHECK_STEPS:
        tokens = known[-1] * (1 + longest // len(known[-1]))
        rounds.append([tokens[: longest - CHECK_STEPS], known[0]])
    # 2. Both paths.
    try:
        gaps = _compare(policy, weights, rounds, budget)
    except SparError:
        raise
    except Exception as error:  # noqa: BLE001 - a model family that does not fit the slot cache
        if not is_out_of_memory(error) or slots == 1:
            return Check(f"the fast path does not run ({type(error).__name__}: {str(error)[:120]})")
        gaps = []
    if not gaps:  # out of memory, and what had filled it is gone by now
        give_back(policy.device)
        return self_check(policy, slots // 2, weights, prompts, new_tokens, budget)
    # 3. The verdict is the worse round's: a fault of long sequences alone may be one in many.
    typical, largest = (max(float(of(gap)) for gap in gaps) for of in (Tensor.median, Tensor.max))
    shares = f"{100 * typical:.2g} % of their spread, {100 * largest:.2g} % at most"
    limits = TOLERANCE.get(policy.inner.dtype, TOLERANCE[torch.float32])
    if not (typical <= limits[0] and largest <= limits[1]):
        return Check(f"the fast path differs from plain forward passes: logits are off by {shares}")
    lengths = [len(p) + CHECK_STEPS for asked in rounds for p in asked]
    return Check(
        None,
        f"fast path checked, {slots} at a time, {min(lengths)} to {max(lengths)} tokens long: "
        f"logits are those of plain forward passes within {shares}",
    )


def _spread(prompts: Sequence[list[int]], most: int) -> list[list[int]]:
    """Up to eight of some prompts, sorted by length, and no more tokens than ``most`` in all."""
    for count in range(min(8, len(prompts)), 1, -1):
        some = [prompts[n * (len(prompts) - 1) // (count - 1)] for n in range(count)]
        if sum(map(len, some)) <= most:
            return some
    return [prompts[-1][:most]]


def _compare(
    policy: Policy, weights: Weights, rounds: list[list[list[int]]], budget: int | None
) -> list[Tensor]:
    """Each round's distances between the logits before every token of every sequence.

    Infinite where one is NaN, which no comparison would notice. Merged weights are gone afterwards,
    whatever came.
    """
    policy.slow_down()
    # 1. What plain forward passes say: for each prompt the tokens that follow it, and the logits
    # (CHECK_STEPS + 1, vocabulary) before each.
    forced = {}
    for prompt in {tuple(chat) for asked in rounds for chat in asked}:
        script = (prompt * (1 + CHECK_STEPS // len(prompt)))[:CHECK_STEPS]
        ids = torch.tensor([prompt + script], device=policy.device)
        with torch.no_grad():
            output = policy.inner(input_ids=ids, use_cache=False, logits_to_keep=CHECK_STEPS + 1)
        logits = output.logits[0, -CHECK_STEPS - 1 :].float()
        refuse_not_finite(logits)
        forced[prompt] = (*script, 0), logits

    # 2. The decoder, going on with those tokens.
    def force(logits: Tensor, sequences: Sequence[TokenSequence]) -> list[int]:
        tokens = []
        for sequence, found in zip(sequences, logits, strict=True):
            script, wanted = forced[tuple(sequence.prompt)]
            place = len(sequence.reply)
            off = (found.float() - wanted[place]).square().mean().sqrt() / wanted[place].std()
            gaps[-1].append(off.nan_to_num(nan=torch.inf))
            tokens.append(script[place])
        return tokens

    gaps: list[list[Tensor]] = []
    prefill = PREFILL_TOKENS[policy.device.type]
    try:
        policy.speed_up(weights)
        for asked in rounds:
            gaps.append([])
            decoder = BatchDecoder(policy.inner, len(asked), (), prefill, budget, force)
            for chat in asked:
                decoder.add(TokenSequence(chat, CHECK_STEPS + 1, Sampling(), 0))
            while not decoder.idle:
                decoder.step()
    finally:
        policy.slow_down()
    return [torch.stack(found) for found in gaps]
