"""Which slot holds the most of a new sequence, found by a few comparisons.

In lexicographic order nobody has more in common with a sequence than its two neighbours, so two
look-ups by halving replace a comparison with every slot. Tokens are held as bytes, which compare
at the speed of memory: in their order, too, the nearest shares the most.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

SIZE = array("I").itemsize
"""Bytes a token."""


class Prefixes:
    """Token sequences by slot, those on offer also in order."""

    def __init__(self) -> None:
        self._held: dict[int, bytes] = {}
        self._order: list[tuple[bytes, int]] = []

    def put(self, slot: int, tokens: Sequence[int]) -> None:
        """Let a slot hold these tokens, whatever it held before."""
        self.withdraw(slot)
        self._held[slot] = key = array("I", tokens).tobytes()
        insort(self._order, (key, slot))

    def withdraw(self, slot: int) -> None:
        """Offer a slot no longer; it keeps what it holds until ``put``."""
        entry = self._held.get(slot, b""), slot
        place = bisect_left(self._order, entry)
        if self._order[place : place + 1] == [entry]:
            del self._order[place]

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return len(self._held.get(slot, b"")) // SIZE

    def cut(self, slots: int, length: int) -> None:
        """Keep the first ``slots`` only, and ``length`` tokens of each; all are on offer."""
        self._held = {s: key[: length * SIZE] for s, key in self._held.items() if s < slots}
        self._order = sorted((key, slot) for slot, key in self._held.items())

    def longest(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Tokens in common with the slot on offer that shares the most, and that slot.

        (0, -1) if there is none.
        """
        key = array("I", tokens).tobytes()
        place = bisect_left(self._order, (key,))
        near = self._order[max(0, place - 1) : place + 1]
        return max(((_common(key, other), slot) for other, slot in near), default=(0, -1))


def _common(a: bytes, b: bytes) -> int:
    """Length of the longest common prefix in tokens, by halving."""
    shortest = min(len(a), len(b)) // SIZE
    differ = bisect_left(range(1, shortest + 1), True, key=lambda n: a[: n * SIZE] != b[: n * SIZE])
    return differ
