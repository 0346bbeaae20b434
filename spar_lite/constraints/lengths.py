"""Constraints on how many words and sentences there are.

What counts as one is defined in `text.py`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint, require
from .text import (
    DANGLING,
    FILLERS,
    WORD,
    closed,
    enumerated,
    head,
    number,
    quote,
    sentence_spans,
    sentences,
    tail,
    toss,
    with_sentence,
    words,
)
from .values import VALUES, Values


@dataclass(frozen=True)
class WordCount(Constraint):
    """At least `low` and at most `high` words; either may be None, not both."""

    low: int | None
    high: int | None
    kind = "word_count"
    claims = frozenset({"length"})
    roomy = True
    named = "Has {_range}"
    asked = (
        "Use {_range}.",
        "Your answer must have {_range}.",
        "Write {_range}.",
    )

    def __post_init__(self) -> None:
        low, high = self.low, self.high
        require(low is not None or high is not None, f"{self.kind}: give low or high or both")
        require(low is None or low >= 1, f"{self.kind}: low must be at least 1, found {low}")
        require(high is None or high >= 1, f"{self.kind}: high must be at least 1, found {high}")
        fine = low is None or high is None or low <= high
        require(fine, f"{self.kind}: low {low} is above high {high}")

    @property
    def _range(self) -> str:
        if self.high is None:
            return f"at least {number(self.low or 0, 'word')}"
        if self.low is None:
            return f"at most {number(self.high, 'word')}"
        return f"between {self.low} and {number(self.high, 'word')}"

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "WordCount":
        low = rng.choice((5, 8, 10, 12, 15, 20))
        high = low + rng.choice((5, 8, 10, 15))
        return rng.choice((cls(low, None), cls(None, high), cls(low, high)))

    def least_words(self) -> int:
        return self.low or 0

    def _passes(self, text: str) -> bool:
        found = len(words(text))
        return (self.low or 0) <= found and (self.high is None or found <= self.high)

    def _evidence(self, text: str) -> str:
        ends = f"from {quote(head(text, 1))} to {quote(tail(text, 1).rstrip('.!?'))}"
        return f"It has {number(len(words(text)), 'word')} {ends}."

    def _mends(self, text: str) -> Iterator[str]:
        if self.high is None or len(words(text)) <= self.high:
            return
        spans = sentence_spans(text)
        left, end = self.high, 0
        for begin, stop in spans:
            left -= len(words(text[begin:stop]))
            if left < 0:
                break
            end = stop
        yield text[:end]
        yield _cut(text, self.high)
        # The end of the answer may be wanted by another constraint.
        if len(spans) > 2:
            yield f"{text[: spans[0][1]]} {text[spans[-1][0] :]}"

    def _spoils(self, text: str) -> Iterator[str]:
        if self.low is not None and self.low > 2:
            yield _cut(text, self.low - 1)
        gap = 1000 if self.high is None else self.high - len(words(text))
        if gap < 40:
            longer, turn = closed(text), toss(text, len(FILLERS))
            while len(words(longer)) <= (self.high or 0):
                longer, turn = f"{longer} {FILLERS[turn % len(FILLERS)]}", turn + 1
            yield longer


def _cut(text: str, count: int) -> str:
    """The first `count` words, without a loose "and" or "the" at the end."""
    found = list(WORD.finditer(text))[:count]
    while len(found) > 2 and found[-1].group().lower() in DANGLING:
        found.pop()
    return closed(text[: found[-1].end()]) if found else text


@dataclass(frozen=True)
class SentenceCount(Constraint):
    """Exactly `count` sentences; a line end also ends a sentence."""

    count: int
    kind = "sentence_count"
    claims = frozenset({"layout"})
    roomy = True
    named = "Has exactly {count:sentence}"
    asked = (
        "Write exactly {count:sentence}.",
        "Your answer must have exactly {count:sentence}.",
        "Answer in exactly {count:sentence}.",
    )

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "SentenceCount":
        return cls(rng.randint(1, 4))

    def least_words(self) -> int:
        return 3 * self.count

    def _passes(self, text: str) -> bool:
        return len(sentence_spans(text)) == self.count

    def _evidence(self, text: str) -> str:
        return f"Its sentences: {enumerated(sentences(text), 'sentence')}."

    def _mends(self, text: str) -> Iterator[str]:
        spans = sentence_spans(text)
        if len(spans) > self.count:
            yield text[: spans[self.count - 1][1]]
            if self.count > 1:
                yield f"{text[: spans[self.count - 2][1]]} {text[spans[-1][0] :]}"

    def _spoils(self, text: str) -> Iterator[str]:
        spans = sentence_spans(text)
        if self.count > 1 and toss(text, 2):
            yield text[: spans[-2][1]]
        yield f"{closed(text)} {FILLERS[toss(text, len(FILLERS))]}"
        yield with_sentence(text, FILLERS[toss(text, len(FILLERS))])
