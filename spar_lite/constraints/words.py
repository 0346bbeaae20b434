"""Constraints on words: include, leave out, repeat one; and on how many there are.

A keyword is matched as a whole word, capitals aside: "River's" and "river-bank" hold "river",
"rivers" does not.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .base import Constraint
from .text import (
    DANGLING,
    FILLERS,
    WORD,
    around,
    capitalised,
    closed,
    enumerated,
    head,
    number,
    quote,
    sentence_spans,
    spliced,
    tail,
    toss,
    where,
    words,
)
from .values import VALUES, Values

# How a noun joins a sentence that was not about it.
_JOINTS = (
    "near the {word}", "like a {word}", "by the {word}", "beside a {word}", "with a {word}",
    "just like the {word}", "far from the {word}", "without a {word}", "next to the {word}",
    "much like a {word}",
)  # fmt: skip
_DETERMINER = re.compile(
    r"\b(the|my|your|our|their|his|her|its|some|many|an?)"
    r"(?= (?!most|more|very|first|last|only|same|many|few)[a-z]{3,})"
)
# More words left out, or put in, would be no minimal edit.
_FEW = 20
_MOST_MISSING = 3


def _swapped(text: str, found: Sequence[re.Match[str]], new: str) -> str:
    """The text with another word for these matches, with the capitals of what it replaces."""
    for match in reversed(found):
        old = match.group()
        dressed = capitalised(new) if old[0].isupper() else new
        if old.isupper() and len(old) > 1:
            dressed = new.upper()
        text = text[: match.start()] + dressed + text[match.end() :]
    return text


def _without(text: str, found: Sequence[re.Match[str]]) -> str:
    """The text without these matches; a capital moves on to the next word."""
    for match in reversed(found):
        before, after = text[: match.start()], text[match.end() :]
        if match.group()[:1].isupper():
            text = before + capitalised(after.lstrip(" ,"))
        else:
            text = before.rstrip(" ") + after if before.strip() else after.lstrip()
    return text.strip()


@dataclass(frozen=True)
class Keyword(Constraint):
    """A word that counts wherever it stands; base of the kinds below."""

    word: str

    def _hits(self, text: str) -> list[re.Match[str]]:
        pattern = rf"(?<![^\W_]){re.escape(self.word)}(?![^\W_])"
        return list(re.finditer(pattern, text, re.IGNORECASE))

    def _look(self, text: str) -> tuple[bool, str]:
        found = self._hits(text)
        place = where(text, found[0].span() if found else None)
        return bool(found), f'Where it says "{self.word}": {place}.'

    def _with_word(self, text: str, turn: int = 0) -> Iterator[str]:
        """The text with the word once more, where it reads as if it had been meant.

        An adjective goes before a noun; a noun joins the end of a sentence, the first one if the
        end of the answer may be spoken for.
        """
        places = [] if self.word in VALUES.nouns else list(_DETERMINER.finditer(text))
        if places:
            found = places[(toss(text, len(places)) + turn) % len(places)]
            article = found.group()
            if article in ("a", "an"):
                article = "an" if self.word[0] in "aeiou" else "a"
            yield f"{text[: found.start()]}{article} {self.word}{text[found.end() :]}"
        joint = _JOINTS[(toss(text + self.word, len(_JOINTS)) + turn) % len(_JOINTS)]
        clause = joint.format(word=self.word)
        spans = sentence_spans(text) or [(0, len(text))]
        begin, end = spans[turn % len(spans)]
        yield text[:begin] + spliced(text[begin:end], clause) + text[end:]
        yield spliced(text, clause)

    def _spoils(self, text: str) -> Iterator[str]:
        """The text with the word, but for those that may stay, changed to another or left out."""
        found = self._hits(text)[getattr(self, "count", 1) - 1 :]
        for turn in range(3):
            new = VALUES.swap(self.word, toss(text, 97) + turn)
            if new is not None:
                yield _swapped(text, found, new)
        if len(found) <= _FEW:
            yield _without(text, found)


class KeywordInclude(Keyword):
    drawn = ("keywords",)
    required = "{word}"
    named = 'Uses the word "{word}"'
    asked = (
        'Use the word "{word}".',
        'Include the word "{word}" in your answer.',
        'Your answer must contain the word "{word}".',
    )

    def _mends(self, text: str) -> Iterator[str]:
        yield from self._with_word(text)


class KeywordExclude(Keyword):
    drawn = ("avoided",)
    named = 'Does not use the word "{word}"'
    asked = (
        'Do not use the word "{word}".',
        'Avoid the word "{word}".',
        'Your answer must not contain the word "{word}".',
    )

    def _look(self, text: str) -> tuple[bool, str]:
        held, evidence = super()._look(text)
        return not held, evidence

    def _mends(self, text: str) -> Iterator[str]:
        found = self._hits(text)
        rest = _without(text, found) if len(found) <= _FEW else ""
        if WORD.search(rest):
            yield rest

    def _spoils(self, text: str) -> Iterator[str]:
        adverb = self.word in VALUES.avoid_adverbs
        anchor = r"\b(?:is|are|was|were)\b" if adverb else r"\b(?:[Aa]|[Tt]he)\b"
        place = re.search(anchor + r"(?= [a-z])", text)
        if place:
            yield f"{text[: place.end()]} {self.word}{text[place.end() :]}"
        yield spliced(text, f"and {self.word} so" if adverb else f"and a {self.word} one")


@dataclass(frozen=True)
class KeywordFrequency(Keyword):
    count: int
    roomy = True
    drawn = ("keywords", (2, 3))
    required = "{word}"
    least = 3
    named = 'Uses "{word}" at least {count:time}'
    asked = (
        'Use the word "{word}" at least {count:time}.',
        'The word "{word}" must appear {count:time} or more.',
        'Repeat the word "{word}" so that it occurs at least {count:time}.',
    )

    def _look(self, text: str) -> tuple[bool, str]:
        found = [around(text, match.span()) for match in self._hits(text)]
        shown = enumerated(found, "time", whole=True)
        return len(found) >= self.count, f'Where it says "{self.word}": {shown}.'

    def _mends(self, text: str) -> Iterator[str]:
        missing = self.count - len(self._hits(text))
        if missing <= _MOST_MISSING:
            for turn in range(missing):
                text = next(self._with_word(text, turn))
            yield text


@dataclass(frozen=True)
class WordCount(Constraint):
    """At least `low` and at most `high` words; either may be None, not both."""

    low: int | None
    high: int | None
    claims = frozenset({"length"})
    roomy = True
    named = "Has {_range}"
    asked = ("Use {_range}.", "Your answer must have {_range}.", "Write {_range}.")

    def __post_init__(self) -> None:
        low, high = self.low, self.high
        self._require(low is not None or high is not None, "give low or high or both")
        super().__post_init__()
        fine = low is None or high is None or low <= high
        self._require(fine, f"low {low} is above high {high}")

    @property
    def _range(self) -> str:
        if self.high is None:
            return f"at least {number(self.low or 0, 'word')}"
        least = "at most" if self.low is None else f"between {self.low} and"
        return f"{least} {number(self.high, 'word')}"

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "WordCount":
        low = rng.choice((5, 8, 10, 12, 15, 20))
        high = low + rng.choice((5, 8, 10, 15))
        return rng.choice((cls(low, None), cls(None, high), cls(low, high)))

    def least_words(self) -> int:
        return self.low or 0

    def _look(self, text: str) -> tuple[bool, str]:
        found = len(words(text))
        ends = f"from {quote(head(text, 1))} to {quote(tail(text, 1).rstrip('.!?'))}"
        passes = (self.low or 0) <= found and (self.high is None or found <= self.high)
        return passes, f"It has {number(found, 'word')} {ends}."

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
