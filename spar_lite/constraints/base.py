"""What every requirement and constraint promises.

A kind says how it asks, what a text shows of it and whether that passes, and which edits could
make a text pass or fail. The rules that hold for all kinds are here, once: an empty answer never
passes, and `mends` and `spoilt` hand out only texts that `check` confirms.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

from .text import WORD, clean, number, squeeze, words
from .values import VALUES, Values


class Requirement(ABC):
    """One checkable demand on an answer, whether the instruction asks for it or not."""

    kind: ClassVar[str]  # the class's name, as in "starts_with"
    # What two constraints cannot both have: "start", "end", "layout", "length", "case", "digits".
    claims: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def label(self) -> str:
        """A very short name, as critiques use it."""

    @abstractmethod
    def _look(self, text: str) -> tuple[bool, str]:
        """The verdict on a clean, non-empty text, and one sentence with what it rests on.

        The sentence has the same words for a Yes and a No. A model writes from left to right:
        words that only go with one verdict would have it decide first and look afterwards.
        """

    def _mends(self, text: str) -> Iterable[str]:
        """Edits that may make a failing text pass, the most natural first."""
        return ()

    def _spoils(self, text: str) -> Iterable[str]:
        """Edits that may make a passing text fail, the most natural first."""
        return ()

    def look(self, text: str) -> tuple[bool, str]:
        """The verdict, and the sentence with its evidence."""
        tidy = clean(text)
        return self._look(tidy) if tidy else (False, "The answer is empty.")

    def check(self, text: str) -> bool:
        return self.look(text)[0]

    def explain(self, text: str) -> str:
        return self.look(text)[1]

    def mends(self, text: str) -> list[str]:
        """Every known edit after which the text passes; none for an empty text."""
        tidy = clean(text)
        return [edit for edit in self._mends(tidy) if self.check(edit)] if tidy else []

    def mend(self, text: str) -> str | None:
        """The smallest known edit after which the text passes; a passing text as it is."""
        return text if self.check(text) else next(iter(self.mends(text)), None)

    def spoilt(self, text: str) -> Iterable[str]:
        """Every known edit after which a passing text fails."""
        edits = (edit for edit in self._spoils(clean(text)) if edit.strip())
        return (edit for edit in edits if not self.check(edit))

    def spoil(self, text: str) -> str | None:
        """A small natural edit after which a passing text fails; a failing text as it is."""
        return next(iter(self.spoilt(text)), None) if self.check(text) else text


def _is_phrase(text: str) -> bool:
    return bool(WORD.search(text)) and text == squeeze(text) and '"' not in text


_PHRASE = ("needs a word, single spaces and no double quotes", _is_phrase)
# What holds for a field of this name, whatever the kind.
_HOLDS: dict[str, tuple[str, Callable[..., bool]]] = {
    "count": ("must be at least 1", lambda count: count >= 1),
    "low": ("must be at least 1", lambda low: low is None or low >= 1),
    "high": ("must be at least 1", lambda high: high is None or high >= 1),
    "word": ("must be one word", lambda word: bool(WORD.fullmatch(word))),
    "letter": ("must be one letter", lambda letter: len(letter) == 1 and letter.isalpha()),
    "phrase": _PHRASE,
    "first": _PHRASE,
    "last": _PHRASE,
}


@dataclass(frozen=True)
class Constraint(Requirement):
    """A requirement that an instruction asks for in words.

    The words are templates over the fields: "{phrase}", or "{count:item}" for "3 items". A kind
    with fields of its own is a frozen dataclass too.
    """

    # Three or more instruction sentences that ask for it, and what critiques call it.
    asked: ClassVar[tuple[str, ...]]
    named: ClassVar[str]
    # For each field where a random value is from: a list of `Values`, or least and greatest.
    drawn: ClassVar[tuple[str | tuple[int, int], ...]] = ()
    # A template for text that every passing answer contains.
    required: ClassVar[str] = ""
    # About how many words a sensible answer needs (for each of its `count`), if not those above.
    least: ClassVar[int] = 0
    # The required text counts only as it is written, capitals included.
    case_bound: ClassVar[bool] = False
    # The phrasing is the whole task: no topic, no second constraint.
    standalone: ClassVar[bool] = False
    # Needs room: does not go with "write one sentence".
    roomy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name in _HOLDS):
            value, (rule, holds) = getattr(self, name), _HOLDS[name]
            self._require(holds(value), f"{name} {rule}, found {value!r}")

    def _require(self, fine: bool, message: str) -> None:
        """ValueError with the message, unless all is fine."""
        if not fine:
            raise ValueError(f"{self.kind}: {message}")

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "Constraint":
        """A random instance fit for an answer of one to three sentences."""
        return cls(**{
            field.name: rng.choice(getattr(values, of)) if isinstance(of, str) else rng.randint(*of)
            for field, of in zip(fields(cls), cls.drawn, strict=True)
        })  # fmt: skip

    def __getitem__(self, name: str) -> object:
        """A value as the templates write it."""
        value = getattr(self, name)
        return _Count(value) if isinstance(value, int) else value

    def phrasings(self) -> tuple[str, ...]:
        """The sentences that ask for it."""
        return tuple(sentence.format_map(self) for sentence in self.asked)

    def label(self) -> str:
        return self.named.format_map(self)

    def required_text(self) -> str:
        return self.required.format_map(self)

    def least_words(self) -> int:
        return self.least * getattr(self, "count", 1) or len(words(self.required_text()))

    def to_json(self) -> dict[str, object]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values}
        return {"kind": self.kind, **plain}


class _Count(int):
    """A number that is written with its noun: "{count:item}" is "1 item" or "3 items"."""

    def __format__(self, noun: str) -> str:
        return number(self, noun) if noun else str(int(self))
