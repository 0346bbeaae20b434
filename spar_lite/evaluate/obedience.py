"""How many final answers a person could accept, and the constraints they meet, by kind.

The truth is a program's. Knows constraints and final answers; nothing of engines, models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spar_lite import constraints
from spar_lite.decode import Final
from spar_lite.evaluate.answer import ANSWER_POINTS, CheckedAnswer, check_answer, scores
from spar_lite.records import Cost, Prompt
from spar_lite.statistics import Interval, wilson


@dataclass(frozen=True, slots=True)
class ConstraintsResult(CheckedAnswer):
    """One prompt's final answer; ``checks`` are those of ``kinds``; ``score``: 1 if it counts."""

    picked: str
    kinds: tuple[str, ...]
    verdict: bool | None
    score: float
    cost: Cost


def check_final(prompt: Prompt, final: Final) -> ConstraintsResult:
    """The program's word on one final answer."""
    checks, faults = check_answer(prompt, final.text)
    whole = CheckedAnswer(prompt.id, final.text, final.finished, checks, faults)
    return ConstraintsResult(
        id=prompt.id,
        answer=final.text,
        finished=final.finished,
        checks=checks,
        faults=faults,
        picked=final.picked,
        kinds=tuple(constraints.from_json(data).kind for data in prompt.constraints),
        verdict=final.verdict,
        score=float(whole.counts),
        cost=final.cost,
    )


def constraint_scores(results: Sequence[ConstraintsResult], seed: int = 0) -> dict[str, Interval]:
    """The scores of ``ANSWER_POINTS``, then the share of each kind's constraints that are met."""
    by_kind: dict[str, list[bool]] = {}
    for result in results:
        for kind, met in zip(result.kinds, result.checks, strict=True):
            by_kind.setdefault(kind, []).append(met)
    found = scores(results, ANSWER_POINTS, seed)
    for kind, met_by in sorted(by_kind.items()):
        found[f"met/{kind}"] = wilson(sum(met_by), len(met_by))
    return found
