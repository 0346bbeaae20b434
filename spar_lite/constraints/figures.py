"""Constraints on numbers and parts: digits or none, a numbered list, a postscript, two answers.

What counts as a part is defined here.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint
from .text import (
    FILLERS,
    LIST_MARK,
    WORD,
    closed,
    enumerated,
    head,
    number,
    quote,
    sentences,
    toss,
    where,
    with_sentence,
)
from .values import VALUES, Values

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBERED = re.compile(r"^\d{1,2}\. (?=\S)", re.MULTILINE)
_POSTSCRIPT = re.compile(r"^P\.S\. ?\S", re.MULTILINE)
_STARS = "******"


@dataclass(frozen=True)
class NoDigits(Constraint):
    """No digit anywhere."""

    kind = "no_digits"
    claims = frozenset({"digits"})
    named = "Has no digits"
    asked = (
        "Do not use any digits.",
        "Your answer must not contain digits.",
        "Write without a single digit.",
    )

    def _passes(self, text: str) -> bool:
        return not any(character.isdigit() for character in text)

    def _evidence(self, text: str) -> str:
        found = next((n for n, character in enumerate(text) if character.isdigit()), None)
        span = None if found is None else (found, found + 1)
        return f"Where it has a digit: {where(text, span)}."

    def _mends(self, text: str) -> Iterator[str]:
        yield re.sub(r"\d+(?:[.,]\d+)*", "some", text)

    def _spoils(self, text: str) -> Iterator[str]:
        yield with_sentence(text, f"There are {2 + toss(text, 8)} reasons for it.")


@dataclass(frozen=True)
class HasNumber(Constraint):
    """At least one number in digits."""

    kind = "has_number"
    claims = frozenset({"digits"})
    named = "Has a number in digits"
    asked = (
        "Use at least one number, written in digits.",
        "Your answer must contain a number in digits, such as 7.",
        "Include a number such as 12, in digits.",
    )

    def _passes(self, text: str) -> bool:
        return bool(_NUMBER.search(text))

    def _evidence(self, text: str) -> str:
        found = _NUMBER.search(text)
        return f"Where it has a digit: {where(text, found.span() if found else None)}."

    def _mends(self, text: str) -> Iterator[str]:
        yield with_sentence(text, f"There are {2 + toss(text, 8)} reasons for it.")

    def _spoils(self, text: str) -> Iterator[str]:
        yield _NUMBER.sub("some", text)


@dataclass(frozen=True)
class NumberedList(Constraint):
    """Exactly `count` lines that begin with a number and a dot; other lines are allowed."""

    count: int
    kind = "numbered_list"
    claims = frozenset({"start", "layout", "digits"})
    roomy = True
    named = "Has exactly {count:numbered item}"
    asked = (
        'Answer as a numbered list of exactly {count:item}, like "1. ".',
        'Write exactly {count:numbered line}, beginning with "1. ".',
        'Use a list of {count:item}, numbered "1. " and so on.',
    )

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "NumberedList":
        return cls(rng.randint(2, 4))

    def least_words(self) -> int:
        return 2 * self.count

    def _passes(self, text: str) -> bool:
        return len(_NUMBERED.findall(text)) == self.count

    def _evidence(self, text: str) -> str:
        found = [_NUMBERED.sub("", line) for line in text.split("\n") if _NUMBERED.match(line)]
        return f"Its numbered lines: {enumerated(found, 'item')}."

    def _mends(self, text: str) -> Iterator[str]:
        starts = [match.start() for match in _NUMBERED.finditer(text)]
        if len(starts) > self.count:
            yield text[: starts[self.count]].rstrip()
        items = [LIST_MARK.sub("", line).strip() for line in text.split("\n") if line.strip()]
        if len(items) == self.count:
            yield _numbered(items)
        found = sentences(" ".join(items))
        if not starts and len(found) >= self.count:
            yield _numbered([*found[: self.count - 1], " ".join(found[self.count - 1 :])])

    def _spoils(self, text: str) -> Iterator[str]:
        starts = [match.start() for match in _NUMBERED.finditer(text)]
        if self.count > 1 and toss(text, 2):
            yield text[: starts[-1]].rstrip()
        else:
            yield f"{text}\n{self.count + 1}. {FILLERS[toss(text, len(FILLERS))]}"
        yield _NUMBERED.sub("", text)


def _numbered(items: list[str]) -> str:
    return "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))


@dataclass(frozen=True)
class Postscript(Constraint):
    """A line at the end that begins with "P.S."."""

    kind = "postscript"
    claims = frozenset({"end"})
    case_bound = True
    roomy = True
    named = 'Ends with a postscript "P.S."'
    asked = (
        'Add a postscript at the end that begins with "P.S.".',
        'Close with a line that starts with "P.S.".',
        'Your answer must end with a postscript, "P.S." and a few words.',
    )

    def required_text(self) -> str:
        return "P.S."

    def least_words(self) -> int:
        return 6

    def _last_line(self, text: str) -> str:
        return text.rpartition("\n")[2]

    def _passes(self, text: str) -> bool:
        return bool(_POSTSCRIPT.match(self._last_line(text)))

    def _evidence(self, text: str) -> str:
        return f"The last line begins with {quote(head(self._last_line(text), 4))}."

    def _mends(self, text: str) -> Iterator[str]:
        place = text.rfind("P.S.")
        if place > 0 and WORD.search(text[place + 4 :]):
            yield f"{text[:place].rstrip()}\nP.S. {text[place + 4 :].strip()}"
        yield f"{closed(text)}\nP.S. {FILLERS[toss(text, len(FILLERS))]}"

    def _spoils(self, text: str) -> Iterator[str]:
        before, _, last = text.rpartition("\n")
        rest = last.removeprefix("P.S.").strip()
        yield before.strip() if toss(text, 2) else f"{before}\n{rest}".strip()
        yield f"{before}\n{rest}".strip()


@dataclass(frozen=True)
class TwoAnswers(Constraint):
    """Two different parts with a line of six asterisks between them."""

    kind = "two_answers"
    claims = frozenset({"layout", "start", "end"})
    roomy = True
    named = "Gives two answers separated by ******"
    asked = (
        "Give two different answers, separated by ******.",
        "Answer twice in different words, with ****** between the answers.",
        "Write two answers. Put ****** between them.",
    )

    def least_words(self) -> int:
        return 8

    def _parts(self, text: str) -> list[str]:
        return [part.strip() for part in text.split(_STARS)]

    def _passes(self, text: str) -> bool:
        parts = self._parts(text)
        return len(parts) == 2 and all(map(WORD.search, parts)) and parts[0] != parts[1]

    def _evidence(self, text: str) -> str:
        parts = [part for part in self._parts(text) if WORD.search(part)]
        same = ", the same twice" if len(parts) == 2 and parts[0] == parts[1] else ""
        marks = text.count(_STARS)
        times = "" if marks == 1 else f", with {_STARS} {number(marks, 'time')}"
        return f"Its answers: {enumerated(parts, 'answer')}{same}{times}."

    def _mends(self, text: str) -> Iterator[str]:
        found = sentences(text.replace(_STARS, " "))
        if len(found) > 1:
            half = len(found) // 2
            yield f"{' '.join(found[:half])}\n{_STARS}\n{' '.join(found[half:])}"
        elif found:
            yield f"{closed(found[0])}\n{_STARS}\n{FILLERS[toss(text, len(FILLERS))]}"

    def _spoils(self, text: str) -> Iterator[str]:
        first, second = self._parts(text)
        yield f"{first} {second}" if toss(text, 2) else first
        yield f"{first}\n\n{second}"
