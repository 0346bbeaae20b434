"""The whole loop over a scripted engine and a tiny model: resume, kills, changed recipes.

The scripted model answers, judges and mends by rule, so that what each stage must hold is known.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from spar_lite import loop
from spar_lite.engines.base import Request
from spar_lite.errors import EngineError, StoreError
from spar_lite.recipe import Recipe
from spar_lite.records import Cost, PreferencePair, Prompt, Response, Role, TrainingExample, Tree
from spar_lite.run import FRESH, ROLES, Adapters, Run
from spar_lite.store import Marker, StageFile
from spar_lite.templates.verdict import parse_verdict
from tests.loops import adapters_of, recipe, records_of, rule, start
from tests.scripted import ScriptedEngine, Silence

pytestmark = pytest.mark.tensors

FOLDERS = ("bootstrap", "iteration-1")


class Bars(Silence):
    """Keeps of each stage [steps announced, steps made]."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = {}
        self.stage = ""

    def start(self, stage: str, total: int, unit: str) -> None:
        assert stage not in self.found, "a second bar"
        self.found[stage] = [total, 0]
        self.stage = stage

    def advance(self, items: int) -> None:
        self.found[self.stage][1] += items


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    loop.execute(start(folder, recipe(tiny_folder)))
    return folder


def test_a_run_makes_trees_pairs_examples_and_adapters(finished: Path) -> None:
    trees = StageFile(finished / "iteration-1", "trees", Tree).load()
    pairs = StageFile(finished / "iteration-1", "pairs", PreferencePair).load()
    rows = StageFile(finished / "iteration-1", "refiner_examples", TrainingExample).load()
    assert len(trees) == 6  # every scripted answer holds a comma or lacks its phrase
    assert [p.id for p in pairs] == [t.id for t in trees if t.accepted is not None] != []
    assert not any(p.interferes for p in pairs)
    assert pairs and {row.kind for row in rows} >= {"refinement", "answer critique"}
    assert len(adapters_of(finished)) == 6  # warm-up and two iterations, two roles


def test_each_training_changes_its_own_adapter_alone(finished: Path) -> None:
    marks = loop.summaries(_saved(finished), finished)
    prints = [
        marks[label]["fingerprints"]
        for label in (
            "bootstrap/refiner",
            "bootstrap/actor",
            "iteration-1/actor",
            "iteration-1/refiner",
            "iteration-2/actor",
            "iteration-2/refiner",
        )
    ]
    trained = ["actor", "actor", "refiner", "actor", "refiner"]
    for before, after, role in zip(prints, prints[1:], trained, strict=False):
        other = "refiner" if role == "actor" else "actor"
        assert after[role] != before[role]
        assert after[other] == before[other]


def test_dpo_starts_from_the_iterations_actor(finished: Path) -> None:
    marks = loop.summaries(_saved(finished), finished)
    for label in ("iteration-1/actor", "iteration-2/actor"):
        metrics = marks[label]["metrics"]
        assert metrics["dpo_term_step0"] == pytest.approx(0.693147, abs=1e-4)  # ln 2
        assert metrics["reward_chosen_step0"] == pytest.approx(0, abs=1e-4)
        assert metrics["reward_rejected_step0"] == pytest.approx(0, abs=1e-4)


