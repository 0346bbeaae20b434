"""Constraints on marked words: a title, highlights, placeholders, words in capitals.

Each is a pattern that must be found at least so many times, as IFEval counts them. This file knows
nothing about where in the answer they stand, but for the title's usual place.
"""

import random
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import Constraint, require
from .text import WORD, capitalised, enumerated, number, quote, words
from .values import VALUES, Values


@dataclass(frozen=True)
class Marked(Constraint):
    """At least `count` matches of a pattern; base of the kinds below."""

    count: int
    pattern: ClassVar[re.Pattern[str]]
    noun: ClassVar[str]
    most: ClassVar[int] = 3

    def __post_init__(self) -> None:
        require(self.count >= 1, f"{self.kind}: count must be at least 1, found {self.count}")

    @abstractmethod
    def _mark(self, word: str) -> str:
        """The word as it must look."""

    def label(self) -> str:
        return f"Has at least {number(self.count, self.noun)}"

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "Marked":
        return cls(rng.randint(1, cls.most))

    def least_words(self) -> int:
        return 2 * self.count

    def _passes(self, text: str) -> bool:
        return len(self.pattern.findall(text)) >= self.count

    def _evidence(self, text: str) -> str:
        found = [match.group() for match in self.pattern.finditer(text)]
        return f"Where it has a {self.noun}: {enumerated(found, 'time', whole=True)}."

    def _mends(self, text: str) -> Iterator[str]:
        missing = self.count - len(self.pattern.findall(text))
        taken = [match.span() for match in self.pattern.finditer(text)]
        plain = [
            match
            for match in WORD.finditer(text)
            if not any(begin <= match.start() < end for begin, end in taken)
        ]
        # The longest words carry the most; apart from each other, so that marks do not touch.
        chosen = sorted(plain[::2], key=lambda match: -len(match.group()))[:missing]
        for match in sorted(chosen, key=lambda match: -match.start()):
            text = text[: match.start()] + self._mark(match.group()) + text[match.end() :]
        yield text

    def _spoils(self, text: str) -> Iterator[str]:
        found = list(self.pattern.finditer(text))
        for match in reversed(found[self.count - 1 :]):
            text = text[: match.start()] + self._bare(match.group()) + text[match.end() :]
        yield text

    def _bare(self, marked: str) -> str:
        """The word without its marks."""
        return " ".join(words(marked))


@dataclass(frozen=True)
class Highlights(Marked):
    """Words or phrases between asterisks."""

    kind: ClassVar[str] = "highlights"
    noun: ClassVar[str] = "highlighted phrase"
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(?<!\*)\*[^\s*][^\n*]*\*(?!\*)")

    def phrasings(self) -> tuple[str, ...]:
        wanted = number(self.count, "phrase")
        return (
            f"Highlight at least {wanted} with asterisks, like *this*.",
            f"Put at least {wanted} between single asterisks, as in *this*.",
            f"At least {wanted} must be *highlighted* with asterisks.",
        )

    def _mark(self, word: str) -> str:
        return f"*{word}*"


@dataclass(frozen=True)
class Placeholders(Marked):
    """Placeholders in square brackets, for the reader to fill in."""

    kind: ClassVar[str] = "placeholders"
    noun: ClassVar[str] = "placeholder"
    most: ClassVar[int] = 2
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"\[[^\s\[\]][^\n\[\]]*\]")

    def phrasings(self) -> tuple[str, ...]:
        wanted = number(self.count, "placeholder")
        return (
            f"Use at least {wanted} in square brackets, such as [name].",
            f"Your answer must hold at least {wanted} like [address].",
            f"Leave at least {wanted} in square brackets, such as [date].",
        )

    def _mark(self, word: str) -> str:
        return f"[{word}]"


@dataclass(frozen=True)
class CapitalWords(Marked):
    """Words of two letters or more, all in capitals."""

    kind: ClassVar[str] = "capital_words"
    noun: ClassVar[str] = "word in capitals"
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(?<![^\W_])[A-Z]{2,}(?![^\W_])")

    def phrasings(self) -> tuple[str, ...]:
        wanted = number(self.count, "word")
        return (
            f"Write at least {wanted} in capital letters.",
            f"At least {wanted} of your answer must be in ALL CAPITALS.",
            f"Use capital letters for at least {wanted}.",
        )

    def label(self) -> str:
        return f"Has at least {number(self.count, 'word')} in capitals"

    def _mark(self, word: str) -> str:
        return word.upper()

    def _bare(self, marked: str) -> str:
        return marked.lower()


_TITLE = re.compile(r"<<[^\s<>][^<>\n]*>>")


@dataclass(frozen=True)
class Title(Constraint):
    """A title in double angular brackets somewhere."""

    kind: ClassVar[str] = "title"
    claims: ClassVar[frozenset[str]] = frozenset({"start"})

    def phrasings(self) -> tuple[str, ...]:
        return (
            "Give your answer a title in double angular brackets, such as <<My Day>>.",
            "Your answer must have a title like <<A Good Start>>.",
            "Begin with a title in double angular brackets, like <<This>>.",
        )

    def label(self) -> str:
        return "Has a title in double angular brackets"

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "Title":
        return cls()

    def least_words(self) -> int:
        return 3

    def _passes(self, text: str) -> bool:
        return bool(_TITLE.search(text))

    def _evidence(self, text: str) -> str:
        found = _TITLE.search(text)
        return f"Its title: {quote(found.group()) if found else 'none'}."

    def _mends(self, text: str) -> Iterator[str]:
        name = " ".join(capitalised(word) for word in words(text)[:3])
        if name:
            yield f"<<{name}>>\n{text}"

    def _spoils(self, text: str) -> Iterator[str]:
        yield _TITLE.sub(lambda match: match.group()[2:-2], text)
        yield _TITLE.sub("", text).strip()
