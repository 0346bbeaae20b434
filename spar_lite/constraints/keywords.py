"""Constraints on single words: include, leave out, repeat.

A keyword is matched as a whole word, capitals aside: "River's" and "river-bank" hold "river",
"rivers" does not.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint, require
from .text import (
    WORD,
    around,
    capitalised,
    enumerated,
    sentence_spans,
    spliced,
    toss,
    where,
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


def require_word(kind: str, word: str) -> None:
    require(bool(WORD.fullmatch(word)), f"{kind}: word must be one word, found {word!r}")


def hits(text: str, word: str) -> list[re.Match[str]]:
    pattern = rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
    return list(re.finditer(pattern, text, re.IGNORECASE))


def _places(text: str, word: str) -> str:
    found = hits(text, word)
    return f'Where it says "{word}": {where(text, found[0].span() if found else None)}.'


def _dressed(word: str, like: str) -> str:
    """The word with the capitals of the one it replaces."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return capitalised(word) if like[:1].isupper() else word


def _swapped(text: str, found: list[re.Match[str]], new: str) -> str:
    pieces, begin = [], 0
    for match in found:
        pieces += [text[begin : match.start()], _dressed(new, match.group())]
        begin = match.end()
    return "".join([*pieces, text[begin:]])


def _without(text: str, found: list[re.Match[str]]) -> str:
    """The text without these matches; a capital moves on to the next word."""
    for match in reversed(found):
        before, after = text[: match.start()], text[match.end() :]
        if match.group()[:1].isupper():
            text = before + capitalised(after.lstrip(" ,"))
        else:
            text = before.rstrip(" ") + after if before.strip() else after.lstrip()
    return text.strip()


def _with_others(text: str, found: list[re.Match[str]], word: str) -> Iterator[str]:
    """The text with these matches as another word of the same sort, or left out."""
    for turn in range(3):
        new = VALUES.swap(word, toss(text, 97) + turn)
        if new is not None:
            yield _swapped(text, found, new)
    if len(found) <= _FEW:
        yield _without(text, found)


def _with_word(text: str, word: str, turn: int = 0) -> Iterator[str]:
    """The text with a word more, where it reads as if it had been meant.

    An adjective goes before a noun; a noun joins the end of a sentence, the first one if the end
    of the answer may be spoken for.
    """
    places = list(_DETERMINER.finditer(text)) if word not in VALUES.nouns else []
    if places:
        found = places[(toss(text, len(places)) + turn) % len(places)]
        article = found.group()
        if article in ("a", "an"):
            article = "an" if word[0] in "aeiou" else "a"
        yield f"{text[: found.start()]}{article} {word}{text[found.end() :]}"
    joint = _JOINTS[(toss(text + word, len(_JOINTS)) + turn) % len(_JOINTS)].format(word=word)
    spans = sentence_spans(text)
    for begin, end in spans[(turn % len(spans)) if spans else 0 :][:1] or [(0, len(text))]:
        yield text[:begin] + spliced(text[begin:end], joint) + text[end:]
    yield spliced(text, joint)


@dataclass(frozen=True)
class KeywordInclude(Constraint):
    """The answer holds this word at least once."""

    word: str
    kind = "keyword_include"
    named = 'Uses the word "{word}"'
    asked = (
        'Use the word "{word}".',
        'Include the word "{word}" in your answer.',
        'Your answer must contain the word "{word}".',
    )

    def __post_init__(self) -> None:
        require_word(self.kind, self.word)

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "KeywordInclude":
        return cls(values.keyword(rng))

    def required_text(self) -> str:
        return self.word

    def _passes(self, text: str) -> bool:
        return bool(hits(text, self.word))

    def _evidence(self, text: str) -> str:
        return _places(text, self.word)

    def _mends(self, text: str) -> Iterator[str]:
        yield from _with_word(text, self.word)

    def _spoils(self, text: str) -> Iterator[str]:
        yield from _with_others(text, hits(text, self.word), self.word)


@dataclass(frozen=True)
class KeywordExclude(Constraint):
    """The answer does not hold this word."""

    word: str
    kind = "keyword_exclude"
    named = 'Does not use the word "{word}"'
    asked = (
        'Do not use the word "{word}".',
        'Avoid the word "{word}".',
        'Your answer must not contain the word "{word}".',
    )

    def __post_init__(self) -> None:
        require_word(self.kind, self.word)

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "KeywordExclude":
        return cls(rng.choice(values.avoided))

    def _passes(self, text: str) -> bool:
        return not hits(text, self.word)

    def _evidence(self, text: str) -> str:
        return _places(text, self.word)

    def _mends(self, text: str) -> Iterator[str]:
        found = hits(text, self.word)
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
class KeywordFrequency(Constraint):
    """The answer holds this word at least `count` times."""

    word: str
    count: int
    kind = "keyword_frequency"
    roomy = True
    named = 'Uses "{word}" at least {count:time}'
    asked = (
        'Use the word "{word}" at least {count:time}.',
        'The word "{word}" must appear {count:time} or more.',
        'Repeat the word "{word}" so that it occurs at least {count:time}.',
    )

    def __post_init__(self) -> None:
        require_word(self.kind, self.word)
        super().__post_init__()

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "KeywordFrequency":
        return cls(values.keyword(rng), rng.randint(2, 3))

    def required_text(self) -> str:
        return self.word

    def least_words(self) -> int:
        return 3 * self.count

    def _passes(self, text: str) -> bool:
        return len(hits(text, self.word)) >= self.count

    def _evidence(self, text: str) -> str:
        found = hits(text, self.word)
        shown = [around(text, match.span()) for match in found]
        return f'Where it says "{self.word}": {enumerated(shown, "time", whole=True)}.'

    def _mends(self, text: str) -> Iterator[str]:
        missing = self.count - len(hits(text, self.word))
        if missing <= _MOST_MISSING:
            for turn in range(missing):
                text = next(_with_word(text, self.word, turn))
            yield text

    def _spoils(self, text: str) -> Iterator[str]:
        yield from _with_others(text, hits(text, self.word)[self.count - 1 :], self.word)
