"""What every requirement and constraint promises, and the register of kinds.

A kind says how it asks, whether a text passes, with which evidence, and which edits could
make a text pass or fail. The rules that hold for all kinds are here, once: an empty answer
never passes, and `mend` and `spoil` hand out only texts that `check` confirms. This file
knows no kind by name and nothing about prompts or models.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

from spar_lite.errors import did_you_mean

from .text import clean, number, words
from .values import VALUES, Values

KINDS: dict[str, type["Constraint"]] = {}


class Requirement(ABC):
    """One checkable demand on an answer, whether the instruction asks for it or not."""

    kind: ClassVar[str]
    # What two constraints cannot both have: "start", "end", "layout", "length", "case".
    claims: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def label(self) -> str:
        """A very short name, as critiques use it."""

    @abstractmethod
    def _passes(self, text: str) -> bool:
        """The verdict on a clean, non-empty text."""

    @abstractmethod
    def _evidence(self, text: str) -> str:
        """One sentence with what the verdict rests on, in the same words for a Yes and a No.

        A model writes from left to right: words that only go with one verdict would have it
        decide first and look afterwards.
        """

    def _mends(self, text: str) -> Iterable[str]:
        """Edits that may make a failing text pass, the most natural first."""
        return ()

    def _spoils(self, text: str) -> Iterable[str]:
        """Edits that may make a passing text fail, the most natural first."""
        return ()

    def check(self, text: str) -> bool:
        tidy = clean(text)
        return bool(tidy) and self._passes(tidy)

    def explain(self, text: str) -> str:
        tidy = clean(text)
        return self._evidence(tidy) if tidy else "The answer is empty."

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


@dataclass(frozen=True)
class Constraint(Requirement):
    """A requirement that an instruction asks for in words.

    The words are templates over the fields: "{phrase}", or "{count:item}" for "3 items".
    """

    # Three or more instruction sentences that ask for it, and what critiques call it.
    asked: ClassVar[tuple[str, ...]]
    named: ClassVar[str]
    # The required text counts only as it is written, capitals included.
    case_bound: ClassVar[bool] = False
    # The phrasing is the whole task: no topic, no second constraint.
    standalone: ClassVar[bool] = False
    # Needs room: does not go with "write one sentence".
    roomy: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        count = getattr(self, "count", 1)
        require(count >= 1, f"{self.kind}: count must be at least 1, found {count}")

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "Constraint":
        """A random instance fit for an answer of one to three sentences."""
        return cls()

    def phrasings(self) -> tuple[str, ...]:
        """The sentences that ask for it."""
        return tuple(sentence.format_map(_Fields(self)) for sentence in self.asked)

    def label(self) -> str:
        return self.named.format_map(_Fields(self))

    def required_text(self) -> str:
        """Text that every passing answer contains ("" if none)."""
        return ""

    def least_words(self) -> int:
        """About how many words a sensible passing answer needs."""
        return len(words(self.required_text()))

    def describe(self, phrasing: int = 0) -> str:
        options = self.phrasings()
        return options[phrasing % len(options)]

    def to_json(self) -> dict[str, object]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        return {"kind": self.kind, **plain}


class _Fields(dict[str, object]):
    """An instance's values for its templates."""

    def __init__(self, rule: Constraint) -> None:
        self.rule = rule

    def __missing__(self, name: str) -> object:
        value = getattr(self.rule, name)
        return _Count(value) if isinstance(value, int) else value


class _Count(int):
    """A number that is written with its noun: "{count:item}" is "1 item" or "3 items"."""

    def __format__(self, noun: str) -> str:
        return number(self, noun) if noun else str(int(self))


def require(fine: bool, message: str) -> None:
    """ValueError with the message, unless all is fine: for `__post_init__`."""
    if not fine:
        raise ValueError(message)


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the nearest known one, else all of them."""
    return did_you_mean(name, known).strip() or f"Known: {', '.join(known)}."


def kind_named(name: object) -> type[Constraint]:
    """The class of a kind; ValueError with a suggestion where there is none."""
    if not isinstance(name, str):
        raise ValueError(f"a constraint's kind is a string, found {name!r}")
    if name not in KINDS:
        raise ValueError(f"unknown constraint kind {name!r}. {suggest(name, KINDS)}")
    return KINDS[name]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_FITS: dict[object, tuple[str, Callable[[object], bool]]] = {
    str: ("a string", lambda value: isinstance(value, str)),
    int: ("a whole number", _is_int),
    int | None: ("a whole number or null", lambda value: value is None or _is_int(value)),
    tuple[str, ...]: (
        "a list of strings",
        lambda value: (
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        ),
    ),
}


def from_json(data: object) -> Constraint:
    """The constraint that `to_json` wrote; ValueError says what is wrong with any other."""
    if not isinstance(data, dict):
        raise ValueError(f"a constraint is an object with a kind, found {type(data).__name__}")
    cls = kind_named(data.get("kind"))
    given = {str(name): value for name, value in data.items() if name != "kind"}
    known = {field.name: field.type for field in fields(cls)}
    for name in given:
        if name not in known:
            hint = suggest(name, known) if known else "It has no fields."
            raise ValueError(f"{cls.kind}: unknown field {name!r}. {hint}")
    for name, kind in known.items():
        wanted, fits = _FITS[kind]
        if name not in given:
            raise ValueError(f"{cls.kind}: field {name!r} is missing ({wanted})")
        if not fits(given[name]):
            raise ValueError(f"{cls.kind}: {name} must be {wanted}, found {given[name]!r}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
