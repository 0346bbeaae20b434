"""All kinds of constraints: one from its JSON, and several of them on one answer."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from spar_lite.errors import did_you_mean

from .answer import Answer
from .base import Constraint, Requirement
from .edges import EndsWith, EndsWithQuestion, Postscript, StartsWith, StoryBookends
from .letters import AllLowercase, AllUppercase, CharSequence, HasNumber, NoCommas, NoDigits, Quoted
from .marked import CapitalWords, Highlights, Marked, Placeholders, Title
from .parts import BulletCount, JsonObject, NumberedList, ParagraphCount, SentenceCount, TwoAnswers
from .text import words
from .words import Keyword, KeywordExclude, KeywordFrequency, KeywordInclude, WordCount

# Tasks are drawn by place in this order: a new kind goes to its end.
KINDS: dict[str, type[Constraint]] = {
    cls.kind: cls
    for cls in (
        StartsWith, EndsWith, StoryBookends, NoDigits, HasNumber, NumberedList, Postscript,
        TwoAnswers, KeywordInclude, KeywordExclude, KeywordFrequency, ParagraphCount, BulletCount,
        WordCount, SentenceCount, NoCommas, AllLowercase, AllUppercase, CharSequence, Highlights,
        Placeholders, CapitalWords, Title, EndsWithQuestion, Quoted, JsonObject,
    )
}  # fmt: skip
# Enough for every pair; a longer search would no longer give a small edit.
MOST_EDITS = 4
MOST_STATES = 300


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the nearest known one, else all of them."""
    return did_you_mean(name, known).strip() or f"Known: {', '.join(known)}."


def kind_named(name: object) -> type[Constraint]:
    """The class of a kind; ValueError with a suggestion where there is none."""
    if not isinstance(name, str):
        raise ValueError(f"a constraint's kind is a string, found {name!r}")
    if name not in KINDS:
        raise ValueError(f"unknown constraint kind {name!r}. {suggest(name, KINDS)}")
    return KINDS[name]


_WANTED: dict[object, str] = {
    str: "a string",
    int: "a whole number",
    int | None: "a whole number or null",
    tuple[str, ...]: "a list of strings",
}


def _fits(value: object, type_: Any) -> bool:
    if type_ == tuple[str, ...]:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, type_) and not isinstance(value, bool)


def from_json(data: object) -> Constraint:
    """The constraint that `to_json` wrote; ValueError says what is wrong with any other."""
    if not isinstance(data, dict):
        raise ValueError(f"a constraint is an object with a kind, found {type(data).__name__}")
    cls = kind_named(data.get("kind"))
    given = {str(name): value for name, value in data.items() if name != "kind"}
    known = {field.name: field.type for field in fields(cls)}
    for name in given:
        if name not in known:
            hint = suggest(name, known) if known else "It has no fields."
            raise ValueError(f"{cls.kind}: unknown field {name!r}. {hint}")
    for name, type_ in known.items():
        if name not in given:
            raise ValueError(f"{cls.kind}: field {name!r} is missing ({_WANTED[type_]})")
        if not _fits(given[name], type_):
            raise ValueError(f"{cls.kind}: {name} must be {_WANTED[type_]}, found {given[name]!r}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def conflict(a: Constraint, b: Constraint) -> bool:
    """True where both together are impossible or silly."""
    if isinstance(a, Keyword) and isinstance(b, Keyword):
        return a.word.lower() == b.word.lower()
    same = type(a) is type(b) or bool(a.claims & b.claims) or a.standalone or b.standalone
    return same or _clash(a, b) or _clash(b, a)


def _clash(rule: Constraint, other: Constraint) -> bool:
    """True where `rule` forbids what `other` requires, or leaves too little room for it."""
    text = other.required_text()
    match rule:
        case KeywordExclude():
            return rule.word.lower() in [word.lower() for word in words(text)]
        case AllLowercase():
            return isinstance(other, CapitalWords) or (other.case_bound and text != text.lower())
        case AllUppercase():
            return other.case_bound and text != text.upper()
        case NoDigits():
            return any(character.isdigit() for character in text)
        case JsonObject():
            return isinstance(other, Marked | Title)  # marks of text, not of data
        case NoCommas():
            return "," in text or (isinstance(other, JsonObject) and len(other.keys) > 1)
        case WordCount(high=int() as high):
            return high < other.least_words() + 3
        case SentenceCount() if isinstance(other, WordCount):
            return (other.low or 0) > 15 * rule.count
        case SentenceCount(count=1):
            return isinstance(other, EndsWith | EndsWithQuestion | KeywordFrequency)
    return False


def requirements(request: str, topic: str, asked: Iterable[object]) -> list[Requirement]:
    """Everything a program can check of a request: its constraints (as JSON), and that it is
    answered at all; the last goes without saying, except where a constraint is the whole task."""
    rules = [from_json(data) for data in asked]
    if any(rule.standalone for rule in rules):
        return list(rules)
    texts: list[str] = []
    for rule in rules:
        if isinstance(rule, StoryBookends):
            texts += [rule.first, rule.last]
        elif not isinstance(rule, JsonObject):  # its keys are the request's words
            texts += filter(None, [rule.required_text()])
    return [*rules, Answer(request, topic, tuple(texts))]


def check_all(constraints: Sequence[Requirement], text: str) -> tuple[bool, ...]:
    return tuple(constraint.check(text) for constraint in constraints)


def mend_all(constraints: Sequence[Requirement], text: str) -> str | None:
    """The text after the fewest edits that meet every constraint; None if none is found.

    Breadth first over the edits of the failing constraints, so one edit that breaks
    another constraint is followed by an edit that restores it, or dropped.
    """
    queue, seen = deque([(text, 0)]), {text}
    while queue:
        draft, edits = queue.popleft()
        failing = [constraint for constraint in constraints if not constraint.check(draft)]
        if not failing:
            return draft
        if edits == MOST_EDITS or len(seen) > MOST_STATES:
            continue
        fresh = [edit for constraint in failing for edit in constraint.mends(draft)]
        queue.extend((edit, edits + 1) for edit in dict.fromkeys(fresh) if edit not in seen)
        seen.update(fresh)
    return None


def critique(constraints: Sequence[Requirement], text: str) -> str:
    """One numbered line a constraint: its label, the evidence, Yes or No."""
    lines = []
    for index, constraint in enumerate(constraints, start=1):
        passes, evidence = constraint.look(text)
        lines.append(f"{index}. {constraint.label()}: {evidence} {'Yes' if passes else 'No'}")
    return "\n".join(lines)
