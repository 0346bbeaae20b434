"""Constraints on the marks an answer ends with or stands in: a question mark, quotes.

White space around the answer is ignored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint
from .text import WORD, closed, quote, sentence_spans, tail, toss

_QUESTIONS = ("What do you think?", "Do you agree?", "How about you?", "Have you ever tried?")
_ASK = "?\uff1f"
# Straight, opening and closing double quotes.
_QUOTES = '"\u201c\u201d'


@dataclass(frozen=True)
class EndsWithQuestion(Constraint):
    """The last character of the answer is a question mark."""

    kind = "ends_with_question"
    claims = frozenset({"end"})
    roomy = True
    named = "Ends with a question mark"
    asked = (
        "End your answer with a question.",
        "The last sentence of your answer must be a question.",
        "Finish with a question mark.",
    )

    def _passes(self, text: str) -> bool:
        return text[-1] in _ASK

    def _evidence(self, text: str) -> str:
        return f"The last words are {quote(tail(text, 3))}."

    def _mends(self, text: str) -> Iterator[str]:
        yield f"{closed(text)} {_QUESTIONS[toss(text, len(_QUESTIONS))]}"
        yield f"{text.rstrip('.!?')}?"

    def _spoils(self, text: str) -> Iterator[str]:
        spans = sentence_spans(text)
        if len(spans) > 1:
            yield text[: spans[-2][1]]
        yield f"{text.rstrip(_ASK)}."


@dataclass(frozen=True)
class Quoted(Constraint):
    """One pair of double quotes, straight or curly, around the whole answer; none inside."""

    kind = "quoted"
    claims = frozenset({"start", "end"})
    named = "The whole answer is in double quotes"
    asked = (
        "Put your whole answer in double quotes.",
        "Wrap your entire answer in double quote marks.",
        "Your answer must begin and end with a double quote mark.",
    )

    def _passes(self, text: str) -> bool:
        inside = text[1:-1]
        pair = text[0] + text[-1] in ('""', "\u201c\u201d") and bool(inside.strip())
        return pair and not any(mark in inside for mark in _QUOTES)

    def _evidence(self, text: str) -> str:
        others = sum(text[1:-1].count(mark) for mark in _QUOTES)
        inside = f", with {others} double quotes between" if others else ""
        empty = "" if WORD.search(text) else " and nothing else"
        return f"Its first character is {text[0]} and its last is {text[-1]}{inside}{empty}."

    def _mends(self, text: str) -> Iterator[str]:
        bare = re.sub(f"[{_QUOTES}]", "", text).strip()
        yield f'"{bare}"'

    def _spoils(self, text: str) -> Iterator[str]:
        yield (text[1:-1], text[:-1], text[1:])[toss(text, 3)]
