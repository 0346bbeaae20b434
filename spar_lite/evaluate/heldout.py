"""The before/after score: held-out prompts, answered greedily, checked by a program.

Also how well the refiner judges and mends those answers, against the program's truth. Every score
comes with n and a 95 % interval. Knows the engine protocol and the constraints; no model, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spar_lite import constraints
from spar_lite.engine import Engine, strip_thinking
from spar_lite.judge import read_vote
from spar_lite.prompts import judge_messages, judge_reply, parse_refinement, refine_messages
from spar_lite.recipe import Decoding, Evaluate
from spar_lite.records import Cost, Prompt, Response, Vote
from spar_lite.sample import complete, sample_answer
from spar_lite.statistics import Interval, bootstrap_mean, wilson


@dataclass(frozen=True, slots=True)
class HeldoutResult:
    """One held-out prompt: the actor's answer, and what the refiner made of it.

    ``checks``: the program's result per constraint. ``vote``: one greedy judgement. For answers
    that the program fails: ``refined`` is the refinement (None: unreadable or not asked for) and
    ``refined_checks`` the program's word on it.
    """

    id: str
    answer: str
    finished: bool
    checks: tuple[bool, ...]
    vote: Vote | None
    asked_to_refine: bool
    refine_reply: str | None
    refined: str | None
    refined_checks: tuple[bool, ...]
    cost: Cost


async def answer_heldout(engine: Engine, prompt: Prompt, settings: Evaluate) -> Response:
    """The actor's greedy answer to one held-out prompt."""
    greedy = Decoding(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    return await sample_answer(engine, prompt, prompt.id, greedy)


async def review_heldout(
    engine: Engine, prompt: Prompt, response: Response, settings: Evaluate, review: bool = True
) -> HeldoutResult:
    """The program's word on an answer and, with ``review``, the refiner's.

    The refiner judges greedily and, where the program sees a fail, refines from the program's
    critique, so that the second figure measures mending alone.
    """
    known = [constraints.from_json(data) for data in prompt.constraints]
    checks = constraints.check_all(known, response.text)
    vote, reply, refined, cost = None, None, None, response.cost
    greedy = Decoding(temperature=0.0, max_new_tokens=settings.reply_tokens)
    review = review and bool(response.text.strip())  # of a blank there is nothing to say
    if review:
        messages = judge_messages(prompt.text, response.text)
        done = await complete(engine, "refiner", f"{prompt.id}/judge", messages, greedy)
        vote, cost = read_vote(done.text), cost + done.cost
    if review and not all(checks):
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
        vote=vote,
        asked_to_refine=reply is not None,
        refine_reply=reply,
        refined=refined,
        refined_checks=constraints.check_all(known, refined) if refined is not None else (),
        cost=cost,
    )


def summarise(results: Sequence[HeldoutResult], seed: int = 0) -> dict[str, Interval]:
    """The scores of one checkpoint.

    constraints_met: mean over prompts of the share of constraints met (bootstrap interval);
    all_met: prompts with every constraint met; readable_votes, readable_refinements: share of
    replies that can be read; judge_agreement: readable votes equal to the program's verdict;
    truly_mended: refinements of failed answers that meet every constraint (Wilson intervals);
    answer_words: mean length of an answer, since shorter answers can be an easy way out.
    """
    votes = [(r.vote.verdict, all(r.checks)) for r in results if r.vote]
    asked = [r for r in results if r.asked_to_refine]
    readable = [(said, truth) for said, truth in votes if said is not None]
    mended = [bool(r.refined_checks) and all(r.refined_checks) for r in asked]
    return {
        "constraints_met": bootstrap_mean([share(r.checks) for r in results], seed),
        "all_met": wilson(sum(all(r.checks) for r in results), len(results)),
        "readable_votes": wilson(len(readable), len(votes)),
        "judge_agreement": wilson(sum(said == truth for said, truth in readable), len(readable)),
        "always_yes_agreement": wilson(sum(truth for _, truth in readable), len(readable)),
        "readable_refinements": wilson(sum(r.refined is not None for r in asked), len(asked)),
        "truly_mended": wilson(sum(mended), len(mended)),
        "answer_words": bootstrap_mean([len(r.answer.split()) for r in results], seed),
    }


def paired_difference(
    before: Sequence[HeldoutResult], after: Sequence[HeldoutResult], seed: int = 0
) -> Interval:
    """Mean difference (after - before) in constraints met over the same prompts."""
    earlier = {r.id: share(r.checks) for r in before}
    return bootstrap_mean([share(r.checks) - earlier[r.id] for r in after if r.id in earlier], seed)


def share(checks: Sequence[bool]) -> float:
    """Share of constraints met; 1 where there are none."""
    return sum(checks) / len(checks) if checks else 1.0
