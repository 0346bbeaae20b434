"""How many final answers a person could accept, and the constraints they meet, by kind.

The truth is a program's; held-out builtin prompts, decoded in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import click

from spar_lite.evaluation.answer import ANSWER_POINTS, CheckedAnswer, check_answer, scores
from spar_lite.evaluation.inference_search import Final, Way
from spar_lite.evaluation.runner import Card, Job, evaluate, with_decoding
from spar_lite.evaluation.stats import Interval
from spar_lite.evaluation.tasks import Decoded, by_group
from spar_lite.records import Cost, Prompt


@dataclass(frozen=True, slots=True)
class ConstraintsResult(CheckedAnswer):
    """One prompt's final answer; ``checks`` are those of ``kinds``; ``score``: 1 if it counts."""

    picked: str
    kinds: tuple[str, ...]
    verdict: bool | None
    score: float
    cost: Cost


class Constraints(Decoded[ConstraintsResult]):
    """Held-out prompts, whose constraints are all that there is to check."""

    name = "constraints"
    kind = ConstraintsResult

    @staticmethod
    def check(prompt: Prompt, final: Final) -> ConstraintsResult:
        """The program's word on one final answer."""
        checks, faults = check_answer(prompt, final.text)
        found = ConstraintsResult(
            id=prompt.id,
            answer=final.text,
            finished=final.finished,
            checks=checks,
            faults=faults,
            picked=final.picked,
            kinds=tuple(str(data["kind"]) for data in prompt.constraints),
            verdict=final.verdict,
            score=0.0,
            cost=final.cost,
        )
        return replace(found, score=float(found.counts))

    @staticmethod
    def scores(results: Sequence[ConstraintsResult], seed: int) -> dict[str, Interval]:
        """The scores of ``ANSWER_POINTS``, then the share of each kind's constraints met."""
        met = ((kind, met) for r in results for kind, met in zip(r.kinds, r.checks, strict=True))
        return scores(results, ANSWER_POINTS, seed) | by_group("met", met)


@click.command("constraints")
@click.option("--count", default=0, help="Held-out prompts [the recipe's evaluate.prompts].")
@with_decoding
def command(job: Job, count: int, way: Way, budget: int) -> Card:
    """Answers that count, and constraints met by kind.

    On held-out builtin prompts, checked by a program.
    """
    recipe = job.target.recipe
    plan = job.plan(way, budget, recipe.evaluate.max_new_tokens)
    prompts = job.prompts(count or recipe.evaluate.prompts)
    return evaluate(job, Constraints(prompts, plan, kinds=list(recipe.prompts.kinds)))
