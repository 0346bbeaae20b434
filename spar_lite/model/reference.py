"""Plain ``generate``: the engine's reference, its fallback, and the check of one by the other.

Knows transformers' ``generate`` and the decoder; nothing of requests in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spar_lite.engine import Sampling
from spar_lite.model.policy import Policy
from spar_lite.model.slots import Decoder, TokenSequence
from spar_lite.records import Message

CHECK_CHATS = (
    "Name a colour.",
    "Say hello to a friend in one short sentence.",
    "Name a colour of the sky.",
)
CHECK_TOKENS = 12
NEAR_TIE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest gap in logits at which two greedy tokens count as a tie, by dtype."""


def plain_generate(
    policy: Policy, prompts: Sequence[list[int]], limit: int, sampling: Sampling, seed: int = 0
) -> list[list[int]]:
    """The reference path: transformers' ``generate`` on a left-padded batch; new tokens only."""
    pad = policy.tokenizer.pad_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    options: dict[str, object] = {"do_sample": False}
    if sampling.temperature > 0:
        torch.manual_seed(seed)
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    with torch.no_grad():
        output = policy.inner.generate(
            input_ids=ids.to(policy.device),
            attention_mask=mask.to(policy.device),
            max_new_tokens=limit,
            eos_token_id=list(policy.eos),
            pad_token_id=pad,
            **options,
        )
    new: list[list[int]] = output[:, longest:].tolist()
    return new


def cut(reply: list[int], eos: Sequence[int], limit: int) -> tuple[list[int], bool]:
    """Cut a reply at its first end token or at ``limit``; say whether it ended by itself."""
    for place, token in enumerate(reply[:limit]):
        if token in eos:
            return reply[:place], True
    return reply[:limit], False


def self_check(policy: Policy, slots: int, merged: bool = False) -> str | None:
    """Compare the fast path with plain ``generate``, greedy; None if they agree, else the fault.

    The role is the policy's present one; ``merged``: the fast path uses fast weights, plain
    ``generate`` never does.

    Tokens must be equal up to a near tie: where they part, the reference's logits of both tokens
    must lie within ``NEAR_TIE``, since another batch shape may round the other way.
    """
    if not _full_attention(policy.inner.config.get_text_config()):
        # A window shorter than a long reply: no short check could find the difference.
        return "the model has layers without full attention"
    prompts = [policy.encode((Message("user", text),)) for text in CHECK_CHATS]
    policy.slow_down()
    sequences = [TokenSequence(p, CHECK_TOKENS, Sampling(), 0) for p in prompts]
    try:
        if merged:
            policy.speed_up()
        slots = min(slots, len(prompts))
        decoder = Decoder(policy.inner, slots, policy.eos, 64, head=policy.head)
        for sequence in sequences:
            decoder.add(sequence)
        while not decoder.idle:
            decoder.step()
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        # A model family whose attention does not fit the slot cache: the reference path serves it.
        return f"the fast path does not run ({type(error).__name__}: {str(error)[:120]})"
    finally:
        policy.slow_down()
    for chat, prompt, sequence in zip(CHECK_CHATS, prompts, sequences, strict=True):
        wanted, _ = cut(
            plain_generate(policy, [prompt], CHECK_TOKENS, Sampling())[0], policy.eos, CHECK_TOKENS
        )
        if not _same(policy, prompt, wanted, sequence.reply):
            return f"the fast path differs from plain generate after {chat!r}"
    return None


def _full_attention(config: Any) -> bool:
    """Whether every layer attends to the whole past."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def _same(policy: Policy, prompt: list[int], wanted: list[int], found: list[int]) -> bool:
    if wanted == found:
        return True
    end = policy.eos[0]
    place = next(
        (n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
        min(len(wanted), len(found)),
    )
    ids = torch.tensor([prompt + wanted[:place]], device=policy.device)
    with torch.no_grad():
        logits = policy.inner(input_ids=ids).logits[0, -1].float()
    a, b = ((tokens[place] if place < len(tokens) else end) for tokens in (wanted, found))
    return abs(float(logits[a] - logits[b])) <= NEAR_TIE.get(policy.inner.dtype, 1e-3)
