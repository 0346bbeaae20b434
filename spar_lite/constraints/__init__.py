"""Machine-checkable constraints on an answer: ask, check, explain, mend, spoil.

    >>> rule = from_json({"kind": "starts_with", "phrase": "Well"})
    >>> rule.explain("The sun is warm.")
    'The first words are "The".'

Every kind is one frozen dataclass in the register `KINDS`; `compose` builds tasks from topics and
sampled constraints. Standard library only.
"""

from .answer import FAULTS, Answer
from .base import KINDS, Constraint, Requirement, from_json, kind_named
from .edges import EndsWith, StartsWith, StoryBookends
from .figures import HasNumber, NoDigits, NumberedList, Postscript, TwoAnswers
from .keywords import KeywordExclude, KeywordFrequency, KeywordInclude
from .layout import BulletCount, ParagraphCount
from .lengths import SentenceCount, WordCount
from .letters import AllLowercase, AllUppercase, CharSequence, NoCommas
from .marked import CapitalWords, Highlights, Placeholders, Title
from .marks import EndsWithQuestion, Quoted
from .several import check_all, conflict, critique, mend_all, requirements
from .structure import JsonObject
from .tasks import FORMS, SPLITS, TOPICS, Task, compose, enrich, topics_of
from .values import VALUES, Values

__all__ = [
    "FAULTS",
    "FORMS",
    "KINDS",
    "SPLITS",
    "TOPICS",
    "VALUES",
    "AllLowercase",
    "AllUppercase",
    "Answer",
    "BulletCount",
    "CapitalWords",
    "CharSequence",
    "Constraint",
    "EndsWith",
    "EndsWithQuestion",
    "HasNumber",
    "Highlights",
    "JsonObject",
    "KeywordExclude",
    "KeywordFrequency",
    "KeywordInclude",
    "NoCommas",
    "NoDigits",
    "NumberedList",
    "ParagraphCount",
    "Placeholders",
    "Postscript",
    "Quoted",
    "Requirement",
    "SentenceCount",
    "StartsWith",
    "StoryBookends",
    "Task",
    "Title",
    "TwoAnswers",
    "Values",
    "WordCount",
    "check_all",
    "compose",
    "conflict",
    "critique",
    "enrich",
    "from_json",
    "kind_named",
    "mend_all",
    "requirements",
    "topics_of",
]
