"""Machine-checkable constraints on an answer: ask, check, explain, mend, spoil.

    >>> rule = from_json({"kind": "starts_with", "phrase": "Well"})
    >>> rule.explain("The sun is warm.")
    'The first words are "The".'

Every kind is one class in the register `KINDS`; `compose` builds tasks from topics and sampled
constraints.
"""

from .answer import FAULTS, Answer
from .base import Constraint, Requirement
from .kinds import (
    KINDS,
    check_all,
    conflict,
    critique,
    from_json,
    kind_named,
    mend_all,
    requirements,
)
from .tasks import FORMS, SPLITS, TOPICS, compose, enrich, topics_of
from .values import VALUES, Values

__all__ = [
    "FAULTS", "FORMS", "KINDS", "SPLITS", "TOPICS", "VALUES", "Answer", "Constraint",
    "Requirement", "Values", "check_all", "compose", "conflict", "critique", "enrich",
    "from_json", "kind_named", "mend_all", "requirements", "topics_of",
]  # fmt: skip
