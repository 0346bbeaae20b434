"""Final answers by every way of decoding, with an engine whose answers have a known quality."""

from __future__ import annotations

import asyncio
import re

import pytest

from spar_lite.engines.base import Completion, Request
from spar_lite.evaluation.inference_search import (
    WAYS,
    Final,
    Plan,
    Way,
    final_answer,
    first_answers,
    make_plan,
)
from spar_lite.recipe import Judge, parse_recipe
from spar_lite.records import Prompt, Response, Role
from tests.scripted import ScriptedEngine

RECIPE = parse_recipe(
    {
        "model": {"id": "none"},
        "judge": {"votes": 3, "early_stop": False, "mode": "code"},
        "search": {"branch": 2, "keep": 1, "depth": 2, "tries": 1},
    }
)
PROMPT = Prompt("p", "Climb.", ({"kind": "no_commas"},), complete=True)


def reply(role: Role, request: Request) -> str:
    """Answers are "level N"; N of three votes say Yes, so 2 passes; a refinement climbs by one."""
    if role != "refiner":
        return f"level {int(request.id.rpartition('/')[2]) % 2}"
    first = request.messages[0].content
    level = int(re.findall(r"level (\d)", first)[-1])
    if len(request.messages) > 1:
        return f"Higher. [[start]] level {level + 1} [[end]]"
    vote = int(request.id.rpartition("/v")[2])
    return f"It is level {level}.\nFinal Judgement: {'Yes' if vote < level else 'No'}"


def plan(way: Way, budget: int = 4, role: Role = "actor") -> Plan:
    return make_plan(RECIPE, way, budget, role, 50)


def decode(chosen: Plan, talk: object = reply) -> tuple[Final, ScriptedEngine]:
    engine = ScriptedEngine(talk)  # type: ignore[arg-type]

    async def both() -> Final:
        answers: list[Response] = [
            await make() for _, make in first_answers(engine, [PROMPT], chosen)
        ]
        return await final_answer(engine, PROMPT, answers, chosen)

    return asyncio.run(both()), engine


def test_greedy_asks_once_and_judges_nothing() -> None:
    found, engine = decode(plan("greedy"))
    assert (found.text, found.picked, found.verdict, found.cost.calls) == ("level 0", "0", None, 1)
    assert engine.requests[0].sampling.temperature == 0
    assert engine.requests[0].max_new_tokens == 50


def test_best_of_n_takes_the_first_of_the_highest_values() -> None:
    """Levels 0 1 0 1: the second answer has value 1/3, the first of two; 4 answers, 12 votes."""
    found, engine = decode(plan("best-of-n"))
    assert (found.text, found.picked, found.verdict) == ("level 1", "1", False)
    assert found.cost.calls == 4 + 4 * 3
    assert engine.requests[0].sampling.temperature == RECIPE.sample.temperature


def test_refine_goes_on_until_the_gate() -> None:
    """Level 0 fails, 1 fails (1 of 3), 2 passes (2 of 3): two refinements of a budget of four."""
    found, engine = decode(plan("refine"))
    assert (found.text, found.picked, found.verdict) == ("level 2", "0.0", True)
    assert found.cost.calls == 1 + 3 + 2 * (1 + 3) == len(engine.calls)


def test_the_budget_ends_it_with_the_best_so_far() -> None:
    found, _ = decode(plan("refine", budget=1))
    assert (found.text, found.picked, found.verdict) == ("level 1", "0", False)


def test_bfs_goes_as_deep_as_the_budget_and_dfs_as_the_recipe() -> None:
    assert (plan("bfs", 9).search.depth, plan("dfs", 9).search.depth) == (9, 2)
    found, _ = decode(plan("bfs", budget=4))
    # Two levels of two refinements that are alike, and so judged once.
    assert (found.picked, found.verdict, found.cost.calls) == ("0.0", True, 4 + 2 * (2 + 3))
    found, _ = decode(plan("dfs", budget=4))
    assert (found.picked, found.verdict) == ("0.0", True)


@pytest.mark.parametrize("way", WAYS)
def test_the_program_is_never_asked(way: Way) -> None:
    """The recipe's mode is code and every answer meets the constraint; the votes say otherwise."""
    chosen = plan(way, budget=1)
    assert chosen.judge.mode == "llm"
    assert decode(chosen)[0].verdict in (None, False)


def test_an_answer_without_judgement_stays() -> None:
    def silent(role: Role, request: Request) -> str:
        return reply(role, request) if role == "actor" else "Hm."

    for way in ("refine", "bfs", "dfs"):
        found, _ = decode(plan(way), silent)
        assert (found.text, found.picked, found.verdict) == ("level 0", "", None)
    assert decode(plan("best-of-n"), silent)[0].picked == "0"


def test_a_cut_off_answer_says_so() -> None:
    def cut(role: Role, request: Request) -> str | Completion:
        if role == "actor":
            return Completion(request.id, "level 0", 1, 50, finished=False)
        return reply(role, request)

    assert not decode(plan("greedy"), cut)[0].finished
    assert decode(plan("refine"), cut)[0].finished  # the refinement is another answer


def test_the_base_answers_where_there_is_no_actor() -> None:
    _, engine = decode(plan("greedy", role="base"))
    assert engine.calls[0][0] == "base"
    assert isinstance(plan("greedy").judge, Judge) and plan("greedy").name == "greedy"
    assert plan("bfs", 8).name == "bfs-8"
