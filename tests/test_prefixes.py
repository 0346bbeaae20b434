"""Prefix donors: as many tokens copied as by comparing with every slot, in a few comparisons.

``best_of_all`` and ``choose_by_comparing`` are the definitions, and how it was done before.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from spar_lite.engines.base import Sampling
from spar_lite.model import Policy, prefixes
from spar_lite.model.cache import BLOCK
from spar_lite.model.decoder import SHARE_AT_LEAST, BatchDecoder, TokenSequence
from spar_lite.model.prefixes import Prefixes

pytestmark = pytest.mark.tensors

Held = dict[int, list[int]]


def common(a: list[int], b: list[int]) -> int:
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


def best_of_all(held: Held, tokens: list[int]) -> int:
    return max((common(tokens, other) for other in held.values()), default=0)


def sequences(chance: random.Random, count: int) -> list[list[int]]:
    """A family tree of token lists: each goes on from a piece of an earlier one.

    Few kinds of tokens, so that many agree by chance; some differ in one byte of a number only.
    """
    kinds = [0, 1, 255, 256, 257, 65536, 1 << 24, 128255]
    made: list[list[int]] = [[]]
    for _ in range(count):
        head = chance.choice(made)
        made.append(
            head[: chance.randint(0, len(head))] + chance.choices(kinds, k=chance.randint(0, 9))
        )
    return made


@pytest.mark.parametrize("seed", range(30))
def test_nobody_shares_more_than_the_one_that_is_found(seed: int) -> None:
    chance = random.Random(seed)
    found, held, offered = Prefixes(), Held(), Held()
    for tokens in sequences(chance, 200):
        match chance.randrange(8):
            case 0 if held:
                slot = chance.choice(list(held))
                found.withdraw(slot)
                offered.pop(slot, None)
            case 1:
                slots, length = chance.randint(1, 20), chance.randint(3, 40)
                found.cut(slots, length)
                held = {slot: kept[:length] for slot, kept in held.items() if slot < slots}
                offered = dict(held)
            case _:
                slot = chance.randrange(20)
                found.put(slot, tokens)
                held[slot] = offered[slot] = tokens
        for asked in (tokens, chance.choice(sequences(chance, 3)), [*tokens, 7]):
            shared, slot = found.longest(asked)
            assert shared == best_of_all(offered, asked)
            assert not shared or common(asked, offered[slot]) == shared
        assert {slot: found.length(slot) for slot in range(20)} == {
            slot: len(held.get(slot, [])) for slot in range(20)
        }


def choose_by_comparing(decoder: BatchDecoder, cached: Held) -> list[tuple[TokenSequence, int]]:
    """Whom to admit and how much each copies, by comparing everyone with everyone."""
    admission: list[tuple[TokenSequence, int]] = []
    first, waiting = len(decoder.active), list(decoder.waiting)
    free, later = decoder.slots - first, 0
    longest = max((len(s.tokens) for s in decoder.active), default=0)
    for sequence in waiting:
        row = first + len(admission)
        if len(admission) == free or later == 4 * free:
            break
        longest = max(longest, len(sequence.tokens) + min(sequence.left, BLOCK))
        if row >= max(1, decoder.cache.rows_at(longest)):
            break
        offered = {slot: kept for slot, kept in cached.items() if not first <= slot < row}
        shared = min(best_of_all(offered, sequence.tokens), len(sequence.tokens) - 1)
        companions = dict(enumerate(s.tokens for s, _ in admission))
        if best_of_all(companions, sequence.tokens) >= shared + SHARE_AT_LEAST:
            later += 1
        else:
            admission.append((sequence, shared))
    return admission


@pytest.mark.parametrize("seed", range(4))
def test_an_admission_is_the_one_of_comparing_with_every_slot(
    tiny_policy: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Through whole runs: prefixes shared by many, slots used again, a cache that is cut."""
    policy: Policy = tiny_policy()
    chance, cached = random.Random(seed), Held()
    position = BatchDecoder(policy.inner, 1, (), 64).cache.position_bytes
    budget = None if seed % 2 else 5 * 2 * BLOCK * position
    decoder = BatchDecoder(policy.inner, 6, policy.eos, 100, budget)
    put, cut, choose = Prefixes.put, Prefixes.cut, decoder._choose_admission

    def note(self: Prefixes, slot: int, tokens: list[int]) -> None:
        put(self, slot, tokens)
        if self is decoder.cached:
            cached[slot] = list(tokens)

    def shorten(self: Prefixes, slots: int, length: int) -> None:
        cut(self, slots, length)
        for slot in list(cached):
            cached[slot] = cached[slot][:length]
            if slot >= slots:
                del cached[slot]

    def compare() -> list[tuple[TokenSequence, int, int]]:
        wanted = choose_by_comparing(decoder, cached)
        found = choose()
        assert [(s, shared) for s, _, shared in found] == wanted
        copied.extend(shared for _, shared in wanted)
        return found

    copied: list[int] = []
    monkeypatch.setattr(Prefixes, "put", note)
    monkeypatch.setattr(Prefixes, "cut", shorten)
    monkeypatch.setattr(decoder, "_choose_admission", compare)
    heads = [chance.choices(range(200), k=n) for n in (3, 20, 62, 90)]
    for n in range(40):
        prompt = chance.choice(heads)[: chance.randint(1, 90)] + chance.choices(range(200), k=n % 7)
        decoder.add(TokenSequence(prompt, 1 + n % 11, Sampling(1.0), n))
    while not decoder.idle:
        decoder.step()
    assert len(copied) >= 40 and max(copied) > 50


def test_a_look_up_compares_with_two_whatever_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, found, calls = random.Random(0), Prefixes(), []
    made = sequences(chance, 512)
    for slot in range(256):
        found.put(slot, made[slot])
    common_of = prefixes._common
    monkeypatch.setattr(prefixes, "_common", lambda a, b: calls.append(1) or common_of(a, b))
    for tokens in made[256:]:
        found.longest(tokens)
    assert 0 < len(calls) <= 2 * len(made[256:])
