"""Constraints on single characters: commas, digits, capitals, quotes, one letter repeated."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .base import Constraint
from .text import WORD, capitalised, quote, toss, where, with_sentence, words

_COMMA = re.compile("[,\uff0c]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class NoCommas(Constraint):
    """The answer has no comma, ASCII or full-width."""

    named = "Has no commas"
    asked = (
        "Do not use any commas.",
        "Write without commas.",
        "Your answer must not contain a comma.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        found = _COMMA.search(text)
        before = words(text[max(0, found.start() - 60) : found.start()]) if found else []
        place = f"after {quote(before[-1])}" if before else "in front" if found else "nowhere"
        return not found, f"Where it has a comma: {place}."

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


def _with_number(text: str) -> str:
    return with_sentence(text, f"There are {2 + toss(text, 8)} reasons for it.")


class NoDigits(Constraint):
    claims = frozenset({"digits"})
    named = "Has no digits"
    asked = (
        "Do not use any digits.",
        "Your answer must not contain digits.",
        "Write without a single digit.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        span = next(((n, n + 1) for n, letter in enumerate(text) if letter.isdigit()), None)
        return span is None, f"Where it has a digit: {where(text, span)}."

    def _mends(self, text: str) -> Iterator[str]:
        yield _NUMBER.sub("some", text)

    def _spoils(self, text: str) -> Iterator[str]:
        yield _with_number(text)


class HasNumber(Constraint):
    claims = frozenset({"digits"})
    named = "Has a number in digits"
    asked = (
        "Use at least one number, written in digits.",
        "Your answer must contain a number in digits, such as 7.",
        "Include a number such as 12, in digits.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        found = _NUMBER.search(text)
        return bool(found), f"Where it has a digit: {where(text, found and found.span())}."

    def _mends(self, text: str) -> Iterator[str]:
        yield _with_number(text)

    def _spoils(self, text: str) -> Iterator[str]:
        yield _NUMBER.sub("some", text)


def _letters_of(text: str, sort: str, are_such: Callable[[str], bool]) -> str:
    """The first word with letters of a case, as evidence."""
    found = next((quote(word) for word in words(text) if any(map(are_such, word))), "")
    cased = any(c.islower() or c.isupper() for c in text)
    nothing = "none" if cased else "none, nor any other letters"
    return f"Words with {sort} letters: {found or nothing}."


class AllLowercase(Constraint):
    """Every letter that has a case is small, and there is at least one."""

    claims = frozenset({"case"})
    named = "Is all lowercase"
    asked = (
        "Write in lowercase letters only.",
        "Do not use any capital letters.",
        "Your whole answer must be in lowercase.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        return text.islower(), _letters_of(text, "capital", str.isupper)

    def _mends(self, text: str) -> Iterator[str]:
        yield text.lower()

    def _spoils(self, text: str) -> Iterator[str]:
        first = WORD.search(text)
        if first:
            yield text[: first.start()] + capitalised(text[first.start() :])
            yield text.upper()


class AllUppercase(Constraint):
    """Every letter that has a case is a capital, and there is at least one."""

    claims = frozenset({"case"})
    named = "Is all uppercase"
    asked = (
        "Write in capital letters only.",
        "Use ALL CAPITALS.",
        "Your whole answer must be in uppercase.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        return text.isupper(), _letters_of(text, "small", str.islower)

    def _mends(self, text: str) -> Iterator[str]:
        yield text.upper()

    def _spoils(self, text: str) -> Iterator[str]:
        found = list(WORD.finditer(text))
        if found and toss(text, 2) and len(found) > 1:
            yield text[: found[-1].start()] + text[found[-1].start() :].lower()
        yield capitalised(text.lower())
        yield text.lower()


# Straight, opening and closing double quotes.
_QUOTES = '"\u201c\u201d'


class Quoted(Constraint):
    """One pair of double quotes, straight or curly, around the whole answer; none inside."""

    claims = frozenset({"start", "end"})
    named = "The whole answer is in double quotes"
    asked = (
        "Put your whole answer in double quotes.",
        "Wrap your entire answer in double quote marks.",
        "Your answer must begin and end with a double quote mark.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        inside = text[1:-1]
        others = sum(inside.count(mark) for mark in _QUOTES)
        pair = text[0] + text[-1] in ('""', "\u201c\u201d") and bool(inside.strip())
        more = f", with {others} double quotes between" if others else ""
        empty = "" if WORD.search(text) else " and nothing else"
        shown = f"Its first character is {text[0]} and its last is {text[-1]}{more}{empty}."
        return pair and not others, shown

    def _mends(self, text: str) -> Iterator[str]:
        bare = re.sub(f"[{_QUOTES}]", "", text).strip()
        yield f'"{bare}"'

    def _spoils(self, text: str) -> Iterator[str]:
        yield (text[1:-1], text[:-1], text[1:])[toss(text, 3)]


@dataclass(frozen=True)
class CharSequence(Constraint):
    """The answer is one letter `count` times, capitals aside, and else only white space."""

    letter: str
    count: int
    standalone = True
    drawn = ("letters", (3, 20))
    required = "{letter}"
    named = 'Exactly {count} of letter "{letter}"'
    asked = (
        'Generate {count} of letter "{letter}".',
        'Write the letter "{letter}" exactly {count:time}.',
        'Answer only with the letter "{letter}" repeated {count:time}.',
    )

    def _run_and_others(self, text: str) -> tuple[str, str]:
        """The text's characters that are the letter, and those that are not; no white space."""
        solid = "".join(text.split())
        run = "".join(c for c in solid if c.lower() == self.letter.lower())
        return run, "".join(c for c in solid if c.lower() != self.letter.lower())

    def _look(self, text: str) -> tuple[bool, str]:
        run, others = self._run_and_others(text)
        also = quote(others[:12]) if others else "none"
        shown = f'It has {len(run)} of "{self.letter}" and these other characters: {also}.'
        return len(run) == self.count and not others, shown

    def _mends(self, text: str) -> Iterator[str]:
        run, others = self._run_and_others(text)
        # Where most of the answer is something else, a fresh answer is no minimal edit.
        if len(run) > len(others):
            kept = "".join(c for c in text if c not in others).split()
            gap = " " if len(kept) == len(run) > 1 else ""
            yield gap.join((run + run[-1] * self.count)[: self.count])

    def _spoils(self, text: str) -> Iterator[str]:
        gap = " " if " " in text else ""
        off = 1 + toss(text, 3)
        if toss(text, 2) and self.count > off:
            shorter = "".join(text.split())[: self.count - off]
            yield gap.join(shorter)
        yield text + (gap + text[-1]) * off
