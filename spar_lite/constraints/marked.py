"""Constraints on marked words: a title, highlights, placeholders, words in capitals.

Each must be found at least so many times, as IFEval counts them (lm-evaluation-harness 0.4,
tasks/ifeval/instructions.py, with NLTK's words).
"""

import random
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import Constraint
from .text import WORD, Span, capitalised, enumerated, quote, words
from .values import VALUES, Values


@dataclass(frozen=True)
class Marked(Constraint):
    """At least `count` marked pieces; base of the kinds below."""

    count: int
    noun: ClassVar[str]
    named = "Has at least {count:{noun}}"
    most = 3
    # Every second word at most is marked, so that marks do not touch.
    apart = 2

    @abstractmethod
    def _found(self, text: str) -> list[Span]:
        """Where the marked pieces lie, from left to right."""

    @abstractmethod
    def _mark(self, word: str) -> str:
        """The word as it must look."""

    def _plain(self, text: str) -> list[Span]:
        """Where words lie that can be marked."""
        found = self._found(text)
        return [
            match.span()
            for match in WORD.finditer(text)
            if not any(begin <= match.start() < end for begin, end in found)
        ]

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "Marked":
        return cls(rng.randint(1, cls.most))

    def least_words(self) -> int:
        return 2 * self.count

    def _passes(self, text: str) -> bool:
        return len(self._found(text)) >= self.count

    def _evidence(self, text: str) -> str:
        found = [text[begin:end] for begin, end in self._found(text)]
        return f"Where it has a {self.noun}: {enumerated(found, 'time', whole=True)}."

    def _mends(self, text: str) -> Iterator[str]:
        missing = self.count - len(self._found(text))
        # The longest words carry the most.
        plain = sorted(self._plain(text)[:: self.apart], key=lambda span: span[0] - span[1])
        for begin, end in sorted(plain[:missing], reverse=True):
            text = text[:begin] + self._mark(text[begin:end]) + text[end:]
        yield text

    def _spoils(self, text: str) -> Iterator[str]:
        for begin, end in reversed(self._found(text)[self.count - 1 :]):
            text = text[:begin] + self._bare(text[begin:end]) + text[end:]
        yield text

    def _bare(self, marked: str) -> str:
        """The word without its marks."""
        return " ".join(words(marked))


_SINGLE = re.compile(r"\*[^\n*]*\*")
_DOUBLE = re.compile(r"\*\*[^\n*]*\*\*")
_BULLET_OR_STAR = re.compile(r"^([^\S\n]*\*(?=[^\S\n]))|\*", re.MULTILINE)


@dataclass(frozen=True)
class Highlights(Marked):
    """Words or phrases between asterisks, single or double ones."""

    kind = "highlights"
    noun = "highlighted phrase"
    asked = (
        "Highlight at least {count:phrase} with asterisks, like *this*.",
        "Put at least {count:phrase} between asterisks, as in *this*.",
        "At least {count:phrase} must be *highlighted* with asterisks.",
    )

    def _found(self, text: str) -> list[Span]:
        found = [*_SINGLE.finditer(text), *_DOUBLE.finditer(text)]
        return sorted(match.span() for match in found if match.group().strip("*").strip())

    def _mark(self, word: str) -> str:
        return f"*{word}*"

    def _spoils(self, text: str) -> Iterator[str]:
        for begin, _ in self._found(text)[self.count - 1 :][:1]:
            yield text[:begin].rstrip("*") + _BULLET_OR_STAR.sub(r"\1", text[begin:])
        yield text.replace("*", "")


# A bracket that is never closed is taken with the rest of its line, which keeps a run linear.
_BRACKET = re.compile(r"\[[^\n\]]*+\]?")


