"""What a program says of one answer, and the scores of many, wherever answers are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from spar_lite import constraints
from spar_lite.constraints import Answer
from spar_lite.data.prompts import requirements
from spar_lite.evaluation.stats import Interval, bootstrap_mean, share
from spar_lite.records import Prompt

T = TypeVar("T")

Point = Callable[[T], bool | float | None]
"""One result's part in a score; None where it says nothing."""


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """One answer with the program's word on it.

    ``finished``: it ended by itself. ``checks``: the result per constraint. ``faults``: what keeps
    the text from being an answer (``constraints.FAULTS``).
    """

    id: str
    answer: str
    finished: bool
    checks: tuple[bool, ...]
    faults: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the text meets every constraint and is an answer."""
        return all(self.checks) and not self.faults

    @property
    def counts(self) -> bool:
        """Whether it is sound and ended by itself: what a person could accept."""
        return self.sound and self.finished


EMPTY = frozenset({"no words of its own", "speaks of the task"})

ANSWER_POINTS: dict[str, Point[CheckedAnswer]] = {
    "answers_that_count": lambda r: r.counts,
    "constraints_met": lambda r: sum(r.checks) / len(r.checks) if r.checks else 1.0,
    "on_topic": lambda r: "off topic" not in r.faults,
    "says_it_twice": lambda r: "says it twice" in r.faults,
    "empty": lambda r: bool(EMPTY & set(r.faults)),
    "cut_off": lambda r: not r.finished,
    "answer_words": lambda r: float(len(r.answer.split())),
}
"""answers_that_count: every constraint met by an answer that ended by itself, the score of record.
constraints_met: the share of constraints met, whatever meets them. Then what these could hide;
empty: no words of its own, or words about the task."""


def check_answer(prompt: Prompt, text: str) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    """The program's word on a text: one check a constraint, and the faults of it as an answer."""
    known = requirements(prompt)
    checks = constraints.check_all(known, text)[: len(prompt.constraints)]
    faults = [fault for rule in known if isinstance(rule, Answer) for fault in rule.faults(text)]
    return checks, tuple(faults)


def scores(results: Sequence[T], points: Mapping[str, Point[T]], seed: int) -> dict[str, Interval]:
    """Each score over the results that say something: Wilson of yes and no, else a bootstrap."""
    found = {}
    for name, point in points.items():
        values = [value for r in results if (value := point(r)) is not None]
        hits = [value for value in values if isinstance(value, bool)]
        yes_or_no = hits and len(hits) == len(values)
        found[name] = share(hits) if yes_or_no else bootstrap_mean(values, seed)
    return found


def by_id(results: Sequence[T], point: Point[T]) -> dict[str, float]:
    """The results' values by prompt id, where they say something finite."""
    values = {r.id: point(r) for r in results}  # type: ignore[attr-defined]
    return {id: float(v) for id, v in values.items() if v is not None and math.isfinite(v)}
