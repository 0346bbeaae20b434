"""Which weights answer: a greedy reply with its log-probabilities, and the file that knows them.

A server says under which name it answers, not with which weights. So each model is asked the same
question, and what it said is kept in the run's ``server.json``: a name that answers as before did
not take the new adapter, and a base that answers otherwise is another model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spar_lite.records import Message
from spar_lite.store import json_text, read_json, write_text

QUESTION = (Message("user", "Name a colour, and say in one sentence where it is seen."),)
TOKENS = 24

NOISE = 1e-4
"""Nats by which the same weights may differ from one call to the next. Training moves them more."""

FIRST, ROUNDING = 3, 0.2
"""Nats by which another dtype or version may move the first tokens of a reply; in the end it may
go another way, but not before a quarter of it."""


@dataclass(frozen=True)
class Fingerprint:
    """A greedy reply: its text, and its tokens' log-probabilities where the server gives them."""

    text: str
    logprobs: tuple[float, ...] = ()

    def same(self, other: Fingerprint) -> bool:
        """Whether the same weights said both; text alone decides where that is all there is."""
        close = _differ(self.logprobs, other.logprobs) <= NOISE
        return self.text == other.text and close

    def like(self, other: Fingerprint) -> bool:
        """Whether one model may have said both, on another device or in another dtype."""
        if self.text == other.text:
            return True
        letters = zip(self.text, other.text, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters))
        begin = _differ(self.logprobs[:FIRST], other.logprobs[:FIRST])
        return 4 * shared >= len(self.text) and bool(self.logprobs) and begin <= ROUNDING


def _differ(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference; 0 where one side has none, as some servers give none."""
    return max((abs(a - b) for a, b in zip(ours, theirs, strict=False)), default=0.0)


class Fingerprints:
    """What is known of a run's models: by an adapter's digest, or "base".

    Args:
        path: their file; None: they are kept in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        found = read_json(path) if path else None
        self.known = {
            of: Fingerprint(said["text"], tuple(said["logprobs"]))
            for of, said in (found or {}).items()
        }

    def other(self, said: Fingerprint, of: str) -> str | None:
        """Whose this fingerprint is known to be, if it is another's than ``of``."""
        if of in self.known and said.same(self.known[of]):
            return None
        return next((name for name, known in self.known.items() if said.same(known)), None)

    def is_of(self, said: Fingerprint, of: str) -> bool:
        """Whether ``of`` is known to answer so."""
        return of in self.known and said.same(self.known[of])

    def note(self, of: str, said: Fingerprint) -> None:
        """Keep what ``of`` said, in place of an older one."""
        self.known[of] = said
        if self.path:
            plain = {
                name: {"text": known.text, "logprobs": list(known.logprobs)}
                for name, known in self.known.items()
            }
            write_text(self.path, json_text(plain, indent=1) + "\n")
