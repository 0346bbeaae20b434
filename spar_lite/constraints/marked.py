"""Constraints on marked words: a title, highlights, placeholders, words in capitals.

Each must be found at least so many times, as IFEval counts them (lm-evaluation-harness 0.4,
tasks/ifeval/instructions.py, with NLTK's words).
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import Constraint
from .text import WORD, Span, capitalised, enumerated, quote, words


@dataclass(frozen=True)
class Marked(Constraint):
    """At least `count` marked pieces; base of the kinds below."""

    count: int
    noun: ClassVar[str]
    mark: ClassVar[str]  # what a marked word looks like
    named = "Has at least {count:{noun}}"
    drawn = ((1, 3),)
    least = 2

    @abstractmethod
    def _found(self, text: str) -> list[Span]:
        """Where the marked pieces lie, from left to right."""

    def _look(self, text: str) -> tuple[bool, str]:
        found = [text[begin:end] for begin, end in self._found(text)]
        shown = enumerated(found, "time", whole=True)
        return len(found) >= self.count, f"Where it has a {self.noun}: {shown}."

    def _plain(self, text: str) -> list[Span]:
        """Where words lie that can be marked; every second one, so that marks do not touch."""
        found = self._found(text)
        free = [
            match.span()
            for match in WORD.finditer(text)
            if not any(begin <= match.start() < end for begin, end in found)
        ]
        return free[::2]

    def _mends(self, text: str) -> Iterator[str]:
        missing = self.count - len(self._found(text))
        # The longest words carry the most.
        plain = sorted(self._plain(text), key=lambda span: span[0] - span[1])
        for begin, end in sorted(plain[:missing], reverse=True):
            text = text[:begin] + self._marked(text[begin:end]) + text[end:]
        yield text

    def _marked(self, word: str) -> str:
        return self.mark.format(word)


_SINGLE = re.compile(r"\*[^\n*]*\*")
_DOUBLE = re.compile(r"\*\*[^\n*]*\*\*")
_BULLET_OR_STAR = re.compile(r"^([^\S\n]*\*(?=[^\S\n]))|\*", re.MULTILINE)


class Highlights(Marked):
    """Words or phrases between asterisks, single or double ones."""

    noun = "highlighted phrase"
    mark = "*{}*"
    asked = (
        "Highlight at least {count:phrase} with asterisks, like *this*.",
        "Put at least {count:phrase} between asterisks, as in *this*.",
        "At least {count:phrase} must be *highlighted* with asterisks.",
    )

    def _found(self, text: str) -> list[Span]:
        found = [*_SINGLE.finditer(text), *_DOUBLE.finditer(text)]
        return sorted(match.span() for match in found if match.group().strip("*").strip())

    def _spoils(self, text: str) -> Iterator[str]:
        for begin, _ in self._found(text)[self.count - 1 :][:1]:
            yield text[:begin].rstrip("*") + _BULLET_OR_STAR.sub(r"\1", text[begin:])
        yield text.replace("*", "")


# A bracket that is never closed is taken with the rest of its line, which keeps a run linear.
_BRACKET = re.compile(r"\[[^\n\]]*+\]?")


class Placeholders(Marked):
    """Placeholders in square brackets, for the reader to fill in."""

    noun = "placeholder"
    mark = "[{}]"
    drawn = ((1, 2),)
    asked = (
        "Use at least {count:placeholder} in square brackets, such as [name].",
        "Your answer must hold at least {count:placeholder} like [address].",
        "Leave at least {count:placeholder} in square brackets, such as [date].",
    )

    def _found(self, text: str) -> list[Span]:
        return [m.span() for m in _BRACKET.finditer(text) if m.group().endswith("]")]

    def _spoils(self, text: str) -> Iterator[str]:
        for begin, end in reversed(self._found(text)[self.count - 1 :]):
            text = text[:begin] + " ".join(words(text[begin:end])) + text[end:]
        yield text


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


class CapitalWords(Marked):
    """Words all in capitals; a single letter is one too."""

    noun = "word in capitals"
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

    def _marked(self, word: str) -> str:
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


class Title(Constraint):
    claims = frozenset({"start"})
    least = 3
    named = "Has a title in double angular brackets"
    asked = (
        "Give your answer a title in double angular brackets, such as <<My Day>>.",
        "Your answer must have a title like <<A Good Start>>.",
        "Begin with a title in double angular brackets, like <<This>>.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        found = _titles(text)
        return bool(found), f"Its title: {quote(found[0]) if found else 'none'}."

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
