"""How good the refiner is at mending, and how good it believes to be (paper, section 3.3).

The answers to mend are the bare base model's own, so that every checkpoint of a base gets the same
ones; a program knows which fail and what is truly mended. The refiner's own votes say what it
believes; the gap between the two is its self-flattery (the paper: 79.0 by GPT-4o, 90.5 by itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import click

from spar_lite.engines.base import Engine, strip_thinking
from spar_lite.evaluation.runner import (
    Card,
    Job,
    Task,
    decoding_settings,
    evaluate,
    kinds_named,
    tag,
    texts_digest,
)
from spar_lite.evaluation.stats import Interval, bootstrap_mean, share
from spar_lite.evaluation.tasks import by_group
from spar_lite.judge import judge_answer, program_view
from spar_lite.pairs import similarity
from spar_lite.recipe import Decoding, Judge
from spar_lite.records import Cost, Prompt, Response
from spar_lite.sample import complete
from spar_lite.steps import collect
from spar_lite.store import StageFile
from spar_lite.templates import judge_reply, parse_refinement, refine_messages

Critic = Literal["program", "own"]


@dataclass(frozen=True, slots=True)
class RefineResult:
    """One failed answer and its refinement.

    ``refined`` is None where no refinement came (unreadable, or the refiner saw no fault);
    ``truly``: it meets every constraint; ``believed``: the refiner's majority says so (None: no
    judgement); ``edit``: share of words changed, 0 to 1; ``score``: 1 if truly mended.
    """

    id: str
    kinds: tuple[str, ...]
    answer: str
    noticed: bool | None
    reply: str | None
    refined: str | None
    truly: bool
    believed: bool | None
    edit: float | None
    score: float
    cost: Cost


def failed(prompt: Prompt, answer: Response) -> bool:
    """Whether an answer is not empty and misses a constraint."""
    asked = bool(prompt.constraints and answer.text.strip())
    return asked and program_view(prompt, answer.text).verdict is False


async def mend_answer(
    engine: Engine,
    prompt: Prompt,
    answer: Response,
    judge: Judge,
    critic: Critic,
    reply_tokens: int,
) -> RefineResult:
    """One refinement, greedy, and the refiner's votes on it.

    ``critic``: work from the program's critique, which measures mending alone; or from the
    refiner's own, where its majority finds a fault, as in the loop.
    """
    judge = judge.model_copy(update={"mode": "llm"})
    cost, noticed, reply, refined, believed = Cost(), None, None, None, None
    critique: str | None = judge_reply(program_view(prompt, answer.text).critique, False)
    if critic == "own":
        found = await judge_answer(engine, prompt, answer.text, f"{prompt.id}/own", judge)
        cost, noticed = found.cost, None if found.verdict is None else not found.verdict
        critique = found.critique if noticed else None
    if critique is not None:
        greedy = Decoding(temperature=0.0, max_new_tokens=reply_tokens)
        messages = refine_messages(prompt.text, answer.text, critique)
        done = await complete(engine, "refiner", f"{prompt.id}/refine", messages, greedy)
        cost, reply = cost + done.cost, strip_thinking(done.text)
        refined = parse_refinement(reply)
    if refined is not None:
        after = await judge_answer(engine, prompt, refined, f"{prompt.id}/after", judge)
        cost, believed = cost + after.cost, after.verdict
    truly = refined is not None and program_view(prompt, refined).verdict is True
    return RefineResult(
        id=prompt.id,
        kinds=tuple(str(data["kind"]) for data in prompt.constraints),
        answer=answer.text,
        noticed=noticed,
        reply=reply,
        refined=refined,
        truly=truly,
        believed=believed,
        edit=None if refined is None else edit_share(answer.text, refined),
        score=float(truly),
        cost=cost,
    )


def edit_share(old: str, new: str) -> float:
    """Share of words that differ: 1 minus the similarity."""
    return 1 - similarity(old, new)


class Refining(Task[RefineResult]):
    """The refiner mends the bare base's failed answers and says what it believes."""

    name = "refine"
    kind = RefineResult

    def __init__(self, count: int, kinds: Sequence[str], critic: Critic) -> None:
        self.count, self.kinds, self.critic = count, kinds, critic
        self.file = f"refine-{critic}{tag(kinds)}"

    def settings(self, job: Job) -> dict[str, Any]:
        judge, lengths = job.target.recipe.judge, job.target.recipe.evaluate
        return {
            "prompts": self.count,
            "kinds": list(self.kinds or job.target.recipe.prompts.kinds),
            "texts": texts_digest(job.prompts(self.count, self.kinds)),
            "critic": self.critic,
            "answer_tokens": lengths.max_new_tokens,
            "reply_tokens": lengths.reply_tokens,
            "judge": decoding_settings(judge),
            "votes": judge.votes,
        }

    def results(self, job: Job, file: StageFile[RefineResult]) -> list[RefineResult]:
        recipe = job.target.recipe
        settings = (recipe.judge, self.critic, recipe.evaluate.reply_tokens)
        items = [
            (p.id, partial(mend_answer, job.lazy, p, answer, *settings))
            for p, answer in job.base_answers(self.count, self.kinds)
            if failed(p, answer)
        ]
        return collect(job.screen, "refinements", file, items, "answers")

    @staticmethod
    def scores(results: Sequence[RefineResult], seed: int) -> dict[str, Interval]:
        """The scores of one refiner, over all failed answers.

        truly_mended and believed_mended: shares of all failed answers; flattery: believed minus
        true, paired over the same answers; edit: mean share of words changed, of those mended
        truly.
        """
        edits = [(r.edit, r.truly) for r in results if r.edit is not None]
        noticed = [r.noticed for r in results if r.noticed is not None]
        scores = {
            "truly_mended": share(r.truly for r in results),
            "believed_mended": share(r.believed is True for r in results),
            "flattery": bootstrap_mean(
                [float(r.believed is True) - r.truly for r in results], seed
            ),
            "readable": share(r.refined is not None for r in results),
            "edit_share": bootstrap_mean([edit for edit, _ in edits], seed),
            "edit_share_mended": bootstrap_mean([edit for edit, truly in edits if truly], seed),
        }
        if noticed:
            scores["noticed"] = share(noticed)
        mended = ((kind, r.truly) for r in results for kind in set(r.kinds))
        return scores | by_group("truly_mended", mended)


@click.command("refine")
@click.option("--count", default=200, show_default=True, help="Prompts; failed answers are used.")
@click.option("--kinds", default="", help="Constraint kinds, with commas [the recipe's].")
@click.option(
    "--critic",
    type=click.Choice(get_args(Critic)),
    default="program",
    help="Whose critique is worked from [program].",
)
def command(job: Job, count: int, kinds: str, critic: Critic) -> Card:
    """Failed answers truly mended, and believed mended.

    The gap between the two is self-flattery.
    """
    return evaluate(job, Refining(count, kinds_named(kinds), critic))
