"""Together equals alone, token for token, where the decoder's arithmetic has its edges.

Lengths at, below and above every block boundary, prefixes shared and not, slots used again, caches
that shrink, neighbours that are still taking their prompt in. Sampled, so that a small difference
in logits shows in tokens; drawn with each sequence's own numbers, so that nothing else does.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from spar_lite.engines.base import Sampling
from spar_lite.model import Policy
from spar_lite.model.cache import BLOCK
from spar_lite.model.decoder import (
    PIGGYBACK_PREFILL,
    BatchDecoder,
    TokenSequence,
    attention_windows,
)
from spar_lite.recipe import Lora, Model
from tests.tiny import write_model

pytestmark = pytest.mark.tensors

HOT = Sampling(1.0)
MODELS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral, window": ("MistralConfig", {"sliding_window": 40}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 40, "layer_types": ["sliding_attention"] * 2},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    config, more = MODELS[request.param]
    folder: Path = tmp_path_factory.mktemp("edges")
    write_model(folder, getattr(transformers, config), **more)
    settings = Model(
        id=str(folder), device="cpu", quantization="none", threads=1, lora=Lora(r=4, alpha=8)
    )
    return Policy.load(settings, 0)


def tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(200), k=count)


def alone(policy: Policy, prompt: list[int], limit: int, seed: int) -> list[int]:
    """What a sequence says in a decoder of its own, its prompt computed in one piece."""
    return together(policy, [prompt], [limit], [seed], slots=1)[0]


def together(
    policy: Policy,
    prompts: list[list[int]],
    limits: list[int],
    seeds: list[int],
    slots: int,
    budget: int | None = None,
    prefill: int = 512,
) -> list[list[int]]:
    decoder = BatchDecoder(policy.inner, slots, policy.eos, prefill, budget)
    sequences = [
        TokenSequence(p, limit, HOT, seed)
        for p, limit, seed in zip(prompts, limits, seeds, strict=True)
    ]
    for sequence in sequences:
        decoder.add(sequence)
    while not decoder.idle:
        decoder.step()
    return [s.reply for s in sequences]


def assert_alike(
    policy: Policy, prompts: list[list[int]], limits: list[int], **settings: int | None
) -> None:
    seeds = list(range(len(prompts)))
    found = together(policy, prompts, limits, seeds, **settings)  # type: ignore[arg-type]
    for n, reply in enumerate(found):
        wanted = alone(policy, prompts[n], limits[n], n)
        assert reply == wanted, f"sequence {n}: a prompt of {len(prompts[n])}"


EDGES = [b + d for b in (BLOCK, 2 * BLOCK) for d in (-2, -1, 0, 1)]


@pytest.mark.parametrize("shared", [0, 1, PIGGYBACK_PREFILL + 1, 30, 50])
def test_a_prompt_that_fills_the_cache_exactly_keeps_its_last_token(
    policy: Policy, shared: int
) -> None:
    """Padding was written to the cache's last position, where its last token belongs (A1).

    It happens to a row that copies a head and has few tokens of its own, in one pass with a row
    that has many: both wait for the wave that computes their heads.
    """
    for edge in EDGES:
        head, other = tokens(shared, 1), tokens(PIGGYBACK_PREFILL + 1, 2)
        full = head + tokens(edge - shared, 3)
        many = other + tokens(edge - 2 - len(other), 4)
        prompts = [head + tokens(3, 5), other + tokens(3, 6), full, many, tokens(20, 7)]
        assert_alike(policy, prompts, [6, 3, 6, 4, 4], slots=5)


def prompts_of_all_lengths(seed: int, count: int) -> Iterator[list[int]]:
    """Lengths at every edge and between; half of them share a head, at every edge too."""
    chance = random.Random(seed)
    heads = [tokens(n, n) for n in (5, 33, *EDGES)]
    for n in range(count):
        length = chance.choice([*EDGES, 3, 17, 40, 90])
        head = chance.choice(heads) if n % 2 else []
        yield (head[: length - 1] + tokens(length, 1000 * seed + n))[:length]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("slots", "rows"), [(3, None), (8, None), (8, 3)])
def test_many_lengths_in_few_slots(policy: Policy, seed: int, slots: int, rows: int | None) -> None:
    """``rows``: the budget holds so many of the longest, so that sequences are put back."""
    prompts = list(prompts_of_all_lengths(seed, 14))
    limits = [1 + (7 * n + seed) % 19 for n in range(len(prompts))]
    position = BatchDecoder(policy.inner, 1, (), 64).cache.position_bytes
    budget = None if rows is None else rows * 3 * BLOCK * position
    assert_alike(policy, prompts, limits, slots=slots, budget=budget, prefill=100)


def test_a_prompt_that_is_still_being_taken_in_is_no_donor_yet(policy: Policy) -> None:
    """A slot's sequence moves into a gap with some of its prompt still missing."""
    head = tokens(40, 1)
    first = head + tokens(4, 2)  # in the cache, so that the next ones need few tokens of their own
    trickling = head + tokens(PIGGYBACK_PREFILL, 3)
    prompts = [first, tokens(30, 4), trickling, trickling + tokens(20, 5), trickling + tokens(3, 6)]
    for limits in itertools.product((1, 2, 3), repeat=2):
        assert_alike(policy, prompts, [9, limits[0], 9, 5, limits[1]], slots=3)


