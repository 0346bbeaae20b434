"""Several constraints on one answer: do they go together, are they met, mend them all."""

from collections import deque
from collections.abc import Iterable, Sequence

from .answer import Answer
from .base import Constraint, Requirement, from_json
from .edges import EndsWith, StoryBookends
from .figures import NoDigits
from .keywords import KeywordExclude, KeywordFrequency, KeywordInclude
from .lengths import SentenceCount, WordCount
from .letters import AllLowercase, AllUppercase, NoCommas
from .marked import CapitalWords, Marked, Title
from .marks import EndsWithQuestion
from .structure import JsonObject
from .text import words

Keyword = KeywordExclude | KeywordFrequency | KeywordInclude
# Enough for every pair; a longer search would no longer give a small edit.
MOST_EDITS = 4
MOST_STATES = 300


def conflict(a: Constraint, b: Constraint) -> bool:
    """True where both together are impossible or silly."""
    if isinstance(a, Keyword) and isinstance(b, Keyword):
        return a.word.lower() == b.word.lower()
    same = type(a) is type(b) or bool(a.claims & b.claims) or a.standalone or b.standalone
    return same or _clash(a, b) or _clash(b, a)


def _clash(rule: Constraint, other: Constraint) -> bool:
    """True where `rule` forbids what `other` requires."""
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
        case SentenceCount():
            return _crowded(rule, other)
    return False


def _crowded(rule: SentenceCount, other: Constraint) -> bool:
    """True where `other` needs more sentences, or longer ones, than `rule` leaves room for."""
    if isinstance(other, WordCount):
        return (other.low or 0) > 15 * rule.count
    needs_two = EndsWith | EndsWithQuestion | KeywordFrequency
    return rule.count == 1 and isinstance(other, needs_two)


def requirements(request: str, topic: str, asked: Iterable[object]) -> list[Requirement]:
    """Everything a program can check of a request: its constraints (as JSON), and that it is
    answered at all; the last goes without saying, except where a constraint is the whole task."""
    rules = [from_json(data) for data in asked]
    if any(rule.standalone for rule in rules):
        return list(rules)
    texts = tuple(text for rule in rules for text in _demanded(rule))
    return [*rules, Answer(request, topic, texts)]


def _demanded(rule: Constraint) -> tuple[str, ...]:
    """The texts that a constraint demands, each by itself."""
    match rule:
        case StoryBookends():
            return rule.first, rule.last
        case JsonObject():
            return ()  # its keys are the request's words, and nothing of the answer's own
    return tuple(filter(None, (rule.required_text(),)))


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
        verdict = "Yes" if constraint.check(text) else "No"
        lines.append(f"{index}. {constraint.label()}: {constraint.explain(text)} {verdict}")
    return "\n".join(lines)
