"""How many final answers a person could accept, and the constraints they meet, by kind.

The truth is a program's; held-out builtin prompts, decoded in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from spar_lite import constraints
from spar_lite.evaluation.answer import ANSWER_POINTS, CheckedAnswer, check_answer, scores
from spar_lite.evaluation.inference_search import Final, Plan, Way
from spar_lite.evaluation.runner import (
    Card,
    Job,
    Task,
    evaluate,
    plan_settings,
    texts_digest,
    with_decoding,
)
from spar_lite.evaluation.stats import Interval, wilson
from spar_lite.records import Cost, Prompt
from spar_lite.store import StageFile


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


class Constraints(Task[ConstraintsResult]):
    """``count`` held-out prompts."""

    name = "constraints"
    kind = ConstraintsResult

    def __init__(self, plan: Plan, count: int) -> None:
        self.plan, self.count = plan, count
        self.file = f"constraints-{plan.name}"

    def settings(self, job: Job) -> dict[str, Any]:
        return {
            "prompts": self.count,
            "kinds": list(job.target.recipe.prompts.kinds),
            "texts": texts_digest(job.prompts(self.count)),
            **plan_settings(self.plan),
        }

    def results(self, job: Job, file: StageFile[ConstraintsResult]) -> list[ConstraintsResult]:
        prompts = job.prompts(self.count)
        finals = job.answers(self.file, prompts, self.plan)
        results = [check_final(p, final) for p, final in zip(prompts, finals, strict=True)]
        file.finish(results)
        return results

    def scores(self, results: Sequence[ConstraintsResult], seed: int) -> dict[str, Interval]:
        return constraint_scores(results, seed)


@click.command("constraints")
@click.option("--count", default=0, help="Held-out prompts [the recipe's evaluate.prompts].")
@with_decoding
def command(job: Job, count: int, way: Way, budget: int) -> Card:
    """Answers that count, and constraints met by kind.

    On held-out builtin prompts, checked by a program.
    """
    settings = job.target.recipe.evaluate
    plan = job.plan(way, budget, settings.max_new_tokens)
    return evaluate(job, Constraints(plan, count or settings.prompts))
