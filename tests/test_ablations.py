"""What each switch of the ablations makes the loop learn from, on records and scripted engines."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from spar_lite import constraints
from spar_lite.ablations import Played, pairs_of, without_one
from spar_lite.app.report import make_page
from spar_lite.data.evolve import loop_prompts
from spar_lite.data.prompts import builtin_prompts
from spar_lite.engines.base import Request
from spar_lite.errors import RecipeError, StoreError
from spar_lite.loop import execute, self_play, spar
from spar_lite.recipe import Judge, Prompts, Recipe, Search, parse_recipe
from spar_lite.records import (
    Cost,
    Judgement,
    Node,
    PreferencePair,
    Prompt,
    Response,
    Role,
    TrainingExample,
    Tree,
    Vote,
    stable_seed,
)
from spar_lite.run import Run, adapters_after, checkpoints
from spar_lite.search import search_tree
from spar_lite.steps import StepFolder
from spar_lite.store import StageFile, read_json
from spar_lite.warmup import fit_pairs
from tests.loops import adapters_of, changed, recipe, records_of, start
from tests.scripted import ScriptedEngine, Silence

PROMPTS = [Prompt(id, f"ask {id}") for id in ("a", "b", "c")]
VALUES = {
    "a": (0.2, 0.9, 0.6, 0.9),  # two pass alike, one fails clearly
    "b": (0.1, 0.1, 0.1, 0.1),  # all fail alike
    "c": (0.8, 1.0, None, 0.6),  # none fails, one cannot be read
}
PLENTY = Cost(1, 10, 5)


def settings(**changes: Any) -> Recipe:
    """A recipe by ``section__key``; the model is never loaded."""
    return parse_recipe(changed({"model": {"id": "none"}}, changes))


def judgement(id: str, value: float | None) -> Judgement:
    verdict = None if value is None else value > 0.5
    return Judgement(id, (), value, verdict, f"critique of {id}", "model", (), PLENTY)


def played() -> Played:
    """Four answers a prompt; of a and b a tree each, whose first refinement passes in b alone."""
    responses, judgements = [], []
    for id, values in VALUES.items():
        for k, value in enumerate(values):
            responses.append(Response(f"{id}/{k}", id, f"answer {id}/{k}", True, PLENTY))
            judgements.append(judgement(f"{id}/{k}", value))

    def node(id: str, path: str, value: float) -> Node:
        return Node(path, f"{id} refined {path}", "reply", (), judgement(f"{id}/{path}", value))

    def tree(id: str, first: float) -> Tree:
        root = Node("", f"answer {id}/0", None, (), judgement(f"{id}/0", 0.1))
        nodes = (root, node(id, "0", first), node(id, "1", 1.0))
        return Tree(id, id, f"{id}/0", nodes, "1", "1", "accepted", Cost(9, 90, 30))

    return Played(PROMPTS, responses, judgements, [tree("a", 0.2), tree("b", 0.8)])


def sides(**changes: Any) -> dict[str, tuple[str, str]]:
    pairs = pairs_of(settings(dpo__interfering=True, **changes), 0, played(), None)
    return {pair.prompt_id: (pair.chosen, pair.rejected) for pair in pairs}


def test_refined_pairs_are_the_accepted_refinement_and_its_answer():
    assert sides() == {"a": ("a refined 1", "answer a/0"), "b": ("b refined 1", "answer b/0")}


def test_first_refinements_are_taken_where_they_pass_themselves():
    assert sides(pairs__source="first-refinement") == {"b": ("b refined 0", "answer b/0")}


def test_sampled_pairs_are_a_passed_and_a_failed_answer():
    drawn = set()
    for seed in range(40):
        (pair,) = pairs_of(
            settings(pairs__source="sampled", dpo__interfering=True), seed, played(), None
        )
        assert (pair.id, pair.rejected) == ("a", "answer a/0")
        drawn.add(pair.chosen)
    assert drawn == {f"answer a/{k}" for k in (1, 2, 3)}


def test_best_of_n_takes_highest_and_lowest_value_the_first_of_equals():
    assert sides(pairs__source="best-of-n") == {
        "a": ("answer a/1", "answer a/0"),
        "c": ("answer c/1", "answer c/3"),  # an answer without a value is neither
    }


def test_an_answer_that_was_cut_off_is_never_the_best():
    """It would be learnt that answers end there; it may still be the worst."""
    made = played()
    cut_off = {"a/1", "a/3", "c/3"}
    responses = [replace(r, finished=r.id not in cut_off) for r in made.responses]
    asked = settings(pairs__source="best-of-n", dpo__interfering=True)
    pairs = pairs_of(asked, 0, made._replace(responses=responses), None)
    assert {p.id: (p.chosen, p.rejected) for p in pairs} == {
        "a": ("answer a/2", "answer a/0"),
        "c": ("answer c/1", "answer c/3"),
    }
    none = [replace(r, finished=False) for r in made.responses]
    assert pairs_of(asked, 0, made._replace(responses=none), None) == []


@pytest.mark.parametrize("strategy", ["iterative", "none"])
def test_refinements_made_one_at_a_time_may_be_greedy(strategy: str):
    search = {"strategy": strategy, "temperature": 0}
    assert settings(search=search, pairs__source="sampled").search.temperature == 0


def test_where_a_program_judges_constraints_met_part_equal_values():
    made = played()
    checks = {"b/1": (True, False), "b/2": (True, True)}
    judgements = [replace(j, checks=checks.get(j.id, (False, False))) for j in made.judgements]
    made = made._replace(judgements=judgements)

    def best(mode: str) -> list[tuple[str, str]]:
        asked = settings(pairs__source="best-of-n", dpo__interfering=True, judge__mode=mode)
        pairs = pairs_of(asked, 0, made, None)
        return [(p.chosen, p.rejected) for p in pairs if p.prompt_id == "b"]

    assert best("hybrid") == [("answer b/2", "answer b/0")]
    assert best("llm") == []


def test_the_first_prompts_within_a_number_of_tokens():
    made = played()
    # a: 4 answers and 4 judgements of 5 tokens, and a tree of 30; b the same; c without a tree
    assert made.tokens() == {"a": 70, "b": 70, "c": 40}
    assert [p.id for p in made.within(139).prompts] == ["a"]
    inside = made.within(140)
    assert [t.id for t in inside.trees] == ["a", "b"]
    assert {r.prompt_id for r in inside.responses} == {"a", "b"}
    assert {j.id[0] for j in inside.judgements} == {"a", "b"}
    assert made.within(0) is made
    assert made.within(69).prompts == []


def test_a_limit_of_pairs_counts_those_that_are_learnt():
    made = played()
    near = {f"{id}/0": f"{id} refined 1 more" for id in "bc"}  # a's sides have no word in common
    responses = [replace(r, text=near.get(r.id, r.text)) for r in made.responses]
    (first, second), third = made.trees, replace(made.trees[1], id="c", prompt_id="c")
    trees = [first, with_root(second, near["b/0"]), with_root(third, near["c/0"])]
    made = made._replace(responses=responses, trees=trees)

    def kept(**changes: Any) -> str:
        return "".join(pair.id for pair in pairs_of(settings(**changes), 0, made, None))

    assert kept() == kept(iterate__pairs=2) == kept(iterate__pairs=9) == "abc"
    assert kept(iterate__pairs=1) == "ab"
    assert kept(iterate__pairs=1, dpo__interfering=True) == "a"


def with_root(tree: Tree, text: str) -> Tree:
    root = replace(tree.nodes[0], text=text)
    return replace(tree, response_id=f"{tree.id}/0", nodes=(root, *tree.nodes[1:]))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_constraint_can_be_dropped_from_every_builtin_prompt(split: str):
    kinds = ("starts_with", "ends_with", "keyword_include", "no_commas")
    for prompt in builtin_prompts(Prompts(kinds=kinds, per_prompt=(1, 2)), 3, split, 60):
        short = without_one(prompt, 0)
        assert short is not None
        assert short.id == prompt.id and len(short.text) < len(prompt.text)
        assert prompt.topic in short.text
        asked = [constraints.from_json(data).phrasings() for data in prompt.constraints]
        there = [any(words in short.text for words in phrasings) for phrasings in asked]
        assert there.count(False) == 1, (prompt.text, short.text)


def test_a_prompt_whose_constraint_is_not_in_its_words_drops_none():
    comma = {"kind": "no_commas"}
    assert without_one(Prompt("p", "Say it all in one breath.", (comma,)), 0) is None
    assert without_one(Prompt("p", "Say it."), 0) is None
    alone = constraints.from_json(comma).phrasings()[0]
    assert without_one(Prompt("p", alone, (comma,)), 0) is None


@pytest.mark.parametrize(
    ("strategy", "paths"),
    [
        ("bfs", ["0", "1", "0.0", "0.1"]),
        ("iterative", ["0", "0.0", "0.0.0", "0.0.0.0"]),
        ("best-of-n", ["0", "1", "2", "3"]),
    ],
)
def test_searches_of_other_shapes_take_as_many_refinements(strategy: Any, paths: list[str]):
    def reply(role: Role, request: Request) -> str:
        if "<answer>" in request.messages[-1].content:
            return "It fails.\nFinal Judgement: No"
        return f"[[start]] try {request.id} [[end]]"

    wanted = Search(strategy=strategy, branch=2, keep=1, depth=2, tries=1, temperature=0.5)
    assert wanted.most == 4
    root = Response("p/0", "p", "bad", True, Cost())
    judged = Judgement("p/0", (Vote("No", False),), 0.0, False, "It fails.", "model", (), Cost())
    tree = asyncio.run(
        search_tree(ScriptedEngine(reply), Prompt("p", "ask"), root, judged, wanted, Judge(votes=1))
    )
    assert [node.path for node in tree.nodes if node.path] == paths
    assert tree.accepted is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search__strategy": "none"}, "pairs.source: refined wants a search"),
        ({"pairs__source": "sampled", "sample__k": 1}, "wants two answers a prompt"),
        ({"refiner": "shared", "bootstrap__start_from": "x"}, "found bootstrap.start_from"),
        # 1 x (1 + 1 x 2) refinements in a tree, and so as many of the answer.
        (
            {"search": {"strategy": "best-of-n", "branch": 1, "keep": 1, "temperature": 0}},
            "3 refinements are made of one answer",
        ),
        ({"pairs__source": "sampeld"}, 'Did you mean "sampled"'),
    ],
)
def test_switches_that_do_not_go_together_are_named(changes: dict[str, Any], words: str):
    with pytest.raises(RecipeError, match=words):
        settings(**changes)


def sampled_rule(role: Role, request: Request) -> str:
    """Every answer is right but those whose id says otherwise; the judge knows."""
    last = request.messages[-1].content
    if "<answer>" in last:
        good = "wrong" not in last
        return f"1. It: so.\nFinal Judgement: {'Yes' if good else 'No'}"
    if request.id.endswith("/other"):
        return "wrong other answer about it"
    return "right answer about it" if request.id.endswith("/0") else "wrong answer about it"


def test_a_dropped_constraint_gives_the_rejected_answer(tmp_path: Path):
    asked = settings(
        **{"pairs__source": "constraint-drop", "search__strategy": "none", "prompts__count": 4},
        **{"bootstrap__source": "none", "judge__votes": 1, "dpo__interfering": True},
    )
    run = start(tmp_path, asked)
    engine = ScriptedEngine(sampled_rule)
    run.make_engine = lambda _: engine
    found = self_play(run, 1)
    assert found.others is not None and len(found.others.answers) == 4 and not len(found.trees)
    texts = {r.id: r.messages[-1].content for r in engine.requests if r.id.endswith("/other")}
    seed = stable_seed(asked.seed, "iteration-1")
    short = {f"{p.id}/other": without_one(p, seed) for p in found.prompts}
    assert texts == {id: prompt.text for id, prompt in short.items() if prompt is not None}
    pairs = pairs_of(asked, 0, found.within(0), found.others)
    assert [p.rejected for p in pairs] == ["wrong other answer about it"] * 4
    assert [p.chosen for p in pairs] == ["right answer about it"] * 4


@pytest.mark.tensors
def test_the_initial_actor_answers_for_the_rejected_side(tiny_folder: Path, tmp_path: Path):
    execute(start(tmp_path, recipe(tiny_folder, dpo__rejected="initial", iterate__keep="always")))
    assert not (tmp_path / "iteration-1" / "other_answers.jsonl").exists()
    others = StageFile(tmp_path / "iteration-2", "other_answers", Response).load()
    prompts = StageFile(tmp_path / "iteration-2", "prompts", Prompt).load()
    assert [r.prompt_id for r in others] == [p.id for p in prompts]
    texts = {r.prompt_id: r.text for r in others}
    pairs = StageFile(tmp_path / "iteration-2", "pairs", PreferencePair).load()
    assert pairs and all(pair.rejected == texts[pair.prompt_id] for pair in pairs)
    made = read_json(tmp_path / "iteration-2" / "other_answers.done.json")
    assert any(name.startswith("bootstrap/actor") for name in made["inputs"])
    judged = read_json(tmp_path / "iteration-2" / "other_judgements.done.json")
    assert any(name.startswith("iteration-1/refiner") for name in judged["inputs"])


@pytest.mark.tensors
@pytest.mark.parametrize("source", ["none", "constraints"])
def test_a_frozen_refiner_stays_as_the_warm_up_left_it(
    tiny_folder: Path, tmp_path: Path, source: str
):
    execute(start(tmp_path, recipe(tiny_folder, refiner="frozen", bootstrap__source=source)))
    found = adapters_of(tmp_path)
    before = found.get("bootstrap/refiner/adapter_model.safetensors")
    for number in (1, 2):
        now = found[f"iteration-{number}/refiner/adapter_model.safetensors"]
        assert before in (None, now)
        before = now
        assert found[f"iteration-{number}/actor/adapter_model.safetensors"] != now
    assert list(checkpoints(tmp_path))[-1] == "iteration-2"


@pytest.mark.tensors
def test_a_shared_adapter_learns_as_actor_then_as_refiner(tiny_folder: Path, tmp_path: Path):
    asked = recipe(tiny_folder, refiner="shared", iterations=1, iterate__keep="always")
    execute(start(tmp_path, asked))
    found = {
        name.removesuffix("/adapter_model.safetensors"): data
        for name, data in adapters_of(tmp_path).items()
    }
    for place in ("bootstrap", "iteration-1"):
        assert found[f"{place}/actor"] == found[f"{place}/refiner"]
        assert found[f"{place}/actor_alone"] != found[f"{place}/actor"]
    made = read_json(tmp_path / "iteration-1" / "refiner.done.json")
    assert "iteration-1/actor_alone/adapter_model.safetensors" in made["inputs"]
    assert adapters_after(asked, tmp_path, 1).refiner == tmp_path / "iteration-1" / "refiner"
    execute(start(tmp_path, asked))  # a finished one is left alone
    trained = read_json(tmp_path / "iteration-1" / "actor_alone.done.json")
    rows = make_page([tmp_path])
    assert f'"{trained["examples"]}"' in rows[rows.index("From prompts to pairs") :][:600]


@pytest.mark.tensors
def test_rejection_sampling_learns_the_chosen_answers_alone(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import spar_lite.train as train

    taught: dict[str, list[TrainingExample]] = {}
    real = train.train_on_examples

    def watch(policy: Any, role: Role, rows: list[TrainingExample], *rest: Any) -> Any:
        taught[role] = rows
        return real(policy, role, rows, *rest)

    monkeypatch.setattr(train, "train_on_examples", watch)
    changes = {"dpo__passed": 2, "dpo__interfering": True, "iterations": 1}
    execute(start(tmp_path, recipe(tiny_folder, actor__method="rft", **changes)))
    assert "iterate.tokens" in read_json(tmp_path / "iteration-1" / "actor.done.json")["recipe"]
    pairs = StageFile(tmp_path / "iteration-1", "pairs", PreferencePair).load()
    assert pairs
    kinds = [row.kind for row in taught["actor"]]
    assert [row.completion for row in taught["actor"]][: len(pairs)] == [p.chosen for p in pairs]
    assert kinds[: len(pairs)] == ["chosen answer"] * len(pairs)
    assert set(kinds[len(pairs) :]) <= {"passed answer"}


@pytest.mark.tensors
def test_a_limit_of_tokens_holds_for_pairs_and_examples(tiny_folder: Path, tmp_path: Path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    execute(start(whole, recipe(tiny_folder, iterations=1)))
    execute(start(part, recipe(tiny_folder, iterations=1, iterate__tokens=150)))
    for name in ("responses", "judgements", "trees"):
        file = f"iteration-1/{name}.jsonl"
        assert records_of(whole)[file] == records_of(part)[file]
    if_passed = read_json(part / "iteration-1" / "actor.done.json")["recipe"]
    assert "iterate.tokens" not in if_passed  # it learns from the pairs alone here
    fewer = StageFile(part / "iteration-1", "pairs", PreferencePair).load()
    all_pairs = StageFile(whole / "iteration-1", "pairs", PreferencePair).load()
    assert fewer == all_pairs[: len(fewer)] and len(fewer) < len(all_pairs)


@pytest.mark.tensors
def test_a_limit_below_the_first_prompt_is_said(tiny_folder: Path, tmp_path: Path):
    run, said = start(tmp_path, recipe(tiny_folder, iterations=1, iterate__tokens=1)), []
    run.screen.say = said.append
    execute(run)
    (line,) = (line for line in said if "iterate.tokens" in line)
    assert "iteration-1: iterate.tokens: 1 is less than its first prompt took" in line


@pytest.mark.tensors
def test_that_no_pair_is_taken_in_is_said_with_the_reason(tmp_path: Path):
    """Two sampled answers often have hardly a word in common."""
    run, said = start(tmp_path, settings(pairs__source="sampled")), []
    run.screen.say = said.append
    at = StepFolder(run, "iteration-1")
    pair = PreferencePair("p", "p", (), "one", "two", ("rewritten",))
    assert fit_pairs(at, [pair]) == fit_pairs(at, []) == {"examples": 0}
    assert "all 1 differ in more" in said[0] and "dpo.interfering: true" in said[0]
    assert said[1] == "no preference pairs: the actor stays as it is"


@pytest.mark.tensors
def test_a_copy_is_said_under_its_own_name(tiny_folder: Path, tmp_path: Path):
    run, begun = start(tmp_path, recipe(tiny_folder, iterations=1, refiner="frozen")), []
    run.screen.start = lambda stage, *_: begun.append(stage)
    execute(run)
    assert begun[begun.index("iteration-1/actor") + 1] == "iteration-1/refiner"


@pytest.mark.tensors
def test_pairs_are_not_counted_anew_in_silence(tiny_folder: Path, tmp_path: Path):
    """Which pairs are the first so many depends on which are learnt at all."""
    asked = recipe(tiny_folder, iterations=1, iterate__pairs=1)
    execute(start(tmp_path, asked))
    for name in ("actor", "refiner"):
        (tmp_path / "iteration-1" / f"{name}.done.json").unlink()
    other = recipe(tiny_folder, iterations=1, iterate__pairs=1, dpo__interfering=True)
    with pytest.raises(StoreError, match=r"pairs was made with dpo\.interfering: False"):
        execute(start(tmp_path, other))


@pytest.mark.tensors
def test_a_run_of_before_a_key_is_one_with_its_default(tiny_folder: Path, tmp_path: Path):
    execute(start(tmp_path, recipe(tiny_folder, iterations=1)))
    new = ("pairs.source", "iterate.tokens", "iterate.pairs", "actor.method", "dpo.rejected")
    for path in tmp_path.rglob("*.done.json"):
        mark = json.loads(path.read_text())
        mark["recipe"] = {k: v for k, v in mark["recipe"].items() if k not in new}
        path.write_text(json.dumps(mark))
    saved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    for name in ("pairs", "actor", "refiner"):
        del saved[name]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(saved))
    same = recipe(tiny_folder, iterations=1)
    assert Run(same, tmp_path, Silence()).unfinished(spar) == []
    other = recipe(tiny_folder, iterations=1, pairs__source="sampled")
    with pytest.raises(StoreError, match=r"pairs was made with pairs\.source: 'refined'"):
        execute(start(tmp_path, other))


def test_three_iterations_and_one_pass_see_the_same_prompts(tmp_path: Path):
    """Without iterative training: one iteration over as many prompts (paper, table 4)."""

    def texts(folder: Path, iterations: int, count: int) -> list[str]:
        asked = settings(
            bootstrap__source="none", prompts__count=count, iterations=iterations, judge__votes=1
        )
        found = []
        for number in range(1, iterations + 1):
            run = start(folder, asked)
            run.make_engine = lambda _: ScriptedEngine(sampled_rule)
            found += [p.text for p in loop_prompts(StepFolder(run, f"iteration-{number}"), number)]
        return found

    assert texts(tmp_path / "three", 3, 5) == texts(tmp_path / "one", 1, 15)
