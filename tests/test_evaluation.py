"""The refiner's own accuracy: cases, scores by hand, files, and the commands on a tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spar_lite.app.cli import main
from spar_lite.data.prompts import builtin_prompts
from spar_lite.engines.base import Request
from spar_lite.errors import ModelError, StoreError
from spar_lite.evaluation.inference_search import Final
from spar_lite.evaluation.runner import Job, Task, evaluate, scorecards
from spar_lite.evaluation.stats import Interval, bootstrap_mean, wilson
from spar_lite.evaluation.target import Target, find_target
from spar_lite.evaluation.tasks.constraints import Constraints, ConstraintsResult
from spar_lite.evaluation.tasks.judge import (
    JudgeCase,
    JudgeResult,
    Judging,
    judge_case,
    llmbar_cases,
    minimal_pairs,
)
from spar_lite.evaluation.tasks.refine import (
    RefineResult,
    Refining,
    edit_share,
    failed,
    mend_answer,
)
from spar_lite.recipe import Judge, load_recipe, parse_recipe
from spar_lite.records import Cost, Prompt, Response, Role, Vote
from spar_lite.store import StageFile
from tests.scripted import ScriptedEngine, Silence

WELL = {"kind": "starts_with", "phrase": "Well"}
ASK = Prompt("h-0", 'Describe tea. Begin with "Well".', (WELL,), complete=True)


def answer(text: str) -> Response:
    return Response("h-0/0", "h-0", text, True, Cost(1, 5, 5))


# --- The judge ------------------------------------------------------------------------------------


def judged(
    pair: str, truth: bool, verdict: bool | None, subset: str = "a", value: float | None = None
) -> JudgeResult:
    votes = (Vote("", verdict),)
    if value is None and verdict is not None:
        value = float(verdict)
    score = float(verdict is truth)
    return JudgeResult(f"{pair}-{truth}", pair, subset, truth, votes, value, verdict, score, Cost())


def test_judge_scores_by_hand() -> None:
    """Six cases: right Yes, right No, wrong Yes, wrong No, one unreadable, one tie.

    accuracy 2 of 6, judged 2 of 4; F1: 1 right Yes, 1 wrong Yes, 2 not said Yes though true (the
    wrong No and the unreadable one): 2 / (2 + 3) = 0.4.
    """
    results = [
        judged("x", True, True),
        judged("x", False, False),
        judged("y", True, False, value=0.25),
        judged("y", False, True, value=0.75),
        judged("z", True, None),
        judged("z", False, None, value=0.5),
    ]
    scores = Judging.scores(results, 0)
    assert scores["accuracy"] == wilson(2, 6) and scores["accuracy_judged"] == wilson(2, 4)
    assert scores["f1"].value == pytest.approx(0.4)
    assert scores["no_judgement"] == wilson(2, 6) and scores["ties"] == wilson(1, 6)
    assert scores["unreadable_votes"] == wilson(2, 6)
    assert scores["says_yes"] == wilson(2, 4)
    assert scores["preferred_higher"] == wilson(1, 2)  # x right, y wrong, z without a value
    assert "macro" not in scores


def test_subsets_and_their_macro_mean() -> None:
    """One right of one in a, one right of four in b: macro (1 + 0.25) / 2.

    All are true, so F1 is 2 * right / (2 * right + missed): 1 in a, 2 / 5 in b, 0.7 on average.
    """
    results = [judged("x", True, True, "a")]
    results += [judged(f"y{n}", True, n == 0, "b") for n in range(4)]
    scores = Judging.scores(results, 0)
    assert scores["macro"].value == 0.625
    assert scores["accuracy/b"] == wilson(1, 4)
    assert scores["f1/b"].value == 0.4 and scores["macro_f1"].value == pytest.approx(0.7)


def test_llmbar_is_read_as_files_or_folders(tmp_path: Path) -> None:
    row = {"input": "Say hi.", "output_1": "Hi.", "output_2": "Bye.", "label": 1}
    for name in ("Natural", "Adversarial/GPTOut"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps([row, {**row, "label": 2}]))
    cases = llmbar_cases(tmp_path)
    assert len(cases) == 8 and len({case.id for case in cases}) == 8
    assert {case.subset for case in cases} == {"Natural", "Adversarial/GPTOut"}
    one = llmbar_cases(tmp_path / "Natural" / "dataset.json")
    assert [(c.answer, c.truth) for c in one] == [
        ("Hi.", True),
        ("Bye.", False),
        ("Hi.", False),
        ("Bye.", True),
    ]
    assert one[0].pair == one[1].pair != one[2].pair


@pytest.mark.parametrize("text", ["{}", "[{}]", '[{"input": "a", "label": 3}]', "x"])
def test_what_is_not_llmbar_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(StoreError, match=r"dataset\.json is not LLMBar's"):
        llmbar_cases(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no dataset"):
        llmbar_cases(tmp_path / "empty")


def test_minimal_pairs_are_one_good_and_one_bad() -> None:
    good, bad = minimal_pairs([(ASK, answer("The tea is warm."))], 0)
    assert (good.truth, bad.truth, good.pair) == (True, False, bad.pair)
    assert good.answer.startswith("Well") and bad.answer == "The tea is warm."
    assert good.subset == "starts_with"
    assert minimal_pairs([(ASK, answer(""))], 0) == []


def test_a_case_is_judged_by_votes_alone() -> None:
    """Mode code is set aside: the program would be the answer key."""

    def reply(role: Role, request: Request) -> str:
        return f"Final Judgement: {'No' if request.id.endswith('v2') else 'Yes'}"

    case = JudgeCase("c", "c", "s", ASK.text, "The tea.", truth=True)
    settings = Judge(votes=3, mode="code", early_stop=False)
    found = asyncio.run(judge_case(ScriptedEngine(reply), case, settings))
    assert (found.verdict, found.score, len(found.votes)) == (True, 1.0, 3)
    assert found.value == pytest.approx(2 / 3)


# --- The refiner ----------------------------------------------------------------------------------


def test_edit_share_by_hand() -> None:
    """Three of the four words on each side match: 1 - 2 * 3 / 8 = 0.25."""
    assert edit_share("the tea is warm", "the tea is cold") == 0.25
    assert edit_share("a b", "a b") == 0 and edit_share("a", "b") == 1


def test_only_failed_answers_are_mended() -> None:
    plain = Prompt("q", "Sing.")
    other = Response("q/0", "q", "La.", True, Cost())
    assert failed(ASK, answer("Tea.")) and not failed(plain, other)
    assert not failed(ASK, answer("Well, tea.")) and not failed(ASK, answer(" "))


def refiner(text: str, verdict: str) -> Callable[[Role, Request], str]:
    def reply(role: Role, request: Request) -> str:
        if len(request.messages) > 1:
            return f"To change. [[start]] {text} [[end]]"
        return f"1. It is so. {verdict}\nFinal Judgement: {verdict}"

    return reply


@pytest.mark.parametrize(
    ("text", "verdict", "truly", "believed"),
    [
        ("Well, tea is warm.", "Yes", True, True),
        ("Tea is hot.", "Yes", False, True),
        ("Well, tea is warm.", "No", True, False),
    ],
)
def test_truth_and_belief_are_told_apart(
    text: str, verdict: str, truly: bool, believed: bool
) -> None:
    engine = ScriptedEngine(refiner(text, verdict))
    settings = Judge(votes=1)
    found = asyncio.run(mend_answer(engine, ASK, answer("Tea is warm."), settings, "program", 60))
    assert (found.truly, found.believed, found.score) == (truly, believed, float(truly))
    assert found.cost.calls == 2 and found.refined == text
    critique = engine.requests[0].messages[1].content
    assert 'words are "Tea"' in critique and critique.endswith("Final Judgement: No")


def test_its_own_critique_counts_only_where_it_sees_a_fault() -> None:
    blind = ScriptedEngine(refiner("Well, tea.", "Yes"))
    found = asyncio.run(mend_answer(blind, ASK, answer("Tea."), Judge(votes=1), "own", 60))
    assert (found.noticed, found.refined, found.truly, found.believed) == (False, None, False, None)
    seeing = ScriptedEngine(refiner("Well, tea.", "No"))
    found = asyncio.run(mend_answer(seeing, ASK, answer("Tea."), Judge(votes=1), "own", 60))
    assert (found.noticed, found.truly, found.believed) == (True, True, False)


def mended(truly: bool, believed: bool | None, edit: float | None = 0.5) -> RefineResult:
    refined = None if edit is None else "x"
    return RefineResult(
        "i", ("no_commas",), "a", None, "r", refined, truly, believed, edit, float(truly), Cost()
    )


def test_refine_scores_by_hand() -> None:
    """Of four: one true and believed, two believed alone, one unreadable: flattery 0.75 - 0.25."""
    results = [mended(True, True, 0.1), *[mended(False, True)] * 2, mended(False, None, None)]
    scores = Refining.scores(results, 0)
    assert scores["truly_mended"] == wilson(1, 4) and scores["believed_mended"] == wilson(3, 4)
    assert scores["flattery"].value == 0.5
    assert scores["readable"] == wilson(3, 4)
    assert scores["edit_share"].value == pytest.approx((0.1 + 0.5 + 0.5) / 3)
    assert scores["edit_share_mended"].value == 0.1
    assert scores["truly_mended/no_commas"] == wilson(1, 4)
    assert "noticed" not in scores


# --- Constraints ----------------------------------------------------------------------------------


def final(text: str, finished: bool = True) -> ConstraintsResult:
    about = Prompt("h-0", ASK.text, (WELL,), complete=True, topic="tea")
    return Constraints.check(about, Final("h-0", text, "0", finished, None, Cost()))


def test_what_meets_a_constraint_without_answering_does_not_count() -> None:
    """Four begin as asked: one answers, one says it twice, one is off topic, one is cut off."""
    fine = "Well, tea warms a cold kitchen in the morning."
    results = [
        final(fine),
        final(f"{fine} {fine}"),
        final("Well, the dog sleeps under a large table."),
        final(fine, finished=False),
    ]
    assert [r.score for r in results] == [1, 0, 0, 0]
    scores = Constraints.scores(results, 0)
    assert scores["answers_that_count"] == wilson(1, 4)
    assert scores["constraints_met"].value == 1 and scores["met/starts_with"] == wilson(4, 4)
    assert scores["on_topic"] == wilson(3, 4) and scores["says_it_twice"] == wilson(1, 4)
    assert scores["cut_off"] == wilson(1, 4) and scores["empty"] == wilson(0, 4)
    assert scores["answer_words"].value == (9 + 18 + 8 + 9) / 4


# --- Files and commands ---------------------------------------------------------------------------


def test_a_scorecard_keeps_other_settings_out(tmp_path: Path) -> None:
    """Nor is anything done twice; a score that there is none of is read back as None."""
    asked: list[int] = []

    class Votes(Task[JudgeResult]):
        name, file, kind = "judge", "judge-x", JudgeResult

        def __init__(self, votes: int, fails: bool = False) -> None:
            self.votes, self.fails = votes, fails

        def settings(self, job: Job) -> dict[str, Any]:
            return {"votes": self.votes}

        def results(self, job: Job, file: StageFile[JudgeResult]) -> list[JudgeResult]:
            asked.append(self.votes)
            file.append(judged("x", True, True))
            assert not self.fails
            file.finish(found := list(file.resume().values()))
            return found

        def scores(self, results: Sequence[JudgeResult], seed: int) -> dict[str, Interval]:
            return {"accuracy": wilson(1, 1), "flattery": bootstrap_mean([], seed)}

    folder = tmp_path / "eval" / "base"
    target = Target("t", parse_recipe({"model": {"id": "m"}}), folder)

    def run(task: Votes) -> dict[str, Any]:
        return evaluate(Job(target, folder, Silence()), task)

    with pytest.raises(AssertionError):
        run(Votes(3, fails=True))
    assert not list(scorecards(tmp_path / "eval"))
    for _ in range(2):  # neither before it is finished nor after
        with pytest.raises(
            StoreError, match=r"made with votes: 3, now it is 5\. Keep both with --o"
        ):
            run(Votes(5))
        card = run(Votes(3))
    assert run(Votes(3)) == card and asked == [3, 3]
    assert card["scores"]["flattery"]["value"] is None and card["scores"]["accuracy"]["n"] == 1
    assert (card["results_file"], card["cost"]["calls"]) == ("judge-x.jsonl", 0)
    assert list(scorecards(tmp_path / "eval")) == [("base", "judge-x", card)]


def test_results_that_are_all_there_load_no_model(tmp_path: Path) -> None:
    """A command killed between its last result and its scorecard."""
    target = Target("t", parse_recipe({"model": {"id": "m"}}), tmp_path)
    task = Judging([JudgeCase("p-True", "p", "all", "Say tea.", "Tea.", True)], "constraints")

    def yes() -> ScriptedEngine:
        return ScriptedEngine(lambda role, request: "It does.\nFinal Judgement: Yes")

    first = evaluate(Job(target, tmp_path, Silence(), yes), task)
    (card,) = (path for path in tmp_path.glob("*.done.json") if "settings" not in path.name)
    card.unlink()
    again = evaluate(Job(target, tmp_path, Silence(), lambda: pytest.fail("opened")), task)
    assert again["scores"] == first["scores"]


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"model: {{id: {tiny_folder}, device: cpu, threads: 1, lora: {{r: 4}}}}\n"
        "judge: {votes: 2, max_new_tokens: 6}\n"
        "search: {max_new_tokens: 8, branch: 2, keep: 1, depth: 2, tries: 1}\n"
        "evaluate: {prompts: 3, max_new_tokens: 6, reply_tokens: 8}\n"
    )
    return path


def run(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["eval", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_commands_on_a_tiny_model(recipe: Path, tmp_path: Path) -> None:
    """Random weights say nothing readable: missing, not No; and nothing is done twice.

    Nor do they answer, so the base's answers, whose minimal pairs are judged, are put there.
    """
    out = tmp_path / "out"
    asked = builtin_prompts(load_recipe(recipe).prompts, 0, "heldout", 3)
    sentence = "My whole family talks about {} for many happy hours."
    said = [Response(f"{p.id}/0", p.id, sentence.format(p.topic), True, Cost()) for p in asked]
    StageFile(out, "base_answers-3-6", Response).finish(said)
    found = run("judge", recipe, "--on", "constraints", "--count", 3, "--out", out)
    assert found["scores"]["unreadable_votes"]["value"] == 1
    assert found["scores"]["accuracy"]["value"] == 0
    assert found["scores"]["f1"]["n"] % 2 == 0
    again = run("judge", recipe, "--on", "constraints", "--count", 3, "--out", out)
    assert again == found
    for way in ("greedy", "bfs"):
        card = run("constraints", recipe, "--decode", way, "--budget", 2, "--out", out)
        assert card["scores"]["answers_that_count"] == card["scores"]["cut_off"] | {
            "value": 0,
            "low": 0,
            "high": pytest.approx(0.5615, abs=1e-4),
            "n": 3,
        }
        assert card["cost"]["calls"] == 3 if way == "greedy" else card["cost"]["calls"] > 3
    mends = run("refine", recipe, "--count", 3, "--out", out)
    assert mends["scores"]["truly_mended"]["value"] == 0
    decided = mends["settings"]
    settings = load_recipe(recipe)
    assert decided["reply_tokens"] == settings.evaluate.reply_tokens
    assert decided["judge"]["reply_tokens"] == settings.judge.max_new_tokens
    lines = (out / "refine-program.jsonl").read_text().splitlines()
    assert 1 <= len(lines) == mends["scores"]["truly_mended"]["n"] <= 3  # empty ones are left out
    table = CliRunner().invoke(
        main, ["eval", "refine", str(recipe), "--count", "3", "--out", str(out)]
    )
    assert "truly mended, %" in table.stdout and "flattery" in table.stdout


def test_faults_are_one_line(recipe: Path, tmp_path: Path) -> None:
    def fails(*words: object) -> str:
        done = CliRunner().invoke(main, ["eval", *map(str, words)])
        assert done.exit_code == 2 and "Traceback" not in done.output
        return done.output

    assert (
        "did you mean"
        in fails("judge", recipe, "--on", "constraints", "--kinds", "no_comas").lower()
    )
    assert "--data FOLDER" in fails("judge", recipe, "--out", tmp_path / "o")
    assert "--checkpoint goes with a run folder" in fails("refine", recipe, "--checkpoint", "base")
    assert "--budget wants 1 or more" in fails(
        "constraints", recipe, "--budget", "0", "--out", tmp_path / "o"
    )
    assert "is no run (recipe.yaml), no adapter" in fails("refine", tmp_path)


def test_targets(recipe: Path, tmp_path: Path, tiny_policy: Callable[..., Any]) -> None:
    policy = tiny_policy()
    folder = tmp_path / "run"
    policy.save("refiner", folder / "bootstrap" / "refiner")
    (folder / "recipe.yaml").write_text(recipe.read_text())
    found = find_target(str(folder))
    assert list(found.adapters) == ["refiner"] and found.home == folder / "eval" / "bootstrap"
    assert find_target(str(folder), "base").adapters == {}
    for role in ("actor", "refiner"):
        policy.save(role, folder / "iteration-1" / role)
    found = find_target(str(folder))
    assert found.adapters["actor"] == folder / "iteration-1" / "actor"
    assert set(find_target(str(folder / "iteration-1" / "actor")).adapters) == {"actor"}
    with pytest.raises(
        StoreError, match=r"no checkpoint iteration-2; it has base, bootstrap, iter"
    ):
        find_target(str(folder), "iteration-2")
    alone = tmp_path / "alone" / "actor"
    policy.save("actor", alone)
    target = find_target(str(alone))
    assert target.recipe.model.lora.r == 4 and target.recipe.model.lora.alpha == 8
    assert target.recipe.model.id == policy.model.peft_config["default"].base_model_name_or_path
    with pytest.raises(ModelError):
        find_target(str(tmp_path))
