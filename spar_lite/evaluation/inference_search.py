"""One final answer a prompt: greedy, or by spending more tokens on it (paper, section 3.4).

Two phases, because one role answers at a time: the actor answers every prompt, then the refiner
picks among the answers or mends them, judging by its own votes. The program's word is never asked
here: where these answers are scored by a program, it would be the answer key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from spar_lite.engines.base import Engine
from spar_lite.judge import judge_answer
from spar_lite.recipe import Decoding, Judge, Recipe, Sample, Search
from spar_lite.records import Cost, Prompt, Response, Role
from spar_lite.sample import sample_answer
from spar_lite.search import search_tree

Way = Literal["greedy", "best-of-n", "refine", "bfs", "dfs"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to decode.

    ``budget``: answers sampled (best-of-n) or refinements (refine, bfs, dfs) a prompt, at most.
    ``role``: who answers, the actor or the bare base.
    """

    way: Way
    budget: int
    role: Role
    sample: Sample
    judge: Judge
    search: Search

    @property
    def name(self) -> str:
        """For files: "greedy", "bfs-8"."""
        return self.way if self.way == "greedy" else f"{self.way}-{self.budget}"


@dataclass(frozen=True, slots=True)
class Final:
    """The answer that counts; ``id`` is the prompt's.

    ``picked``: the number of the sample, or the path of the tree's node ("" is the answer as it
    was). ``verdict``: what the refiner thinks of it (None: not asked, or no judgement). ``cost``
    is everything spent on this prompt, the first answers included.
    """

    id: str
    text: str
    picked: str
    finished: bool
    verdict: bool | None
    cost: Cost


def make_plan(recipe: Recipe, way: Way, budget: int, role: Role, max_new_tokens: int) -> Plan:
    """The plan for a recipe: its judge (votes alone), its search with another budget.

    ``refine`` is one refinement after another. ``bfs`` goes as deep as the budget lasts; ``dfs``
    keeps the recipe's depth, without which it would never turn back.
    """
    changes: dict[Way, dict[str, object]] = {
        "refine": {"strategy": "bfs", "branch": 1, "keep": 1, "depth": budget},
        "bfs": {"strategy": "bfs", "depth": budget},
        "dfs": {"strategy": "dfs"},
    }
    sample = recipe.sample.model_copy(update={"max_new_tokens": max_new_tokens})
    judge = recipe.judge.model_copy(update={"mode": "llm"})
    search = recipe.search.model_copy(update={"budget": budget, **changes.get(way, {})})
    return Plan(way, budget, role, sample, judge, search)


Items = list[tuple[str, Callable[[], Awaitable[Response]]]]


def first_answers(engine: Engine, prompts: Sequence[Prompt], plan: Plan) -> Items:
    """The first phase's work, (id, coroutine function) each: greedy answers, or samples."""
    decoding: Decoding = Decoding(temperature=0.0, max_new_tokens=plan.sample.max_new_tokens)
    count = 1
    if plan.way == "best-of-n":
        decoding, count = plan.sample, plan.budget
    ids = [(p, f"{p.id}/{k}") for p in prompts for k in range(count)]
    return [(id, partial(sample_answer, engine, p, id, decoding, plan.role)) for p, id in ids]


def greedy_final(answer: Response) -> Final:
    """The only answer, judged by nobody."""
    return Final(answer.prompt_id, answer.text, "0", answer.finished, None, answer.cost)


async def final_answer(
    engine: Engine, prompt: Prompt, answers: Sequence[Response], plan: Plan
) -> Final:
    """The second phase for one prompt; ``answers`` are its own, in order."""
    if plan.way == "greedy":
        return greedy_final(answers[0])
    judgements = await asyncio.gather(
        *(judge_answer(engine, prompt, a.text, a.id, plan.judge) for a in answers)
    )
    cost = sum([made.cost for made in answers] + [made.cost for made in judgements], Cost())
    if plan.way == "best-of-n":
        # The highest value, the first of equals; no value is below every other.
        values = [-1.0 if j.value is None else j.value for j in judgements]
        n = values.index(max(values))
        best, verdict = answers[n], judgements[n].verdict
        return Final(prompt.id, best.text, str(n), best.finished, verdict, cost)
    answer, judgement = answers[0], judgements[0]
    if judgement.verdict is not False:  # it passes, or there is no critique to work from
        return Final(prompt.id, answer.text, "", answer.finished, judgement.verdict, cost)
    tree = await search_tree(engine, prompt, answer, judgement, plan.search, plan.judge)
    # The accepted refinement, else the best node, which may be the answer as it was.
    node = tree.node(tree.accepted or tree.best)
    assert node.text is not None and node.judgement is not None
    finished, verdict = answer.finished or bool(node.path), node.judgement.verdict
    return Final(prompt.id, node.text, node.path, finished, verdict, cost + tree.cost)
