"""The requirement that goes without asking: that a reply is an answer at all.

A constraint is easily met by something that answers nothing: the phrase alone, a sentence said
over and over, the instruction read back, a text about something else. For requests that we compose
all of it can be checked, since their topic is known; for others what makes sense without one.

The rules are those of `faults`. This file knows the request as text; no other constraint, no model.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from .base import Requirement
from .text import WORD, around, clean, closed, head, quote, sentences, tail, toss, words

# Words that carry no content of their own.
_SMALL = frozenset({
    "a", "an", "the", "and", "or", "but", "so", "of", "in", "on", "at", "to", "for", "with", "by",
    "from", "as", "into", "about", "up", "out", "over", "than", "then", "is", "are", "was",
    "were", "be", "been", "being", "am", "do", "does", "did", "has", "have", "had", "can",
    "could", "will", "would", "should", "may", "might", "must", "it", "its", "this", "that",
    "these", "those", "there", "here", "he", "she", "they", "we", "you", "i", "me", "him", "her",
    "them", "us", "my", "your", "our", "their", "his", "not", "no", "yes", "if", "when", "while",
    "who", "what", "which", "how", "why", "all", "any", "some", "each", "every", "more", "most",
    "very", "just", "also", "too", "one", "like", "much", "near", "far", "next", "without",
})  # fmt: skip
# In a topic these describe; the thing itself is in the other words.
_DESCRIBING = frozenset({
    "lost", "old", "rainy", "small", "first", "quiet", "broken", "long", "wooden", "good", "busy",
    "warm", "red", "new", "hot", "black", "empty", "tall", "kind", "big", "crowded", "foggy",
    "lively", "family",
})  # fmt: skip
# What speaks of the answer, the instruction or the machine, and so not of the topic.
_TASK = re.compile(
    r"\b(?:(?:begin|start|open|end|finish|close)(?:s|ing)?\s+(?:your|my|the|this|an?)\s+(?:answer|"
    r"sentence|reply)|(?:your|my)\s+(?:whole\s+|entire\s+)?answer|the\s+(?:first|last)\s+words?|"
    r"(?:short|simple|one|an?)\s+sentence|as\s+an?\s+(?:ai|chatbot|assistant|language\s+model)|"
    r"helpful\s+(?:ai|assistant)|sorry\s+for\s+the\s+confusion)\b",
    re.IGNORECASE,
)
_ENDINGS = tuple(".!?\u2026\u3002\uff01\uff1f\"'\u201d\u2019)]}>*_|`")
_LIST_ITEM = re.compile(r"\s*(?:[-*\u2022+]|\d+[.)])\s+\S")
# A run of so many words said twice, or taken from the request, is no accident.
RUN = 6
# In requests of other people a refrain or a list may come back twice.
OFTEN = 3

FAULTS = ("off topic", "no words of its own", "says it twice", "speaks of the task", "cut off")


def _plain(text: str) -> tuple[str, ...]:
    """The words, small: what is left when a sentence is compared with another."""
    return tuple(word.lower() for word in words(text))


def _stem(word: str) -> str:
    """A word without its ending, good enough to find "foxes" for "fox", "swim" for "swimming"."""
    word = word.lower().removesuffix("'s").removesuffix("\u2019s")
    for ending, rest in (("ves", "f"), *((e, "") for e in ("ies", "ing", "es", "s", "e", "y"))):
        if word.endswith(ending) and len(word) - len(ending) > 1:
            word = word.removesuffix(ending) + rest
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl" else word


def looped(said: Sequence[str], times: int = 2) -> tuple[str, ...]:
    """The first run of words that is said ``times`` times in a row; () if there is none.

    One word alone may come twice ("very, very"), but not three times.
    """
    for size in range(1, len(said) // 2 + 1):
        wanted = max(times, 3) if size == 1 else times
        same = 0
        for place in range(len(said) - size):
            same = same + 1 if said[place] == said[place + size] else 0
            if same == size * (wanted - 1):
                end = place + size + 1
                return tuple(said[end - size : end])
    return ()


@dataclass(frozen=True)
class Answer(Requirement):
    """The text answers the request.

    ``required``: texts that other constraints demand; they are nothing of the answer's own.
    ``topic``: what the request is about, "" where that is not known.
    """

    request: str
    topic: str = ""
    required: tuple[str, ...] = ()
    kind: ClassVar[str] = "answer"

    def label(self) -> str:
        return f"An answer about {self.topic}" if self.topic else "An answer"

    def faults(self, text: str) -> tuple[str, ...]:
        """Which of ``FAULTS`` a text has; an empty text has the second."""
        text = clean(text)
        found = {
            "off topic": bool(self.topic) and self._spoken(text) is None,
            "no words of its own": not self._enough(text),
            "says it twice": bool(self._twice(text)),
            "speaks of the task": bool(self._echo(text)),
            "cut off": bool(self.topic) and not self._ends(text),
        }
        return tuple(name for name in FAULTS if found[name])

    def _passes(self, text: str) -> bool:
        return not self.faults(text)

    def _evidence(self, text: str) -> str:
        spoken = self._spoken(text) if self._enough(text) else None
        again = " ".join(self._twice(text) or self._echo(text))
        says = "nothing" if spoken is None else quote(around(text, spoken))
        if not self.topic:
            says = quote(head(text, 3)) if self._enough(text) else "nothing"
        return (
            f"it says {says}, twice or of the task {quote(again, 30) if again else 'nothing'}, "
            f"last {quote(tail(text, 1))}."
        )

    # --- The rules --------------------------------------------------------------------------------

    @cached_property
    def _topic_stems(self) -> frozenset[str]:
        content = [w for w in _plain(self.topic) if w not in _SMALL]
        return frozenset(map(_stem, [w for w in content if w not in _DESCRIBING] or content))

    @cached_property
    def _request_stems(self) -> frozenset[str]:
        return frozenset(map(_stem, _plain(" ".join((self.request, *self.required)))))

    @cached_property
    def _keywords(self) -> frozenset[str]:
        """The required texts that are single words, to be used in a sentence like any other."""
        return frozenset(w for w in self.required if len(words(w)) == 1 and w.islower())

    def _without_required(self, text: str) -> str:
        """The text without the required phrases; each ends a sentence, whatever mark it has."""
        for phrase in sorted(set(self.required) - self._keywords, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", " \n", text, flags=re.IGNORECASE)
        return text

    def _spoken(self, text: str) -> tuple[int, int] | None:
        """Where the text speaks of the topic: a word of it in a sentence that says something."""
        begin = 0
        for sentence in sentences(text):
            begin = text.index(sentence, begin)
            if len(words(self._without_required(sentence))) > 3:
                for match in WORD.finditer(sentence):
                    if _stem(match.group()) in self._topic_stems:
                        return begin + match.start(), begin + match.end()
            begin += len(sentence)
        return None

    def _own(self, text: str) -> list[str]:
        """The content words that neither the request nor a required text gave."""
        fresh = [
            word
            for word in words(self._without_required(text))
            if word.lower() not in _SMALL and _stem(word) not in self._request_stems
        ]
        return list(dict.fromkeys(fresh))

    def _enough(self, text: str) -> bool:
        if not self.topic:
            rest = _plain(self._without_required(text))
            return any(word not in self._keywords for word in rest)
        pieces = sentences(self._without_required(text))
        says = any(len(words(piece)) > 3 for piece in pieces)
        return says and len(self._own(text)) >= 2 and self._keywords_in_sentences(text)

    def _keywords_in_sentences(self, text: str) -> bool:
        """Whether each required word stands in a sentence: a lone "Star." is an appendix."""
        spoken = [_plain(sentence) for sentence in sentences(text)]
        return all(
            any(word in said and len(said) > 3 for said in spoken) or word not in _plain(text)
            for word in self._keywords
        )

    def _twice(self, text: str) -> tuple[str, ...]:
        """What is said twice: a sentence, a phrase in a row, or a long run of words anywhere."""
        times = 2 if self.topic else OFTEN
        said = [_plain(sentence) for sentence in sentences(text)]
        bare = [_plain(sentence) for sentence in sentences(self._without_required(text))]
        for pieces in (said, bare):
            for sentence in pieces:
                if pieces.count(sentence) >= times and (len(sentence) > 1 or self.topic):
                    return sentence
        flat = _plain(text)
        loops = [loop for sentence in said if (loop := looped(sentence, times))]
        # Where one sentence ends and the next begins, a word or two may well meet again.
        if len(across := looped(flat, times)) > 2:
            loops.append(across)
        if loops:
            return loops[0]
        if not self.topic:
            return ()
        for phrase in map(_plain, self.required):
            runs = _runs(flat, len(phrase))
            if len(phrase) > 1 and runs.count(phrase) > 1:
                return phrase
        runs = _runs(flat, RUN)
        return next((run for n, run in enumerate(runs) if run in runs[:n]), ())

    def _echo(self, text: str) -> tuple[str, ...]:
        """What speaks of the task: the request read back, in part or in its terms."""
        bare = self._without_required(text)
        asked = self._without_required(self.request)
        own = {plain for s in sentences(asked) if len(plain := _plain(s)) > 2}
        for sentence in sentences(bare):
            if _plain(sentence) in own:
                return _plain(sentence)
        runs = set(_runs(_plain(asked), RUN))
        if run := next((run for run in _runs(_plain(bare), RUN) if run in runs), ()):
            return run
        if not self.topic:
            return ()
        if found := _TASK.search(text):
            return _plain(found.group())
        for word in self.required:
            # 'The word "river" fits it well' speaks of the task, not of the topic.
            named = rf"\bwords?\s+(?:is\s+|for\s+it\s+is\s+)?[\"'\u201c]?{re.escape(word)}\b"
            if found := re.search(named, text, re.IGNORECASE):
                return _plain(found.group())
        return ()

    def _ends(self, text: str) -> bool:
        """Whether the text ends by itself, as far as it can be seen."""
        last = text.rsplit("\n", 1)[-1]
        if re.fullmatch(r"\s*\d+[.)]\s*", last):
            return False  # a list that stops
        wanted = any(_plain(text)[-len(p) :] == p for p in map(_plain, self.required) if p)
        return text.endswith(_ENDINGS) or bool(_LIST_ITEM.match(last)) or wanted

    # --- Edits ------------------------------------------------------------------------------------

    def _mends(self, text: str) -> Iterator[str]:
        pieces = sentences(text)
        said = [_plain(piece) for piece in pieces]
        yield " ".join(p for n, p in enumerate(pieces) if said[n] not in said[:n])
        if len(pieces) > 1:
            yield " ".join(pieces[:-1])  # one that was cut off, mostly

    def _spoils(self, text: str) -> Iterator[str]:
        """The ways of meeting a constraint without an answer, in an order that the text decides."""
        ways = list(self._thin(text))
        turn = toss(text, len(ways)) if ways else 0
        yield from ways[turn:] + ways[:turn]

    def _thin(self, text: str) -> Iterator[str]:
        pieces = sentences(text)
        phrase = next((p for p in self.required if len(words(p)) > 1), "")
        if pieces:
            yield " ".join([*pieces, pieces[toss(text, len(pieces))]])
            yield closed(" ".join([phrase or pieces[0]] * 2))
        asked = sentences(self.request)
        if asked:
            yield f"{closed(asked[toss(text, len(asked))])} {text}"
        if self.required:
            yield closed(self.required[0])
        if len(text) > 40:
            yield text[: text.rfind(" ", 0, 2 * len(text) // 3)].rstrip(".,;:!? ")


def _runs(said: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(said[n : n + size]) for n in range(len(said) - size + 1)] if size else []