def test_halving_in_mid_run_loses_nothing(policy: Policy) -> None:
    prompts = list(prompts_of_all_lengths(7, 9))
    decoder = BatchDecoder(policy.inner, 8, policy.eos, 100)
    sequences = [TokenSequence(p, 12, HOT, n) for n, p in enumerate(prompts)]
    for sequence in sequences:
        decoder.add(sequence)
    for step in itertools.count():
        if decoder.idle:
            break
        decoder.step()
        if step in (2, 5):
            decoder.shrink()
    for n, sequence in enumerate(sequences):
        assert sequence.reply == alone(policy, prompts[n], 12, n)


def test_several_end_tokens_each_end_a_reply(policy: Policy) -> None:
    prompt = tokens(20, 9)
    free = alone(policy, prompt, 30, 0)
    for end in (free[4], free[11]):
        decoder = BatchDecoder(policy.inner, 2, [*policy.eos, 0, end], 64)
        sequence = TokenSequence(prompt, 30, HOT, 0)
        decoder.add(sequence)
        while not decoder.idle:
            decoder.step()
        ends = [n for n, token in enumerate(free) if token in (end, 0, *policy.eos)]
        assert sequence.finished
        assert sequence.reply == free[: ends[0]]


def test_windows_come_from_the_config() -> None:
    class Config:
        sliding_window: int | None = None
        layer_types: list[str] | None = None

    config = Config()
    assert attention_windows(config) == {"full_attention": None}
    config.sliding_window = 8
    assert attention_windows(config) == {"sliding_attention": 8}
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert attention_windows(config) == {"full_attention": None, "sliding_attention": 8}
    config.layer_types = ["full_attention"] * 2  # Qwen2.5: a window that no layer uses
    assert attention_windows(config) == {"full_attention": None}
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        attention_windows(config)


def test_logits_that_are_not_finite_are_an_error(policy: Policy) -> None:
    from spar_lite.errors import EngineError
    from spar_lite.model.draw import refuse_not_finite

    fine = torch.zeros(3, 5)
    fine[1, 2] = -torch.inf  # a vocabulary's masked place
    refuse_not_finite(fine)
    for bad in (torch.nan, torch.inf):
        broken = fine.clone()
        broken[1, 3] = bad
        with pytest.raises(EngineError, match="NaN or infinite for 1 of 3 sequences"):
            refuse_not_finite(broken)


def test_a_mask_that_is_added_says_the_same(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA the decoder makes of its booleans, once a step, what SDPA would in every layer."""
    prompts = [tokens(n, n) for n in (3, 20, 70, 9)]
    wanted = together(policy, prompts, [12] * 4, [1, 2, 3, 4], slots=3)
    make, seen = BatchDecoder._mask, []

    def added(decoder: BatchDecoder, *args: Any) -> Any:
        decoder.adds_mask = True
        masks = make(decoder, *args)
        seen.extend(masks.values() if isinstance(masks, dict) else [masks])
        return masks

    monkeypatch.setattr(BatchDecoder, "_mask", added)
    assert together(policy, prompts, [12] * 4, [1, 2, 3, 4], slots=3) == wanted
    assert {mask.dtype for mask in seen} == {torch.float32}
