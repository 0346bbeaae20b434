"""The before/after score: held-out prompts, answered greedily, checked by a program.

Also how well the refiner judges and mends those answers, against the program's truth. Every score
comes with n and a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spar_lite import constraints
from spar_lite.data.prompts import requirements
from spar_lite.engines.base import Engine, strip_thinking
from spar_lite.evaluation.answer import ANSWER_POINTS, CheckedAnswer, Point, check_answer, scores
from spar_lite.evaluation.stats import Interval, bootstrap_mean
from spar_lite.judge import read_vote
from spar_lite.recipe import Decoding, Evaluate
from spar_lite.records import Cost, Prompt, Response, Vote
from spar_lite.sample import complete, sample_answer
from spar_lite.templates import judge_messages, judge_reply, parse_refinement, refine_messages


@dataclass(frozen=True, slots=True)
class HeldoutResult(CheckedAnswer):
    """One held-out prompt: the actor's answer, and what the refiner made of it.

    ``logp``: mean log-probability of its tokens under the bare base, in nats, None where there is
    no model. ``vote``: one greedy judgement. For answers that the program fails: ``refined`` is the
    refinement (None: unreadable or not asked for) and ``refined_checks`` the program's word on it,
    the last one being whether it is an answer.
    """

    logp: float | None
    vote: Vote | None
    asked_to_refine: bool
    refine_reply: str | None
    refined: str | None
    refined_checks: tuple[bool, ...]
    cost: Cost

    @property
    def agreed(self) -> bool | None:
        """Whether a readable vote says what the program says."""
        said = self.vote.verdict if self.vote else None
        return None if said is None else said == self.sound

    @property
    def mended(self) -> bool | None:
        """Whether the refinement of a failed answer meets every constraint and is an answer."""
        if not self.asked_to_refine:
            return None
        return bool(self.refined_checks) and all(self.refined_checks)


HELDOUT_POINTS: dict[str, Point[HeldoutResult]] = {
    **ANSWER_POINTS,
    "base_logp": lambda r: r.logp,
    "readable_votes": lambda r: r.vote.verdict is not None if r.vote else None,
    "judge_agreement": lambda r: r.agreed,
    "always_no_agreement": lambda r: None if r.agreed is None else not r.sound,
    "readable_refinements": lambda r: r.refined is not None if r.asked_to_refine else None,
    "truly_mended": lambda r: r.mended,
}
"""On top of an answer's own: how far it is from the base, and the refiner's votes and mending."""


async def answer_heldout(engine: Engine, prompt: Prompt, settings: Evaluate) -> Response:
    """The actor's greedy answer to one held-out prompt."""
    greedy = Decoding(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    return await sample_answer(engine, prompt, prompt.id, greedy)


async def review_heldout(
    engine: Engine,
    prompt: Prompt,
    response: Response,
    settings: Evaluate,
    review: bool = True,
    logp: float | None = None,
) -> HeldoutResult:
    """The program's word on an answer and, with ``review``, the refiner's.

    The refiner judges greedily and, where the program sees a fail, refines from the program's
    critique, so that the second figure measures mending alone.
    """
    known = requirements(prompt)
    checks, faults = check_answer(prompt, response.text)
    vote, reply, refined, cost = None, None, None, response.cost
    greedy = Decoding(temperature=0.0, max_new_tokens=settings.reply_tokens)
    review = review and bool(response.text.strip())  # of a blank there is nothing to say
    if review:
        messages = judge_messages(prompt.text, response.text)
        done = await complete(engine, "refiner", f"{prompt.id}/judge", messages, greedy)
        vote, cost = read_vote(done.text), cost + done.cost
    if review and (faults or not all(checks)):
        critique = judge_reply(constraints.critique(known, response.text), False)
        messages = refine_messages(prompt.text, response.text, critique)
        done = await complete(engine, "refiner", f"{prompt.id}/refine", messages, greedy)
        cost += done.cost
        reply = strip_thinking(done.text)
        refined = parse_refinement(reply)
    return HeldoutResult(
        id=prompt.id,
        answer=response.text,
        finished=response.finished,
        checks=checks,
        faults=faults,
        logp=logp,
        vote=vote,
        asked_to_refine=reply is not None,
        refine_reply=reply,
        refined=refined,
        refined_checks=constraints.check_all(known, refined) if refined is not None else (),
        cost=cost,
    )


def summarise(results: Sequence[HeldoutResult], seed: int = 0) -> dict[str, Interval]:
    """The scores of one checkpoint, by the names of ``HELDOUT_POINTS`` and in its order.

    readable_votes, readable_refinements: share of replies that can be read; judge_agreement:
    readable votes equal to the program's verdict; truly_mended: refinements of failed answers that
    meet every constraint and are answers.
    """
    return scores(results, HELDOUT_POINTS, seed)


def paired_difference(
    before: Sequence[HeldoutResult], after: Sequence[HeldoutResult], seed: int = 0
) -> Interval:
    """Mean difference (after - before) in answers that count over the same prompts."""
    earlier = {r.id: r.counts for r in before}
    return bootstrap_mean([float(r.counts) - earlier[r.id] for r in after if r.id in earlier], seed)
