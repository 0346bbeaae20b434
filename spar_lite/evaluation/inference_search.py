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
from spar_lite.records import Cost, Judgement, Prompt, Response, Role, Tree
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
    def answers(self) -> int:
        """Answers wanted of the first phase, per prompt."""
        return self.budget if self.way == "best-of-n" else 1

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
    sample = recipe.sample.model_copy(update={"max_new_tokens": max_new_tokens})
    judge = recipe.judge.model_copy(update={"mode": "llm"})
    changes: dict[str, object] = {"budget": budget}
    if way == "refine":
        changes |= {"strategy": "bfs", "branch": 1, "keep": 1, "depth": budget}
    elif way == "bfs":
        changes |= {"strategy": "bfs", "depth": budget}
    elif way == "dfs":
        changes |= {"strategy": "dfs"}
    return Plan(way, budget, role, sample, judge, recipe.search.model_copy(update=changes))


Items = list[tuple[str, Callable[[], Awaitable[Response]]]]


def first_answers(engine: Engine, prompts: Sequence[Prompt], plan: Plan) -> Items:
    """The first phase's work, (id, coroutine function) each: greedy answers, or samples."""
    greedy = Decoding(temperature=0.0, max_new_tokens=plan.sample.max_new_tokens)
    decoding = plan.sample if plan.way == "best-of-n" else greedy
    ids = [(p, f"{p.id}/{k}") for p in prompts for k in range(plan.answers)]
    return [(id, partial(sample_answer, engine, p, id, decoding, plan.role)) for p, id in ids]


async def final_answer(
    engine: Engine, prompt: Prompt, answers: Sequence[Response], plan: Plan
) -> Final:
    """The second phase for one prompt; ``answers`` are its own, in order."""
    cost = sum((answer.cost for answer in answers), Cost())
    if plan.way == "greedy":
        return greedy_final(answers[0])
    judgements = await asyncio.gather(
        *(judge_answer(engine, prompt, a.text, a.id, plan.judge) for a in answers)
    )
    cost = sum((judgement.cost for judgement in judgements), cost)
    if plan.way == "best-of-n":
        return _best(prompt, answers, judgements, cost)
    answer, judgement = answers[0], judgements[0]
    if judgement.verdict is not False:  # it passes, or there is no critique to work from
        return Final(prompt.id, answer.text, "", answer.finished, judgement.verdict, cost)
    tree = await search_tree(engine, prompt, answer, judgement, plan.search, plan.judge)
    return _from_tree(answer, tree, cost + tree.cost)


def greedy_final(answer: Response) -> Final:
    """The only answer, judged by nobody."""
    return Final(answer.prompt_id, answer.text, "0", answer.finished, None, answer.cost)


def _best(
    prompt: Prompt, answers: Sequence[Response], judgements: Sequence[Judgement], cost: Cost
) -> Final:
    """The answer with the highest value, the first of equals; no value is below every other."""
    values = [-1.0 if j.value is None else j.value for j in judgements]
    n = values.index(max(values))
    return Final(
        prompt.id, answers[n].text, str(n), answers[n].finished, judgements[n].verdict, cost
    )


def _from_tree(answer: Response, tree: Tree, cost: Cost) -> Final:
    """The accepted refinement, else the best node, which may be the answer as it was."""
    node = tree.node(tree.accepted or tree.best)
    assert node.text is not None and node.judgement is not None
    finished = answer.finished if not node.path else True
    return Final(tree.prompt_id, node.text, node.path, finished, node.judgement.verdict, cost)
