"""The share of constraints that final answers meet, in all and by kind; the truth is a program's.

Knows constraints and final answers; nothing of engines, models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spar_lite import constraints
from spar_lite.decode import Final
from spar_lite.evaluate.heldout import share
from spar_lite.records import Cost, Prompt
from spar_lite.statistics import Interval, bootstrap_mean, wilson


@dataclass(frozen=True, slots=True)
class ConstraintsResult:
    """One prompt's final answer; ``checks`` per constraint of ``kinds``; ``score``: share met."""

    id: str
    text: str
    picked: str
    kinds: tuple[str, ...]
    checks: tuple[bool, ...]
    verdict: bool | None
    score: float
    cost: Cost


def check_final(prompt: Prompt, final: Final) -> ConstraintsResult:
    """The program's word on one final answer."""
    known = [constraints.from_json(data) for data in prompt.constraints]
    checks = constraints.check_all(known, final.text)
    kinds = tuple(rule.kind for rule in known)
    return ConstraintsResult(
        prompt.id, final.text, final.picked, kinds, checks, final.verdict, share(checks), final.cost
    )


def constraint_scores(results: Sequence[ConstraintsResult], seed: int = 0) -> dict[str, Interval]:
    """Mean share met, share of prompts with all met, and each kind's share."""
    by_kind: dict[str, list[bool]] = {}
    for result in results:
        for kind, met in zip(result.kinds, result.checks, strict=True):
            by_kind.setdefault(kind, []).append(met)
    scores = {
        "constraints_met": bootstrap_mean([r.score for r in results], seed),
        "all_met": wilson(sum(all(r.checks) for r in results), len(results)),
        "answer_words": bootstrap_mean([len(r.text.split()) for r in results], seed),
    }
    for kind, found in sorted(by_kind.items()):
        scores[f"met/{kind}"] = wilson(sum(found), len(found))
    return scores
