"""Constraints on what an answer begins and ends with.

White space around the answer is ignored and a run of it counts as one space; capitals count. A
phrase must stop at a word's end: "Wellington" does not begin with "Well".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint
from .text import (
    FILLERS,
    WORD,
    capitalised,
    closed,
    head,
    pick,
    quote,
    sentence_spans,
    squeeze,
    tail,
    toss,
    words,
)
from .values import VALUES

_GROWS_ON = re.compile(r"['\u2019-]?[^\W_]")
_FINAL_MARKS = ".!?"
# Words that begin a sentence with a capital only because they begin it.
_LOWERED = frozenset({
    "The", "A", "An", "It", "They", "This", "That", "These", "Those", "There", "He", "She", "We",
    "You", "My", "Your", "Our", "His", "Her", "Their", "Its", "Many", "Some", "Most", "Every",
    "All", "One", "In", "On", "At", "With", "For", "As", "When", "While", "If", "To", "From",
    "By", "People", "Here", "What", "How",
})  # fmt: skip


def _pattern(phrase: str) -> str:
    return r"\s+".join(re.escape(piece) for piece in phrase.split())


def _begins(text: str, phrase: str) -> bool:
    flat = squeeze(text)
    whole_word = not phrase[-1].isalnum() or not _GROWS_ON.match(flat, len(phrase))
    return flat.startswith(phrase) and whole_word


def _ends(text: str, phrase: str) -> bool:
    """A phrase without a final mark allows one: "The end" is met by "The end."."""
    flat = squeeze(text)
    if phrase[-1].isalnum() and flat.endswith(tuple(_FINAL_MARKS)):
        flat = flat[:-1]
    before = flat[: -len(phrase)]
    joined = before[-1:].isalnum() or (before[-1:] in tuple("'\u2019-") and before[-2:-1].isalnum())
    return flat.endswith(phrase) and not (phrase[0].isalnum() and joined)


def _first_words(text: str, phrase: str) -> str:
    """The phrase where the text begins with it, else as many words as it has."""
    return quote(phrase if _begins(text, phrase) else head(text, len(words(phrase))))


def _last_words(text: str, phrase: str) -> str:
    """The phrase where the text ends with it, else as many words as it has."""
    return quote(phrase if _ends(text, phrase) else tail(text, len(words(phrase))))


def _without_start(text: str, phrase: str) -> str:
    """The text after the phrase, with a capital."""
    found = re.match(_pattern(phrase) + r"[\s,:;.!?-]*", text)
    return capitalised(text[found.end() :]) if found else text


def _without_end(text: str, phrase: str) -> str:
    """The text before the phrase, closed with a full stop."""
    cuts = [found.start() for found in re.finditer(_pattern(phrase), text)]
    return closed(text[: cuts[-1]]) if cuts else text


@dataclass(frozen=True)
class StartsWith(Constraint):
    phrase: str
    claims = frozenset({"start"})
    case_bound = True
    drawn = ("starts",)
    required = "{phrase}"
    named = 'Begins with "{phrase}"'
    asked = (
        'Begin your answer with "{phrase}".',
        'Start your answer with the words "{phrase}".',
        'The first words of your answer must be "{phrase}".',
        'Open with "{phrase}".',
    )

    def _look(self, text: str) -> tuple[bool, str]:
        return _begins(text, self.phrase), f"The first words are {_first_words(text, self.phrase)}."

    def _joined_to(self, rest: str) -> str:
        # A colon reads well after any phrase and, unlike a comma, breaks no other constraint.
        mark = ":" if self.phrase[-1].isalnum() else ""
        return f"{self.phrase}{mark}{chr(10) if rest.startswith(('- ', '{')) else ' '}{rest}"

    def _mends(self, text: str) -> Iterator[str]:
        if text[: len(self.phrase)].lower() == self.phrase.lower():
            yield self.phrase + text[len(self.phrase) :]
        for other in sorted(VALUES.starts, key=len, reverse=True):
            if text.startswith(other + ":"):
                yield self._joined_to(text[len(other) + 1 :].lstrip())
        first = WORD.match(text)
        if first and first.group() in _LOWERED and self.phrase[-1].isalnum():
            # As the beginning of the first sentence: "Once upon a time, the sea ...".
            yield f"{self.phrase}, {text[0].lower()}{text[1:]}"
        yield self._joined_to(text)

    def _spoils(self, text: str) -> Iterator[str]:
        rest = _without_start(text, self.phrase)
        if WORD.search(rest):
            if toss(text, 3) == 0:
                yield StartsWith(pick(VALUES.starts, text + "start"))._joined_to(rest)
            yield rest


@dataclass(frozen=True)
class EndsWith(Constraint):
    """The answer ends with exactly this phrase; one final mark may follow a bare phrase."""

    phrase: str
    claims = frozenset({"end"})
    case_bound = True
    roomy = True
    drawn = ("ends",)
    required = "{phrase}"
    named = 'Ends with "{phrase}"'
    asked = (
        'End your answer with "{phrase}".',
        'Finish with the words "{phrase}".',
        'The last words of your answer must be "{phrase}".',
        'Close your answer with "{phrase}".',
    )

    def _look(self, text: str) -> tuple[bool, str]:
        return _ends(text, self.phrase), f"The last words are {_last_words(text, self.phrase)}."

    def _added_to(self, text: str) -> str:
        return f"{closed(text)} {self.phrase}{'.' if self.phrase[-1].isalnum() else ''}"

    def _mends(self, text: str) -> Iterator[str]:
        body, bare = text.rstrip(_FINAL_MARKS), self.phrase.rstrip(_FINAL_MARKS)
        if body.lower().endswith(bare.lower()):
            yield body[: -len(bare)] + self.phrase
        for other in VALUES.ends:
            if text.endswith((f" {other}", f" {other}.")):
                yield self._added_to(_without_end(text, other))
        yield self._added_to(text)

    def _spoils(self, text: str) -> Iterator[str]:
        rest = _without_end(text, self.phrase)
        if WORD.search(rest):
            if toss(text, 3) == 0:
                yield EndsWith(pick(VALUES.ends, text + "end"))._added_to(rest)
            yield rest


@dataclass(frozen=True)
class StoryBookends(Constraint):
    """The answer begins with one given sentence, ends with another and has words between."""

    first: str
    last: str
    claims = frozenset({"start", "end", "layout"})
    case_bound = True
    roomy = True
    drawn = ("openings", "closings")
    required = "{first} {last}"
    named = 'Begins with "{first}" and ends with "{last}"'
    asked = (
        'Start the story with "{first}" and end it with "{last}"',
        'The first sentence must be "{first}" and the last must be "{last}"',
        'Begin with the sentence "{first}" and finish with "{last}"',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("first", self.first), ("last", self.last)):
            self._require(value[-1] in _FINAL_MARKS, f"{name} must end with . ! or ?")

    def _look(self, text: str) -> tuple[bool, str]:
        between = WORD.search(squeeze(text)[len(self.first) : -len(self.last)])
        shown = f"{_first_words(text, self.first)} and the last are {_last_words(text, self.last)}"
        passes = _begins(text, self.first) and _ends(text, self.last) and bool(between)
        return passes, f"The first words are {shown}{'' if between else ', with nothing between'}."

    def _mends(self, text: str) -> Iterator[str]:
        started = text if _begins(text, self.first) else f"{self.first} {text}"
        yield started if _ends(started, self.last) else f"{closed(started)} {self.last}"
        yield f"{closed(started)} {self.last}"

    def _spoils(self, text: str) -> Iterator[str]:
        cuts = (_without_start(text, self.first), _without_end(text, self.last))
        yield from cuts if toss(text, 2) else cuts[::-1]


_QUESTIONS = ("What do you think?", "Do you agree?", "How about you?", "Have you ever tried?")
_ASK = "?\uff1f"


class EndsWithQuestion(Constraint):
    """The last character of the answer is a question mark."""

    claims = frozenset({"end"})
    roomy = True
    named = "Ends with a question mark"
    asked = (
        "End your answer with a question.",
        "The last sentence of your answer must be a question.",
        "Finish with a question mark.",
    )

    def _look(self, text: str) -> tuple[bool, str]:
        return text[-1] in _ASK, f"The last words are {quote(tail(text, 3))}."

    def _mends(self, text: str) -> Iterator[str]:
        yield f"{closed(text)} {pick(_QUESTIONS, text)}"
        yield f"{text.rstrip('.!?')}?"

    def _spoils(self, text: str) -> Iterator[str]:
        spans = sentence_spans(text)
        if len(spans) > 1:
            yield text[: spans[-2][1]]
        yield f"{text.rstrip(_ASK)}."


_POSTSCRIPT = re.compile(r"P\.S\. ?\S")


class Postscript(Constraint):
    claims = frozenset({"end"})
    case_bound = True
    roomy = True
    required = "P.S."
    least = 6
    named = 'Ends with a postscript "P.S."'
    asked = (
        'Add a postscript at the end that begins with "P.S.".',
        'Close with a line that starts with "P.S.".',
        'Your answer must end with a postscript, "P.S." and a few words.',
    )

    def _look(self, text: str) -> tuple[bool, str]:
        last = text.rpartition("\n")[2]
        return bool(_POSTSCRIPT.match(last)), f"The last line begins with {quote(head(last, 4))}."

    def _mends(self, text: str) -> Iterator[str]:
        place = text.rfind("P.S.")
        if place > 0 and WORD.search(text[place + 4 :]):
            yield f"{text[:place].rstrip()}\nP.S. {text[place + 4 :].strip()}"
        yield f"{closed(text)}\nP.S. {pick(FILLERS, text)}"

    def _spoils(self, text: str) -> Iterator[str]:
        before, _, last = text.rpartition("\n")
        rest = last.removeprefix("P.S.").strip()
        yield before.strip() if toss(text, 2) else f"{before}\n{rest}".strip()
        yield f"{before}\n{rest}".strip()
