"""Constraints on the parts of an answer: sentences, paragraphs, list items, two answers, JSON.

What counts as a sentence is defined in `text.py`, the other parts are defined here.
"""

import json
import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Constraint
from .text import (
    FILLERS,
    LIST_MARK,
    WORD,
    closed,
    enumerated,
    head,
    number,
    pick,
    quote,
    sentence_spans,
    sentences,
    squeeze,
    toss,
    with_sentence,
)
from .values import VALUES, Values

_PARAGRAPH_GAP = re.compile(r"\n[^\S\n]*+\n\s*+")


def _dealt(pieces: Sequence[str], count: int) -> list[str]:
    """As many pieces as `count`, the last one taking the rest; none where they are too few."""
    last = count - 1
    return [*pieces[:last], " ".join(pieces[last:])] if len(pieces) > last else []


@dataclass(frozen=True)
class Counted(Constraint):
    """Exactly `count` parts; base of the kinds below."""

    count: int
    noun: ClassVar[str]
    parts: ClassVar[str] = "{noun}s"
    roomy = True
    named = "Has exactly {count:{noun}}"
    least = 3

    @abstractmethod
    def _found(self, text: str) -> list[str]:
        """The parts, from the first to the last."""

    def _look(self, text: str) -> tuple[bool, str]:
        found, parts = self._found(text), self.parts.format_map(self)
        return len(found) == self.count, f"Its {parts}: {enumerated(found, self.noun)}."


class SentenceCount(Counted):
    """Exactly `count` sentences; a line end also ends a sentence."""

    noun = "sentence"
    claims = frozenset({"layout"})
    drawn = ((1, 4),)
    asked = (
        "Write exactly {count:sentence}.",
        "Your answer must have exactly {count:sentence}.",
        "Answer in exactly {count:sentence}.",
    )

    def _found(self, text: str) -> list[str]:
        return sentences(text)

    def _mends(self, text: str) -> Iterator[str]:
        spans = sentence_spans(text)
        if len(spans) > self.count:
            yield text[: spans[self.count - 1][1]]
            if self.count > 1:
                yield f"{text[: spans[self.count - 2][1]]} {text[spans[-1][0] :]}"

    def _spoils(self, text: str) -> Iterator[str]:
        if self.count > 1 and toss(text, 2):
            yield text[: sentence_spans(text)[-2][1]]
        filler = pick(FILLERS, text)
        yield f"{closed(text)} {filler}"
        yield with_sentence(text, filler)


class ParagraphCount(Counted):
    """Exactly `count` blocks of text with a blank line between them."""

    noun = "paragraph"
    claims = frozenset({"layout"})
    drawn = ((2, 3),)
    asked = (
        "Write exactly {count:paragraph} with a blank line between paragraphs.",
        "Your answer must have exactly {count:paragraph}, separated by blank lines.",
        "Use blank lines to make exactly {count:paragraph}.",
    )

    def _found(self, text: str) -> list[str]:
        return [block.strip() for block in _PARAGRAPH_GAP.split(text.strip()) if block.strip()]

    def _mends(self, text: str) -> Iterator[str]:
        blocks = self._found(text)
        pieces = blocks if len(blocks) > self.count else sentences(text)
        yield "\n\n".join(_dealt(pieces, self.count))

    def _spoils(self, text: str) -> Iterator[str]:
        blocks, found = self._found(text), sentences(text)
        if len(blocks) > 1:
            yield "\n\n".join(_dealt(blocks, len(blocks) - 1))
        if len(found) > 1:
            yield "\n\n".join(_dealt(found, 2))


class ListCount(Counted):
    """Exactly `count` list items, each on its own line; other lines are allowed."""

    mark: ClassVar[re.Pattern[str]]
    claims = frozenset({"start", "layout"})
    drawn = ((2, 4),)
    least = 2

    @abstractmethod
    def _item(self, n: int, said: str) -> str:
        """The n-th line of the list."""

    def _listed(self, items: Sequence[str]) -> str:
        return "\n".join(self._item(n, said) for n, said in enumerate(items, 1))

    def _starts(self, text: str) -> list[int]:
        return [match.start() for match in self.mark.finditer(text)]

    def _found(self, text: str) -> list[str]:
        return [self.mark.sub("", line) for line in text.split("\n") if self.mark.match(line)]

    def _mends(self, text: str) -> Iterator[str]:
        starts = self._starts(text)
        if len(starts) > self.count:
            yield text[: starts[self.count]].rstrip()

    def _spoils(self, text: str) -> Iterator[str]:
        if self.count > 1 and toss(text, 2):
            yield text[: self._starts(text)[-1]].rstrip()
        else:
            yield f"{text}\n{self._item(self.count + 1, pick(FILLERS, text))}"
        yield self.mark.sub("", text)


class BulletCount(ListCount):
    """Exactly `count` lines that begin with "- "; other lines are allowed."""

    noun = "bullet"
    mark = re.compile(r"^- (?=\S)", re.MULTILINE)
    asked = (
        'Write exactly {count:bullet point}, each on a line that starts with "- ".',
        'Answer as a list of {count:bullet point} with "- " in front.',
        'Use exactly {count:line} beginning with "- ".',
    )

    def _item(self, n: int, said: str) -> str:
        return f"- {said}"

    def _mends(self, text: str) -> Iterator[str]:
        yield from super()._mends(text)
        if not self._starts(text):
            yield LIST_MARK.sub("- ", text)
            yield self._listed(_dealt(sentences(text), self.count))


