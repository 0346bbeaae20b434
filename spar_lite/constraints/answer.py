"""The requirement that goes without asking: that a reply is an answer at all.

A constraint is easily met by something that answers nothing: the phrase alone, a sentence said
over and over, the instruction read back, a text about something else. For requests that we compose
all of it can be checked, since their topic is known; for others what makes sense without one.

The rules are those of `faults`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import ne

from .base import Requirement
from .text import (
    DANGLING,
    WORD,
    Span,
    around,
    capitalised,
    clean,
    closed,
    head,
    pick,
    quote,
    sentence_spans,
    sentences,
    tail,
    toss,
    words,
)

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
    "where", "between",
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
    r"sentence|reply)|(?:your|my)\s+(?:whole\s+|entire\s+)?(?:answer|sentence)|"
    r"the\s+(?:first|last)\s+words?\s+(?:of|are|is|must)|"
    r"(?:short|simple|one|an?)\s+sentence\s+(?:about|that|for|could|is|with|using)|"
    r"in\s+(?:one|two|one\s+or\s+two)\s+sentences?|in\s+this\s+context|"
    r"(?:this|the|these)\s+(?:reply|replies|instructions?|requirements?)|you\s+(?:requested|asked)|"
    r"(?:cannot|can't|can\u2019t|could\s+not|unable\s+to|not\s+able\s+to)\s+(?:write|help|answer|"
    r"provide|fulfil|assist|share)|as\s+an?\s+(?:ai|chatbot|assistant|language\s+model)|"
    r"helpful\s+(?:ai|assistant)|sorry\s+for\s+the\s+confusion)\b",
    re.IGNORECASE,
)
# After a short sentence that names the topic these go on with it.
_PRONOUNS = frozenset({"it", "its", "they", "their", "them", "she", "he", "her", "his", "these"})
_UNUSUAL = {"buses": "bus", "theatre": "theater", "theatres": "theater", "feet": "foot"}
_TITLE = re.compile(r"^\s*(?:<<|\u2039)[^\n]*(?:>>|\u203a)[^\S\n]*$", re.MULTILINE)
_LIST_ITEM = re.compile(r"\s*(?:[-*\u2022+]|\d+[.)])\s+\S")
# A run of so many words said twice on one line, or taken from the request, is no accident.
RUN = 6
# A text that goes round in circles does so this often at least, for so many words, to its end.
ROUNDS, CIRCLE = 3, 9
# "Creative and creative"; "miles and miles", "deeper and deeper", "ran and ran" are English.
_SINGLE = r"\b(?!through|around)(\w{6,}(?<!s)(?<!e[rd])(?<!ing))\b"
_AND_AGAIN = re.compile(rf"{_SINGLE} and \1\b", re.IGNORECASE)
# No circle is looked for that is longer: one is found early or not at all.
LONGEST = 40

FAULTS = ("off topic", "no words of its own", "says it twice", "speaks of the task", "cut off")


def _plain(text: str) -> tuple[str, ...]:
    """The words, small: what is left when a sentence is compared with another."""
    return tuple(word.lower() for word in words(text))


def _stem(word: str) -> str:
    """A word without its ending, good enough to find "foxes" for "fox", "swim" for "swimming"."""
    word = word.lower().removesuffix("'s").removesuffix("\u2019s")
    word = _UNUSUAL.get(word, word)
    if len(word) <= 3:
        return word
    if word.endswith(("ies", "ves")):
        word = word[:-3] + ("y" if word.endswith("ies") else "f")
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    elif word.endswith("men"):
        word = word[:-3] + "man"
    if word.endswith("ing") and len(word) > 5:
        word = word[:-3]
    if len(word) > 3 and word[-1] in "ey":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl" else word


def looped(said: Sequence[str]) -> tuple[str, ...]:
    """The first run of words that is said twice in a row; () if there is none.

    One or two words ("quack, quack, quack") may come three times, and figures as they like.
    """
    for size in range(1, min(len(said) // 2, LONGEST) + 1):
        wanted = 1 if size > 2 else 3  # times more
        same = 0
        for place in range(len(said) - size):
            same = same + 1 if said[place] == said[place + size] else 0
            if same == size * wanted:
                run = tuple(said[place + 1 : place + size + 1])
                if not all(word.isdigit() for word in run):
                    return run
    return ()


def _circle(said: Sequence[str]) -> tuple[str, ...]:
    """What a text goes round in circles with until its end; () if it does not."""
    for size in range(1, min(len(said) // ROUNDS, LONGEST) + 1):
        end = said[-size * max(ROUNDS, math.ceil(CIRCLE / size)) :]
        if len(end) >= CIRCLE and all(word == end[n % size] for n, word in enumerate(end)):
            return tuple(end[:size])
    return ()


def _goes_on(text: str, span: Span) -> bool:
    """Whether a sentence speaks of what the one before it named."""
    sentence = _plain(text[span[0] : span[1]])
    listed = _LIST_ITEM.match(text[text.rfind("\n", 0, span[0]) + 1 : span[1]])
    return len(sentence) > 2 and bool(_PRONOUNS & set(sentence) or listed)


@dataclass(frozen=True)
class Answer(Requirement):
    """The text answers the request.

    ``required``: texts that other constraints demand; they are nothing of the answer's own.
    ``topic``: what the request is about, "" where that is not known.
    """

    request: str
    topic: str = ""
    required: tuple[str, ...] = ()

    def is_phrase(self, text: str) -> bool:
        """Whether a text is a required phrase and nothing more."""
        return any(_plain(text) == _plain(phrase) for phrase in self.required)

    def label(self) -> str:
        return f"An answer about {self.topic}" if self.topic else "An answer"

    def faults(self, text: str) -> tuple[str, ...]:
        """Which of ``FAULTS`` a text has; an empty text has the second, and the first if it can."""
        return self._read(clean(text))[0]

    def _look(self, text: str) -> tuple[bool, str]:
        faults, evidence = self._read(text)
        return not faults, evidence

    def _read(self, text: str) -> tuple[tuple[str, ...], str]:
        """The faults of a clean text, and the evidence."""
        spoken, enough = self._spoken(text), self._enough(text)
        twice, echo = self._twice(text), self._echo(text)
        off = bool(self.topic) and spoken is None
        cut = bool(self.topic and text) and not self._ends(text)
        found = zip(FAULTS, (off, not enough, bool(twice), bool(echo), cut), strict=True)
        shown = around(text, spoken) if spoken else "" if self.topic else head(text, 3)
        says = quote(shown) if shown and enough else "nothing"
        again = quote(" ".join(twice or echo), 30) if twice or echo else "nothing"
        return tuple(name for name, holds in found if holds), (
            f"it says {says}, twice or of the task {again}, last {quote(tail(text, 1))}."
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
        """The text without the required phrases; each ends a sentence, whatever mark it has.

        An object's keys and values count as one sentence.
        """
        if text.startswith("{"):
            text = re.sub(r"[{}\[\]\":,\n]+", " ", text)
        for phrase in sorted(set(self.required) - self._keywords, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", " \n", text, flags=re.IGNORECASE)
        return text

    def _spoken(self, text: str) -> tuple[int, int] | None:
        """Where the text speaks of the topic: a word of it in a sentence that says something.

        Or in a short one that another goes on from: "Ah yes, coffee! It wakes me up."
        """
        spans = sentence_spans(text)
        sizes = [len(words(self._without_required(text[begin:end]))) for begin, end in spans]
        for n, (begin, end) in enumerate(spans):
            if sizes[n] > 2 or (n + 1 < len(spans) and _goes_on(text, spans[n + 1])):
                for match in WORD.finditer(text, begin, end):
                    if _stem(match.group()) in self._topic_stems:
                        return match.span()
        return None

    def _enough(self, text: str) -> bool:
        bare = self._without_required(text)
        if not self.topic:
            return any(word not in self._keywords for word in _plain(bare))
        pieces = [_plain(piece) for piece in sentences(bare)]
        used = all(len(piece) > 2 for piece in pieces for word in self._keywords if word in piece)
        # A content word that neither the request nor a required text gave.
        own = any(w not in _SMALL and _stem(w) not in self._request_stems for w in _plain(bare))
        return used and own and any(len(set(piece)) > 2 for piece in pieces)

    def _twice(self, text: str) -> tuple[str, ...]:
        """What is said twice: a sentence, a phrase in a row, or a long run of words on a line."""
        if not self.topic:
            return _circle(_plain(text))
        text = _TITLE.sub("", text)
        bare = [_plain(piece) for piece in sentences(self._without_required(text))]
        for pieces in ([_plain(piece) for piece in sentences(text)], bare):
            for n, piece in enumerate(pieces):
                if piece in pieces[:n]:
                    return piece
                # The same but for one word, twice: a list made by substitution.
                peers = [other for other in pieces[:n] if len(other) == len(piece)]
                near = [other for other in peers if sum(map(ne, other, piece)) == 1]
                if len(piece) > 3 and len(near) > 1:
                    return piece
                if loop := looped(piece):
                    return loop
                # "A big storm is a big storm, it's a big storm", but "a time to sow, a time to ..."
                for run, times in Counter(_runs(piece, 3)).items():
                    if times > 2 and run[-1] not in _SMALL:
                        return run
        for phrase in dict.fromkeys(self.required):
            said = _plain(phrase)
            if phrase in self._keywords or not said:
                continue
            if said * 2 in _runs(_plain(text), 2 * len(said)):
                return said
            # "Good luck: wolves hunt. Good luck.", but "Good luck at it takes time. Good luck."
            apart = rf"(?:^|[.,:;!?\n])[\s\"]*{_loosely(phrase)}(?=\s*[.,:;!?\n]|\s*$)"
            if len(re.findall(apart, text, re.IGNORECASE)) > self.required.count(phrase):
                return said
        if found := _AND_AGAIN.search(text):
            return _plain(found.group())
        for line in text.split("\n"):
            said = _plain(line)
            # Where one sentence ends and the next begins, a word or two may well meet again.
            if len(loop := looped(said)) > 2:
                return loop
            seen: set[tuple[str, ...]] = set()
            for run in _runs(said, RUN):
                if run in seen:
                    return run
                seen.add(run)
        return ()

    def _echo(self, text: str) -> tuple[str, ...]:
        """What speaks of the task: the request read back, in part or in its terms."""
        bare = self._without_required(text)
        if not self.topic:
            read = set(_runs(_plain(self.request), 3))
            runs = _runs(_plain(text), 3)
            back = [run for run in runs if run in read]
            return back[0] if len(back) > 0.8 * len(runs) and len(back) > 3 else ()
        asked = [_plain(piece) for piece in sentences(self._without_required(self.request))]
        for piece in map(_plain, sentences(bare)):
            if len(piece) > 2 and piece in asked:
                return piece
        # The first sentence holds the topic, and its words may well come back.
        told = {run for piece in asked[1:] for run in _runs(piece, RUN)}
        if run := next((run for run in _runs(_plain(bare), RUN) if run in told), ()):
            return run
        if found := _TASK.search(bare):
            return _plain(found.group())
        for word in self.required:
            # "The word river fits it well", "an example of a river", "It runs.river": named there,
            # not used.
            it = re.escape(word)
            named = rf"\bwords?\s+(?:is\s+|for\s+it\s+is\s+)?[\"'\u201c]?{it}\b"
            if word in self._keywords and not text.startswith("{"):
                named = (
                    rf"{named}|(?<!\w)[\"'\u201c\u2018]{it}[.,]?[\"'\u201d\u2019](?!\w)"
                    rf"|\bexamples?\s+of\s+(?:an?\s+|the\s+)?{it}\b|\w[.!?]{it}\b"
                )
            if found := re.search(named, text, re.IGNORECASE):
                return _plain(found.group())
        return ()

    def _ends(self, text: str) -> bool:
        """Whether the text ends by itself, as far as it can be seen."""
        last = text.rsplit("\n", 1)[-1]
        if re.fullmatch(r"\s*\d+[.)]\s*", last):
            return False  # a list that stops
        if not (text[-1].isalnum() or text[-1] in ",;:-\u2013\u2014"):
            return True
        loose = text[-1].isalnum() and words(last)[-1].lower() not in DANGLING
        free = _LIST_ITEM.match(last) or last.startswith(("P.S.", "PS")) or text == text.lower()
        wanted = any(_plain(text)[-len(p) :] == p for p in map(_plain, self.required) if p)
        return wanted or bool(loose and free)

    # --- Edits ------------------------------------------------------------------------------------

    def _mends(self, text: str) -> Iterator[str]:
        pieces = sentences(text)
        said = [_plain(piece) for piece in pieces]
        yield " ".join(p for n, p in enumerate(pieces) if said[n] not in said[:n])
        yield _AND_AGAIN.sub(r"\1", text)
        for phrase in sorted(set(self.required) - self._keywords):
            found = [match.span() for match in re.finditer(_loosely(phrase), text, re.IGNORECASE)]
            if len(found) > 1:
                yield _without(text, found[0])
                yield _without(text, found[-1])
        if len(pieces) > 1:
            yield " ".join(pieces[:-1])  # one that was cut off, mostly

    def _spoils(self, text: str) -> list[str]:
        """The ways of meeting a constraint without an answer, in an order that the text decides."""
        ways = []
        pieces, asked = sentences(text), sentences(self.request)
        phrase = next((p for p in self.required if len(words(p)) > 1), "")
        if pieces:
            ways.append(" ".join([*pieces, pick(pieces, text)]))
            ways.append(closed(" ".join([phrase or pieces[0]] * 2)))
        if single := re.search(rf"\b(?:is|are|an?)\s+{_SINGLE}(?=\s\w)", text):
            ways.append(f"{text[: single.end()]} and {single[1]}{text[single.end() :]}")
        if asked:
            ways.append(f"{closed(pick(asked, text))} {text}")
        if self.required:
            ways.append(closed(self.required[0]))
        if len(text) > 40:
            ways.append(text[: text.rfind(" ", 0, 2 * len(text) // 3)].rstrip(".,;:!? "))
        turn = toss(text, len(ways)) if ways else 0
        return ways[turn:] + ways[:turn]


def _loosely(phrase: str) -> str:
    """A pattern for a phrase, whatever mark it ends with."""
    return rf"(?<!\w){re.escape(phrase.rstrip('.!?'))}(?!\w)"


def _without(text: str, span: Span) -> str:
    """The text without a piece of it; what follows begins a sentence."""
    before, after = text[: span[0]].rstrip(), text[span[1] :].lstrip(" .,:;!?\n-")
    return f"{before} {capitalised(after)}".strip()


def _runs(said: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(said[n : n + size]) for n in range(len(said) - size + 1)] if size else []
