"""What a program says of one answer, and the scores of many, wherever answers are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from spar_lite import constraints
from spar_lite.constraints import Answer
from spar_lite.data.prompts import requirements
from spar_lite.evaluation.stats import Interval, bootstrap_mean, wilson
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
    "constraints_met": lambda r: share(r.checks),
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
        yes_or_no = bool(values) and all(isinstance(value, bool) for value in values)
        hits = sum(map(bool, values))
        found[name] = wilson(hits, len(values)) if yes_or_no else bootstrap_mean(values, seed)
    return found


def paired_points(
    before: Sequence[T], after: Sequence[T], point: Point[T]
) -> tuple[list[float], list[float]]:
    """A score's values on both sides, for the ids of which both say something finite."""
    pairs = {r.id: [point(r)] for r in before}  # type: ignore[attr-defined]
    for r in after:
        pairs.get(r.id, []).append(point(r))  # type: ignore[attr-defined]
    known = [
        (float(a), float(b))
        for a, b in (pair for pair in pairs.values() if len(pair) == 2)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    return [a for a, _ in known], [b for _, b in known]


def share(checks: Sequence[bool]) -> float:
    """Share of constraints met; 1 where there are none."""
    return sum(checks) / len(checks) if checks else 1.0
