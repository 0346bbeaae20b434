"""The before/after score: held-out prompts, answered greedily, checked by a program.

Also how well the refiner judges and mends those answers, against the program's truth; and, in
words, what got worse between two checkpoints, so that no table is read for its best row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spar_lite import constraints
from spar_lite.data.prompts import requirements
from spar_lite.engines.base import Engine, strip_thinking
from spar_lite.evaluation.answer import ANSWER_POINTS, CheckedAnswer, Point, by_id, check_answer
from spar_lite.evaluation.stats import Change, paired_change
from spar_lite.judge import read_vote
from spar_lite.recipe import Decoding, Evaluate
from spar_lite.records import Cost, Prompt, Response, Vote
from spar_lite.sample import complete
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


HELDOUT_POINTS: dict[str, Point[HeldoutResult]] = {
    **ANSWER_POINTS,
    "base_logp": lambda r: r.logp,
    "readable_votes": lambda r: r.vote.verdict is not None if r.vote else None,
    "judge_agreement": lambda r: r.agreed,
    "always_no_agreement": lambda r: None if r.agreed is None else not r.sound,
    "readable_refinements": lambda r: r.refined is not None if r.asked_to_refine else None,
    "truly_mended": lambda r: (
        bool(r.refined_checks) and all(r.refined_checks) if r.asked_to_refine else None
    ),
}
"""On top of an answer's own: how far it is from the base, and the refiner's votes and mending.

readable_votes, readable_refinements: share of replies that can be read; judge_agreement: readable
votes equal to the program's verdict; truly_mended: refinements of failed answers that meet every
constraint and are answers."""


def counts(results: Sequence[HeldoutResult]) -> dict[str, float]:
    """1 for an answer that counts, else 0, by prompt id."""
    return {r.id: float(r.counts) for r in results}


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


# --- What got worse -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch:
    """A score to watch: what is said of it, and how much of a change is one.

    ``rises``: it gets worse by rising. ``least``: a smaller share of what it was goes unsaid.
    ``digits`` None: a share, shown in percent.
    """

    said: str
    words: str
    rises: bool = False
    least: float = 0.0
    digits: int | None = None


ANSWERS, REFINER = "the answers got worse", "the refiner got worse"

WATCHED = {
    "answers_that_count": Watch(ANSWERS, "answers that count"),
    "on_topic": Watch(ANSWERS, "on topic"),
    "says_it_twice": Watch(ANSWERS, "said twice", rises=True),
    "empty": Watch(ANSWERS, "empty", rises=True),
    "cut_off": Watch(ANSWERS, "cut off", rises=True),
    "answer_words": Watch(ANSWERS, "words per answer", least=1 / 3, digits=1),
    "base_logp": Watch("the answers moved away from the base", "log p per token", digits=2),
    "judge_agreement": Watch(REFINER, "votes that agree with the program"),
    "truly_mended": Watch(REFINER, "failed answers truly mended"),
}


def alarms(
    before: Sequence[HeldoutResult], after: Sequence[HeldoutResult], seed: int = 0
) -> list[str]:
    """A sentence for every score that fell (or rose, where that is worse) clear of its interval.

    Prompts that only one side has, or that say nothing there, are left out; n says how many are
    compared. The first sentence, if any, is the worst: more constraints met by no more answers.
    """
    changes = {
        name: paired_change(by_id(before, point), by_id(after, point), seed)
        for name, point in HELDOUT_POINTS.items()
    }
    found = []
    met, count = changes["constraints_met"], changes["answers_that_count"]
    if met.rose and not count.rose:
        found.append(
            f"the score was won without answering: constraints met {shown(met)}, "
            f"but answers that count {shown(count)}"
        )
    for name, watch in WATCHED.items():
        change = changes[name]
        fall = change.before - change.after
        worse = fall < 0 if watch.rises else fall > watch.least * abs(change.before)
        if worse and change.clear:
            found.append(f"{watch.said}: {watch.words} {shown(change, watch.digits)}")
    return found


def shown(change: Change, digits: int | None = None) -> str:
    """Like "3.0 → 33.0 % (+30.0 [+21.0, +39.0], paired, n=100)"; percent without ``digits``."""
    scale, unit, places = (100, " %", 1) if digits is None else (1, "", digits)
    d = change.difference
    before, after, by, low, high = (
        scale * value for value in (change.before, change.after, d.value, d.low, d.high)
    )
    return (
        f"{before:.{places}f} → {after:.{places}f}{unit} ({by:+.{places}f} "
        f"[{low:+.{places}f}, {high:+.{places}f}], paired, n={d.n})"
    )
