"""Constraints on single characters: commas, capitals, one letter repeated."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .base import Constraint, require
from .text import WORD, capitalised, quote, toss, words
from .values import VALUES, Values

_COMMA = re.compile("[,\uff0c]")


@dataclass(frozen=True)
class NoCommas(Constraint):
    """The answer has no comma, ASCII or full-width."""

    kind = "no_commas"
    named = "Has no commas"
    asked = (
        "Do not use any commas.",
        "Write without commas.",
        "Your answer must not contain a comma.",
    )

    def _passes(self, text: str) -> bool:
        return not _COMMA.search(text)

    def _evidence(self, text: str) -> str:
        found = _COMMA.search(text)
        if not found:
            return "Where it has a comma: nowhere."
        before = words(text[max(0, found.start() - 60) : found.start()])
        return f"Where it has a comma: {f'after {quote(before[-1])}' if before else 'in front'}."

    def _mends(self, text: str) -> Iterator[str]:
        yield _COMMA.sub("", text)

    def _spoils(self, text: str) -> Iterator[str]:
        joint = re.search(r"(?<=\w)(?= (?:and|but|so|because|which|where|or) )", text)
        places = [match.end() for match in WORD.finditer(text[:400])]
        if joint:
            yield f"{text[: joint.start()]},{text[joint.start() :]}"
        if len(places) > 1:
            cut = places[min(2, len(places) - 2)]
            yield f"{text[:cut]},{text[cut:]}"


@dataclass(frozen=True)
class AllLowercase(Constraint):
    """Every letter that has a case is small, and there is at least one."""

    kind = "all_lowercase"
    claims = frozenset({"case"})
    named = "Is all lowercase"
    asked = (
        "Write in lowercase letters only.",
        "Do not use any capital letters.",
        "Your whole answer must be in lowercase.",
    )

    def _passes(self, text: str) -> bool:
        return text.islower()

    def _evidence(self, text: str) -> str:
        return _odd_one(text, "capital", str.islower)

    def _mends(self, text: str) -> Iterator[str]:
        yield text.lower()

    def _spoils(self, text: str) -> Iterator[str]:
        first = WORD.search(text)
        if first:
            yield text[: first.start()] + capitalised(text[first.start() :])
            yield text.upper()


@dataclass(frozen=True)
class AllUppercase(Constraint):
    """Every letter that has a case is a capital, and there is at least one."""

    kind = "all_uppercase"
    claims = frozenset({"case"})
    named = "Is all uppercase"
    asked = (
        "Write in capital letters only.",
        "Use ALL CAPITALS.",
        "Your whole answer must be in uppercase.",
    )

    def _passes(self, text: str) -> bool:
        return text.isupper()

    def _evidence(self, text: str) -> str:
        return _odd_one(text, "small", str.isupper)

    def _mends(self, text: str) -> Iterator[str]:
        yield text.upper()

    def _spoils(self, text: str) -> Iterator[str]:
        found = list(WORD.finditer(text))
        if found and toss(text, 2) and len(found) > 1:
            yield text[: found[-1].start()] + text[found[-1].start() :].lower()
        yield capitalised(text.lower())
        yield text.lower()


def _odd_one(text: str, sort: str, fits: Callable[[str], bool]) -> str:
    """The first word with a letter of the wrong case."""
    for match in WORD.finditer(text):
        if any((c.islower() or c.isupper()) and not fits(c) for c in match.group()):
            return f"Words with {sort} letters: {quote(match.group())}."
    cased = any(c.islower() or c.isupper() for c in text)
    return f"Words with {sort} letters: none{'' if cased else ', nor any other letters'}."


@dataclass(frozen=True)
class CharSequence(Constraint):
    """The answer is one letter `count` times, capitals aside, and else only white space."""

    letter: str
    count: int
    kind = "char_sequence"
    standalone = True
    named = 'Exactly {count} of letter "{letter}"'
    asked = (
        'Generate {count} of letter "{letter}".',
        'Write the letter "{letter}" exactly {count:time}.',
        'Answer only with the letter "{letter}" repeated {count:time}.',
    )

    def __post_init__(self) -> None:
        fine = len(self.letter) == 1 and self.letter.isalpha()
        require(fine, f"{self.kind}: letter must be one letter, found {self.letter!r}")
        super().__post_init__()

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "CharSequence":
        return cls(rng.choice(values.letters), rng.randint(3, 20))

    def required_text(self) -> str:
        return self.letter

    def _is_letter(self, character: str) -> bool:
        return character.lower() == self.letter.lower()

    def _others(self, text: str) -> str:
        return "".join(c for c in text if not self._is_letter(c) and not c.isspace())

    def _passes(self, text: str) -> bool:
        return not self._others(text) and sum(map(self._is_letter, text)) == self.count

    def _evidence(self, text: str) -> str:
        others, found = self._others(text), sum(map(self._is_letter, text))
        also = quote(others[:12]) if others else "none"
        return f'It has {found} of "{self.letter}" and these other characters: {also}.'

    def _mends(self, text: str) -> Iterator[str]:
        others = self._others(text)
        kept = "".join(c for c in text if self._is_letter(c) or c.isspace()).split()
        run = "".join(kept)
        # Where most of the answer is something else, a fresh answer is no minimal edit.
        if len(run) > len(others):
            gap = " " if len(kept) == len(run) > 1 else ""
            yield gap.join((run + run[-1] * self.count)[: self.count])

    def _spoils(self, text: str) -> Iterator[str]:
        gap = " " if " " in text else ""
        off = 1 + toss(text, 3)
        if toss(text, 2) and self.count > off:
            shorter = "".join(text.split())[: self.count - off]
            yield gap.join(shorter)
        yield text + (gap + text[-1]) * off