@dataclass(frozen=True)
class Placeholders(Marked):
    """Placeholders in square brackets, for the reader to fill in."""

    kind = "placeholders"
    noun = "placeholder"
    most = 2
    asked = (
        "Use at least {count:placeholder} in square brackets, such as [name].",
        "Your answer must hold at least {count:placeholder} like [address].",
        "Leave at least {count:placeholder} in square brackets, such as [date].",
    )

    def _found(self, text: str) -> list[Span]:
        return [m.span() for m in _BRACKET.finditer(text) if m.group().endswith("]")]

    def _mark(self, word: str) -> str:
        return f"[{word}]"


# What parts words for NLTK: these characters, and commas and colons unless a digit follows.
_GAP = re.compile(
    r"""[\s"`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb;@#$%&?!*()\[\]{}<>\u2012-\u2015]"""
    r"""|[,:](?!\d)|\.{2,}|--|''"""
)
# It also cuts DON'T into DO and N'T, and CANNOT into CAN and NOT.
_CUT = re.compile(
    r"(?<=[^'])(?=(?:'[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)['.]*$)"
    r"|(?i:\b(?:can(?=not\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)|wan(?=na['.]*$)))"
)


def _tokens(text: str) -> Iterator[Span]:
    """Where the words lie that NLTK's `word_tokenize` finds."""
    flat = _GAP.sub(lambda gap: " " * len(gap.group()), text)
    for match in re.finditer(r"\S+", flat):
        begin = match.start()
        for cut in _CUT.finditer(match.group()):
            yield begin, match.start() + cut.end()
            begin = match.start() + cut.end()
        yield begin, match.end()


@dataclass(frozen=True)
class CapitalWords(Marked):
    """Words all in capitals; a single letter is one too."""

    kind = "capital_words"
    noun = "word in capitals"
    apart = 1
    named = "Has at least {count:word} in capitals"
    asked = (
        "Write at least {count:word} in capital letters.",
        "At least {count:word} of your answer must be in ALL CAPITALS.",
        "Use capital letters for at least {count:word}.",
    )

    def _found(self, text: str) -> list[Span]:
        return [(begin, end) for begin, end in _tokens(text) if text[begin:end].isupper()]

    def _plain(self, text: str) -> list[Span]:
        found = [(begin, end, text[begin:end]) for begin, end in _tokens(text)]
        return [(a, b) for a, b, word in found if not word.isupper() and word.upper().isupper()]

    def _mark(self, word: str) -> str:
        return word.upper()

    def _spoils(self, text: str) -> Iterator[str]:
        # "I" and "A" are written in capitals anyway: they go last.
        found = sorted(self._found(text), key=lambda span: span[0] - span[1])
        for begin, end in sorted(found[: len(found) - self.count + 1], reverse=True):
            text = text[:begin] + text[begin:end].lower() + text[end:]
        yield text


def _titles(text: str) -> list[str]:
    """What stands on a line from its first "<<" to its last ">>", unless that is blank."""
    lines = [line for line in text.split("\n") if "<<" in line and ">>" in line]
    found = [line[line.index("<<") : line.rindex(">>") + 2] for line in lines]
    return [title for title in found if title.lstrip("<").rstrip(">").strip()]


@dataclass(frozen=True)
class Title(Constraint):
    """A title in double angular brackets somewhere."""

    kind = "title"
    claims = frozenset({"start"})
    named = "Has a title in double angular brackets"
    asked = (
        "Give your answer a title in double angular brackets, such as <<My Day>>.",
        "Your answer must have a title like <<A Good Start>>.",
        "Begin with a title in double angular brackets, like <<This>>.",
    )

    def least_words(self) -> int:
        return 3

    def _passes(self, text: str) -> bool:
        return bool(_titles(text))

    def _evidence(self, text: str) -> str:
        found = _titles(text)
        return f"Its title: {quote(found[0]) if found else 'none'}."

    def _mends(self, text: str) -> Iterator[str]:
        name = " ".join(capitalised(word) for word in words(text)[:3])
        if name:
            yield f"<<{name}>>\n{text}"

    def _spoils(self, text: str) -> Iterator[str]:
        bare = text
        for title in _titles(text):
            bare, text = bare.replace(title, title[2:-2].strip()), text.replace(title, "")
        yield bare
        yield text.strip()