def test_iterations_share_no_prompt(finished: Path) -> None:
    texts = [
        {prompt.text for prompt in StageFile(finished / name, "prompts", Prompt).load()}
        for name in ("bootstrap", "iteration-1", "iteration-2")
    ]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_a_finished_run_is_left_alone(finished: Path, tiny_folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    again = start(finished, recipe(tiny_folder))
    assert again.unfinished(loop.spar) == []
    loop.execute(again)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_more_iterations_go_on_from_a_finished_run(finished: Path, tiny_folder: Path) -> None:
    longer = start(finished, recipe(tiny_folder, iterations=3))
    left = longer.unfinished(loop.spar)
    assert {label.partition("/")[0] for label in left} == {"iteration-3"}


def test_a_changed_recipe_is_an_error_with_both_values(finished: Path, tiny_folder: Path) -> None:
    changed = start(finished, recipe(tiny_folder, search__branch=3))
    with pytest.raises(StoreError) as error:
        loop.execute(changed)
    text = str(error.value)
    assert "search.branch" in text and "2" in text and "3" in text
    assert "-o 'search.branch=2'" in text and "--run" in text


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("iteration-1/prompts.jsonl", "iteration-1/responses"),
        ("iteration-1/pairs.jsonl", "iteration-1/audit"),
        ("bootstrap/actor/adapter_model.safetensors", "bootstrap/heldout_answers"),
        # The refiner was trained after the actor, and is none of its affair.
        ("iteration-1/actor/adapter_model.safetensors", "iteration-1/heldout_answers"),
    ],
)
def test_a_file_that_changed_under_a_finished_step_is_an_error(
    file: str, step: str, finished: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    again = start(folder, recipe(tiny_folder))
    assert again.unfinished(loop.spar) == []
    with (folder / file).open("ab") as changed:
        changed.write(b"\n")
    with pytest.raises(StoreError) as error:
        again.unfinished(loop.spar)
    assert f"{file} has changed since {step} was made from it" in str(error.value)
    # What it says helps: without the steps after it the file counts as it is.
    if step == "iteration-1/audit":
        for made in ("audit", "actor", "refiner", "heldout_answers", "heldout", "keep"):
            for path in folder.glob(f"iteration-1/{made}.*"):
                path.unlink()
        shutil.rmtree(folder / "iteration-2")
        assert again.unfinished(loop.spar)[0] == step


def test_a_step_that_was_begun_with_another_recipe_is_an_error(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Its records would be a mixture of both."""

    def dies(role: Role, request: Request) -> str:
        if role == "actor":
            raise EngineError("killed")
        return rule(role, request)

    folder = tmp_path / "run"
    job = Run(recipe(tiny_folder), folder, Silence(), make_engine=lambda _: ScriptedEngine(dies))
    with pytest.raises(EngineError):
        loop.execute(job)
    assert (folder / "base" / "heldout_answers.part.json").exists()
    # Nothing was recorded yet, so that any other value may be taken …
    other = start(folder, recipe(tiny_folder, evaluate__max_new_tokens=17))
    assert other.unfinished(loop.spar)
    # … and with a record none.
    part = StageFile(folder / "base", "heldout_answers", Response)
    part.append(Response("heldout-0000", "heldout-0000", "Tea.", True, Cost()))
    with pytest.raises(StoreError, match=r"was begun with evaluate.max_new_tokens: 16.*or remove"):
        loop.execute(other)
    part.part.unlink()
    loop.execute(start(folder, recipe(tiny_folder)))
    assert not list(folder.rglob("*.part.*"))


def test_a_step_whose_records_are_there_loads_no_model(tiny_folder: Path, tmp_path: Path) -> None:
    """A run killed between the last record and the mark."""
    folder = tmp_path / "run"
    settings = recipe(tiny_folder, iterations=0, evaluate={"prompts": 0}, bootstrap__actor=False)
    loop.execute(start(folder, settings))
    (folder / "bootstrap" / "answers.done.json").unlink()
    job = Run(settings, folder, Silence(), make_engine=lambda _: pytest.fail("opened"))
    loop.execute(job)
    assert job._policy is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bootstrap__source": "none"}, "bootstrap.source: 'constraints'"),
        ({"bootstrap__start_from": "other"}, "a warm-up of its own, which would be lost"),
        ({"evolve": {"with": "constraints"}}, "prompts was made without iteration-1/evolutions"),
    ],
)
def test_steps_that_come_or_go_with_the_recipe_are_an_error_before_anything_is_done(
    changes: dict[str, Any], words: str, finished: Path, tiny_folder: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=words):
        loop.execute(start(finished, recipe(tiny_folder, **changes)))
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_a_start_from_another_run_does_not_replace_a_warm_up(
    finished: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "warm"
    loop.execute(start(folder, recipe(tiny_folder, iterations=0, evaluate={"prompts": 0})))
    other = recipe(
        tiny_folder, iterations=0, evaluate={"prompts": 0}, bootstrap__start_from=str(finished)
    )
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(StoreError, match="a warm-up of its own, which would be lost"):
        loop.execute(start(folder, other))
    assert (folder / "recipe.yaml").read_text() == before


def test_fresh_adapters_come_back(tiny_folder: Path, tmp_path: Path, finished: Path) -> None:
    """Of a run without a warm-up whose first iteration is not kept."""
    job = start(tmp_path / "run", recipe(tiny_folder))
    fresh = {role: job.policy.fingerprint(role) for role in ROLES}
    job.use_adapters(Adapters(*(finished / "iteration-1" / role for role in ROLES)))
    assert all(job.policy.fingerprint(role) != fresh[role] for role in ROLES)
    job.use_adapters(FRESH)
    assert {role: job.policy.fingerprint(role) for role in ROLES} == fresh


def test_listing_the_steps_does_and_reads_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    found = start(tmp_path / "none", recipe(tiny_folder)).unfinished(loop.spar)
    assert found[:2] == ["base/heldout_answers", "base/heldout"]
    assert found[2:7] == [
        f"bootstrap/{name}" for name in ("prompts", "answers", "examples", "refiner", "actor")
    ]
    names = ("prompts", "responses", "judgements", "trees", "pairs", "audit", "refiner_examples")
    names += ("actor", "refiner", "heldout_answers", "heldout", "keep")
    assert found[9:] == [f"iteration-{n}/{name}" for n in (1, 2) for name in names]
    assert not (tmp_path / "none").exists()


def test_other_arrival_order_same_bytes(finished: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    loop.execute(start(folder, recipe(tiny_folder), seed=99))
    assert records_of(folder).keys() == records_of(finished).keys()
    assert records_of(folder) == records_of(finished)
    assert adapters_of(folder) == adapters_of(finished)


def dying_run(model: Path, folder: Path, survive: int) -> None:
    """A run that is killed at its n-th write; for a process of its own."""

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal survive
            survive -= 1
            if survive == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for kind, name in ((StageFile, "append"), (StageFile, "finish"), (Marker, "write")):
        setattr(kind, name, dying(getattr(kind, name)))
    loop.execute(start(folder, recipe(model, iterations=1)))


@pytest.mark.parametrize("survive", [3, 22, 31, 47, 60])
def test_sigkill_then_the_same_command_gives_the_same_bytes(
    survive: int, tiny_folder: Path, tmp_path: Path, finished: Path, processes: ForkServerContext
) -> None:
    """Killed at the n-th write, in different stages; run again, nothing lost or doubled."""
    folder = tmp_path / "killed"
    process = processes.Process(target=dying_run, args=(tiny_folder, folder, survive))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    loop.execute(start(folder, recipe(tiny_folder, iterations=1), seed=survive))
    whole = {k: v for k, v in records_of(finished).items() if not k.startswith("iteration-2")}
    assert records_of(folder) == whole
    assert not list(folder.rglob("*.part.jsonl")) and not list(folder.rglob("*.tmp"))


def _saved(folder: Path) -> Recipe:
    from spar_lite.recipe import load_recipe

    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("scripted_engine", [True, False], ids=["scripted", "model"])
def test_the_whole_loop_in_nf4_on_cpu(
    scripted_engine: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    """Scripted replies make pairs, so QLoRA DPO trains; the model's own exercise the engine."""
    settings = recipe(tiny_folder, iterations=1, model__quantization="nf4")
    job = start(tmp_path / "run", settings)
    if not scripted_engine:
        job.make_engine = None
    marks = loop.execute(job)
    assert job.policy.quantized
    assert all(w.dtype == torch.float32 for w in job.policy.weights("actor").values())
    assert "iteration-1/heldout" in marks
    if scripted_engine:
        before, after = (marks[f"{name}/actor"]["fingerprints"] for name in FOLDERS)
        assert marks["iteration-1/pairs"]["pairs"] > 0
        assert after["actor"] != before["actor"] and after["refiner"] == before["refiner"]
        assert marks["iteration-1/actor"]["metrics"]["dpo_term_step0"] == pytest.approx(
            0.6931, abs=1e-3
        )


def test_answers_that_passed_are_learnt_beside_the_pairs(tiny_folder: Path, tmp_path: Path) -> None:
    def half(role: Role, request: Request) -> str:
        text = rule(role, request)
        return text.removeprefix("Well, ") if len(text) % 2 else text

    one = {"prompts__kinds": ("no_commas",), "prompts__per_prompt": (1, 1), "sample__k": 1}
    settings = recipe(tiny_folder, iterations=1, dpo__passed=2, **one)
    job = start(tmp_path / "run", settings)
    job.make_engine = lambda run: ScriptedEngine(half)
    marks = loop.execute(job)
    assert marks["iteration-1/judgements"]["passed"] > 2 < marks["iteration-1/pairs"]["pairs"] + 2
    actor = marks["iteration-1/actor"]
    assert actor["passed"] == 2
    assert actor["examples"] == marks["iteration-1/pairs"]["pairs"] + 2


# --- Warm-up alone, starting from another run, evolving -------------------------------------------


def test_a_warm_up_alone_and_a_run_that_starts_from_it(tiny_folder: Path, tmp_path: Path) -> None:
    """iterations: 0 ends after the warm-up; a later run copies its adapters and trains on."""
    first = tmp_path / "warm"
    lessons = {"bootstrap__minimal": 1, "bootstrap__k": 2, "bootstrap__per_prompt": (2, 2)}
    marks = loop.execute(start(first, recipe(tiny_folder, iterations=0, **lessons)))
    assert not any(label.startswith("iteration") for label in marks)
    assert marks["bootstrap/answers"]["answers"] == 12
    assert marks["bootstrap/examples"]["judgements"] > 12  # minimal pairs on top
    prompts = StageFile(first / "bootstrap", "prompts", Prompt).load()
    assert all(len(p.constraints) == 2 for p in prompts)

    second = tmp_path / "loop"
    settings = recipe(tiny_folder, iterations=1, bootstrap__start_from=str(first))
    job = start(second, settings)
    marks = loop.execute(job)
    assert marks["bootstrap/start"]["adapters"] == 2 and "bootstrap/answers" not in marks
    assert (
        adapters_of(second)["bootstrap/actor/adapter_model.safetensors"]
        == (adapters_of(first)["bootstrap/actor/adapter_model.safetensors"])
    )
    assert "bootstrap/heldout" in marks
    (trained, kept) = (marks["iteration-1/actor"]["fingerprints"][r] for r in ("actor", "refiner"))
    before = loop.summaries(_saved(first), first)["bootstrap/actor"]["fingerprints"]
    assert kept == before["refiner"] and trained != before["actor"]
    assert start(second, settings).unfinished(loop.spar) == []


def test_a_start_that_does_not_fit_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = recipe(tiny_folder, bootstrap__start_from=str(tmp_path / "empty"))
    with pytest.raises(StoreError, match=r"empty ends with no adapters; wanted the folder"):
        loop.execute(start(tmp_path / "a", nothing))
    warm = tmp_path / "warm"
    loop.execute(start(warm, recipe(tiny_folder, iterations=0)))
    other = recipe(tiny_folder, bootstrap__start_from=str(warm), model__lora={"r": 4, "alpha": 4})
    with pytest.raises(StoreError, match=r"alpha 8, the recipe 4\. Set model\.lora"):
        loop.execute(start(tmp_path / "b", other))


def test_a_refiner_may_learn_to_judge_first(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spar_lite.train

    parts: list[list[TrainingExample]] = []
    losses: list[float] = []
    whole = spar_lite.train.train_on_examples

    def watch(policy: Any, role: Role, rows: list[TrainingExample], *rest: Any) -> Any:
        parts.append(rows)
        report = whole(policy, role, rows, *rest)
        losses.append(report.loss_first)
        return report

    monkeypatch.setattr(spar_lite.train, "train_on_examples", watch)
    settings = recipe(tiny_folder, iterations=0, bootstrap__curriculum="judgements")
    run = start(tmp_path / "run", settings)
    run.screen = bars = Bars()
    marks = loop.execute(run)
    alone, everything, answers = parts
    steps = marks["bootstrap/refiner"]["steps"]
    assert marks["bootstrap/refiner"]["loss_first"] == losses[0]
    assert bars.found["bootstrap/refiner"] == [steps, steps]  # one bar, and it comes to its end
    assert {row.kind for row in alone} == {"judgement"}
    assert [parse_verdict(row.completion) for row in alone] == [True, False] * (len(alone) // 2)
    assert {row.kind for row in everything} == {"judgement", "refinement"}
    assert len(alone) == len(everything)  # a chat's own judgement, and every other one
    assert {row.kind for row in answers} == {"answer"}


def test_evolved_prompts_go_through_the_loop(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "plain.jsonl"
    source.write_text("".join(f'{{"text": "Describe tea number {n}."}}\n' for n in range(4)))
    settings = recipe(
        tiny_folder,
        iterations=1,
        bootstrap={"source": "none"},
        prompts={"source": str(source), "count": 4},
        evolve={"with": "constraints", "kinds": ("no_commas", "all_lowercase")},
        evaluate={"prompts": 0},
    )
    folder = tmp_path / "run"
    marks = loop.execute(start(folder, settings))
    assert marks["iteration-1/evolutions"]["evolved"] == 4
    prompts = StageFile(folder / "iteration-1", "prompts", Prompt).load()
    plain = StageFile(folder / "iteration-1", "plain_prompts", Prompt).load()
    assert all(new.text.startswith(old.text) for new, old in zip(prompts, plain, strict=True))
    assert all(p.constraints and not p.complete for p in prompts)
    assert marks["iteration-1/trees"]["trees"] > 0
    assert _saved(folder).evolve.way == "constraints"


def test_a_model_evolves_and_the_rest_is_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "plain.jsonl"
    source.write_text("".join(f'{{"text": "Describe tea number {n}."}}\n' for n in range(4)))

    def reply(role: Role, request: Request) -> str:
        if "/evolve/" in request.id:
            number = int(request.id[12])
            text = request.messages[0].content.rpartition("<instruction>\n")[2].partition("\n")[0]
            return [f"{text} Use one sentence.", "None", "Tea.", "Tea."][number - 1]
        return rule(role, request)

    settings = recipe(
        tiny_folder,
        iterations=1,
        bootstrap={"source": "none"},
        prompts={"source": str(source), "count": 4},
        evolve={"with": "model"},
        judge__mode="llm",
        evaluate={"prompts": 0},
    )
    job = Run(settings, tmp_path / "run", Silence(), make_engine=lambda _: ScriptedEngine(reply))
    marks = loop.execute(job)
    found = marks["iteration-1/evolutions"]
    assert (found["evolved"], found["said_none"], found["unreadable"]) == (1, 1, 2)