class NumberedList(ListCount):
    """Exactly `count` lines that begin with a number and a dot; other lines are allowed."""

    noun = "item"
    parts = "numbered lines"
    mark = re.compile(r"^\d{1,2}\. (?=\S)", re.MULTILINE)
    claims = frozenset({"start", "layout", "digits"})
    named = "Has exactly {count:numbered item}"
    asked = (
        'Answer as a numbered list of exactly {count:item}, like "1. ".',
        'Write exactly {count:numbered line}, beginning with "1. ".',
        'Use a list of {count:item}, numbered "1. " and so on.',
    )

    def _item(self, n: int, said: str) -> str:
        return f"{n}. {said}"

    def _mends(self, text: str) -> Iterator[str]:
        yield from super()._mends(text)
        items = [LIST_MARK.sub("", line).strip() for line in text.split("\n") if line.strip()]
        if len(items) == self.count:
            yield self._listed(items)
        if not self._starts(text):
            yield self._listed(_dealt(sentences(" ".join(items)), self.count))


_STARS = "******"


class TwoAnswers(Constraint):
    claims = frozenset({"layout", "start", "end"})
    roomy = True
    least = 8
    named = "Gives two answers separated by ******"
    asked = (
        "Give two different answers, separated by ******.",
        "Answer twice in different words, with ****** between the answers.",
        "Write two answers. Put ****** between them.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        marks = text.count(_STARS)
        parts = [part.strip() for part in text.split(_STARS) if WORD.search(part)]
        same = len(parts) == 2 and parts[0] == parts[1]
        times = "" if marks == 1 else f", with {_STARS} {number(marks, 'time')}"
        shown = f"{enumerated(parts, 'answer')}{', the same twice' if same else ''}{times}"
        return marks == 1 and len(parts) == 2 and not same, f"Its answers: {shown}."

    def _mends(self, text: str) -> Iterator[str]:
        found = sentences(text.replace(_STARS, " "))
        if len(found) > 1:
            half = len(found) // 2
            yield f"{' '.join(found[:half])}\n{_STARS}\n{' '.join(found[half:])}"
        elif found:
            yield f"{closed(found[0])}\n{_STARS}\n{pick(FILLERS, text)}"

    def _spoils(self, text: str) -> Iterator[str]:
        first, second = (part.strip() for part in text.split(_STARS))
        yield f"{first} {second}" if toss(text, 2) else first
        yield f"{first}\n\n{second}"


def _read(text: str) -> dict[str, object] | None:
    """The object, or None where the text is anything else."""
    try:
        value = json.loads(text, parse_constant=int)  # no int is named NaN or Infinity
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _written(value: dict[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class JsonObject(Constraint):
    """The whole answer is a JSON object with exactly these keys, in any order; no fences."""

    keys: tuple[str, ...]
    claims = frozenset({"start", "end", "layout", "length"})
    case_bound = True
    roomy = True
    named = "Is a JSON object with the {_named}"
    asked = (
        "Answer with a JSON object with the {_named}.",
        "Your whole answer must be a JSON object with exactly the {_named}.",
        "Reply in JSON only, using the {_named}.",
    )

    def __post_init__(self) -> None:
        self._require(len(self.keys) >= 1, "keys must not be empty")
        self._require(len(set(self.keys)) == len(self.keys), "a key is given twice")
        for key in self.keys:
            fine = bool(key) and '"' not in key and key == squeeze(key)
            self._require(fine, f"a key needs a name without quotes, found {key!r}")

    @property
    def _named(self) -> str:
        """The keys in quotes, without commas between two and with them from three on."""
        *others, last = [f'"{key}"' for key in self.keys]
        return f"keys {', '.join(others)} and {last}" if others else f"key {last}"

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "JsonObject":
        return cls(tuple(rng.sample(values.keys, rng.randint(1, 2))))

    def required_text(self) -> str:
        return " ".join(self.keys)

    def _look(self, text: str) -> tuple[bool, str]:
        found = _read(text)
        if found is not None:
            shown = ", ".join(quote(name, 20) for name in list(found)[:4]) or "none"
        elif text.startswith("{"):
            shown = f"unreadable, as it ends with {quote(text[-12:])}"
        else:
            shown = f"none, as it begins with {quote(head(text, 3))}"
        passes = found is not None and found.keys() == set(self.keys)
        return passes, f"Its JSON keys: {shown}."

    def _mends(self, text: str) -> Iterator[str]:
        bare = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
        yield bare
        yield f"{bare}}}"
        found = _read(bare)
        if found is not None:
            yield _written({key: found[key] for key in found if key in self.keys})
            # As many keys as wanted, some under another name: the values keep their order.
            if len(found) == len(self.keys):
                free = iter([key for key in self.keys if key not in found])
                renamed = [name if name in self.keys else next(free) for name in found]
                yield _written(dict(zip(renamed, found.values(), strict=True)))
        elif not bare.startswith(("{", "[")):
            values = _dealt(sentences(bare), len(self.keys))
            yield _written(dict(zip(self.keys, values, strict=False)))

    def _spoils(self, text: str) -> Iterator[str]:
        found = _read(text) or {}
        kept = list(found)[:-1]
        if kept and toss(text, 2):
            yield _written({key: found[key] for key in kept})
        plain = " ".join(str(value) for value in found.values())
        yield (text[:-1], plain, f"Here it is: {text}")[toss(text, 3)]
        yield text[:-1]
