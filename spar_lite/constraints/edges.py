"""Constraints on the words that an answer begins and ends with.

White space around the answer is ignored and a run of it counts as one space; capitals count. A
phrase must stop at a word's end: "Wellington" does not begin with "Well".
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint, require
from .text import WORD, capitalised, closed, head, quote, squeeze, tail, toss, words
from .values import VALUES, Values

_GROWS_ON = re.compile(r"['\u2019-]?[^\W_]")
_FINAL_MARKS = ".!?"
# Words that begin a sentence with a capital only because they begin it.
_LOWERED = frozenset({
    "The", "A", "An", "It", "They", "This", "That", "These", "Those", "There", "He", "She", "We",
    "You", "My", "Your", "Our", "His", "Her", "Their", "Its", "Many", "Some", "Most", "Every",
    "All", "One", "In", "On", "At", "With", "For", "As", "When", "While", "If", "To", "From",
    "By", "People", "Here", "What", "How",
})  # fmt: skip


def require_phrase(kind: str, name: str, phrase: str) -> None:
    fine = bool(WORD.search(phrase)) and phrase == squeeze(phrase) and '"' not in phrase
    rule = "needs a word, single spaces and no double quotes"
    require(fine, f"{kind}: {name} {rule}, found {phrase!r}")


def _pattern(phrase: str) -> str:
    return r"\s+".join(re.escape(piece) for piece in phrase.split())


def begins(text: str, phrase: str) -> bool:
    flat = squeeze(text)
    whole_word = not phrase[-1].isalnum() or not _GROWS_ON.match(flat, len(phrase))
    return flat.startswith(phrase) and whole_word


def ends(text: str, phrase: str) -> bool:
    """A phrase without a final mark allows one: "The end" is met by "The end."."""
    flat = squeeze(text)
    if phrase[-1].isalnum() and flat.endswith(tuple(_FINAL_MARKS)):
        flat = flat[:-1]
    before = flat[: -len(phrase)]
    joined = before[-1:].isalnum() or (before[-1:] in tuple("'\u2019-") and before[-2:-1].isalnum())
    return flat.endswith(phrase) and not (phrase[0].isalnum() and joined)


def first_words(text: str, phrase: str) -> str:
    """The phrase where the text begins with it, else as many words as it has."""
    return phrase if begins(text, phrase) else head(text, len(words(phrase)))


def last_words(text: str, phrase: str) -> str:
    """The phrase where the text ends with it, else as many words as it has."""
    return phrase if ends(text, phrase) else tail(text, len(words(phrase)))


def without_start(text: str, phrase: str) -> str:
    """The text after the phrase, with a capital."""
    found = re.match(_pattern(phrase) + r"[\s,:;.!?-]*", text)
    return capitalised(text[found.end() :]) if found else text


def without_end(text: str, phrase: str) -> str:
    """The text before the phrase, closed with a full stop."""
    cuts = [found.start() for found in re.finditer(_pattern(phrase), text)]
    return closed(text[: cuts[-1]]) if cuts else text


@dataclass(frozen=True)
class StartsWith(Constraint):
    """The answer begins with exactly this phrase."""

    phrase: str
    kind = "starts_with"
    claims = frozenset({"start"})
    case_bound = True
    named = 'Begins with "{phrase}"'
    asked = (
        'Begin your answer with "{phrase}".',
        'Start your answer with the words "{phrase}".',
        'The first words of your answer must be "{phrase}".',
        'Open with "{phrase}".',
    )

    def __post_init__(self) -> None:
        require_phrase(self.kind, "phrase", self.phrase)

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "StartsWith":
        return cls(rng.choice(values.starts))

    def required_text(self) -> str:
        return self.phrase

    def _passes(self, text: str) -> bool:
        return begins(text, self.phrase)

    def _evidence(self, text: str) -> str:
        return f"The first words are {quote(first_words(text, self.phrase))}."

    def _joined_to(self, rest: str) -> str:
        # A colon reads well after any phrase and, unlike a comma, breaks no other constraint.
        mark = ":" if self.phrase[-1].isalnum() else ""
        return f"{self.phrase}{mark}{chr(10) if rest.startswith(('- ', '{')) else ' '}{rest}"

    def _led_into(self, text: str) -> str:
        """The phrase as the beginning of the first sentence: "Once upon a time, the sea ..."."""
        first = WORD.match(text)
        if not first or first.group() not in _LOWERED or not self.phrase[-1].isalnum():
            return text
        return f"{self.phrase}, {text[0].lower()}{text[1:]}"

    def _mends(self, text: str) -> Iterator[str]:
        if text[: len(self.phrase)].lower() == self.phrase.lower():
            yield self.phrase + text[len(self.phrase) :]
        for other in sorted(VALUES.starts, key=len, reverse=True):
            if text.startswith(other + ":"):
                yield self._joined_to(text[len(other) + 1 :].lstrip())
        yield self._led_into(text)
        yield self._joined_to(text)

    def _spoils(self, text: str) -> Iterator[str]:
        rest = without_start(text, self.phrase)
        if WORD.search(rest):
            if toss(text, 3) == 0:
                other = VALUES.starts[toss(text + "start", len(VALUES.starts))]
                yield StartsWith(other)._joined_to(rest)
            yield rest


@dataclass(frozen=True)
class EndsWith(Constraint):
    """The answer ends with exactly this phrase; one final mark may follow a bare phrase."""

    phrase: str
    kind = "ends_with"
    claims = frozenset({"end"})
    case_bound = True
    roomy = True
    named = 'Ends with "{phrase}"'
    asked = (
        'End your answer with "{phrase}".',
        'Finish with the words "{phrase}".',
        'The last words of your answer must be "{phrase}".',
        'Close your answer with "{phrase}".',
    )

    def __post_init__(self) -> None:
        require_phrase(self.kind, "phrase", self.phrase)

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "EndsWith":
        return cls(rng.choice(values.ends))

    def required_text(self) -> str:
        return self.phrase

    def _passes(self, text: str) -> bool:
        return ends(text, self.phrase)

    def _evidence(self, text: str) -> str:
        return f"The last words are {quote(last_words(text, self.phrase))}."

    def _added_to(self, text: str) -> str:
        return f"{closed(text)} {self.phrase}{'.' if self.phrase[-1].isalnum() else ''}"

    def _mends(self, text: str) -> Iterator[str]:
        if text.rstrip(_FINAL_MARKS).lower().endswith(self.phrase.rstrip(_FINAL_MARKS).lower()):
            size = len(self.phrase.rstrip(_FINAL_MARKS))
            yield text.rstrip(_FINAL_MARKS)[:-size] + self.phrase
        for other in VALUES.ends:
            if text.endswith((f" {other}", f" {other}.")):
                yield self._added_to(without_end(text, other))
        yield self._added_to(text)

    def _spoils(self, text: str) -> Iterator[str]:
        rest = without_end(text, self.phrase)
        if WORD.search(rest):
            if toss(text, 3) == 0:
                yield EndsWith(VALUES.ends[toss(text + "end", len(VALUES.ends))])._added_to(rest)
            yield rest


@dataclass(frozen=True)
class StoryBookends(Constraint):
    """The answer begins with one given sentence, ends with another and has words between."""

    first: str
    last: str
    kind = "story_bookends"
    claims = frozenset({"start", "end", "layout"})
    case_bound = True
    roomy = True
    named = 'Begins with "{first}" and ends with "{last}"'
    asked = (
        'Start the story with "{first}" and end it with "{last}"',
        'The first sentence must be "{first}" and the last must be "{last}"',
        'Begin with the sentence "{first}" and finish with "{last}"',
    )

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            require_phrase(self.kind, name, getattr(self, name))
            fine = getattr(self, name).endswith(tuple(_FINAL_MARKS))
            require(fine, f"{self.kind}: {name} must end with . ! or ?")

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "StoryBookends":
        return cls(rng.choice(values.openings), rng.choice(values.closings))

    def required_text(self) -> str:
        return f"{self.first} {self.last}"

    def _passes(self, text: str) -> bool:
        return begins(text, self.first) and ends(text, self.last) and self._has_more(text)

    def _has_more(self, text: str) -> bool:
        """Whether there are words between the two sentences."""
        return bool(WORD.search(squeeze(text)[len(self.first) : -len(self.last)]))

    def _evidence(self, text: str) -> str:
        begin, end = first_words(text, self.first), last_words(text, self.last)
        nothing = "" if self._has_more(text) else ", with nothing between"
        return f"The first words are {quote(begin)} and the last are {quote(end)}{nothing}."

    def _mends(self, text: str) -> Iterator[str]:
        started = text if begins(text, self.first) else f"{self.first} {text}"
        yield started if ends(started, self.last) else f"{closed(started)} {self.last}"
        yield f"{closed(started)} {self.last}"

    def _spoils(self, text: str) -> Iterator[str]:
        cuts = (without_start(text, self.first), without_end(text, self.last))
        yield from cuts if toss(text, 2) else cuts[::-1]
