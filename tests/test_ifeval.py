"""IFEval through the harness's verifiers: the same figures to the last digit, and kind errors."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spar_lite import loop
from spar_lite.app.cli import main
from spar_lite.engines.base import Request
from spar_lite.errors import SparError, StoreError
from spar_lite.evaluation.compare import compare, differences
from spar_lite.evaluation.inference_search import Final
from spar_lite.evaluation.scoring import score_ifeval
from spar_lite.evaluation.tasks.ifeval import Ifeval, verifiers
from spar_lite.evaluation.verified import (
    VerifiedPrompt,
    VerifiedResult,
    read_prompts,
    read_responses,
)
from spar_lite.recipe import Recipe, parse_recipe, recipe_slice
from spar_lite.records import Cost, Role
from spar_lite.run import Run
from spar_lite.steps import StepFolder
from spar_lite.store import Marker
from tests.scripted import ScriptedEngine, Silence

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

# One prompt for each kind of instruction that IFEval has.
KINDS: dict[str, dict[str, Any]] = {
    "keywords:existence": {"keywords": ["tea", "cup"]},
    "keywords:frequency": {"keyword": "tea", "frequency": 2, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["coffee"]},
    "keywords:letter_frequency": {"letter": "t", "let_frequency": 3, "let_relation": "at least"},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 5, "relation": "less than"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": 2,
        "nth_paragraph": 1,
        "first_word": "tea",
    },
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Write about tea."},
    "startend:end_checker": {"end_phrase": "That is all."},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {
        "capital_frequency": 2,
        "capital_relation": "at least",
    },
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}
ANSWERS = [
    "",
    "   \n ",
    "Tea is warm. Tea is kind in a cup, they say. That is all.",
    "tea is what the people in this house like to drink in the morning",
    "THE PEOPLE IN THIS HOUSE LIKE TO DRINK THEIR TEA IN THE MORNING WHEN THE SUN IS UP.",
    "Der Tee ist warm und die Leute trinken ihn gerne am Morgen, bevor sie zur Arbeit gehen.",
    "* one\n* two",
    '{"tea": 1}',
    "```json\n{\n}\n```",
    "<<Tea>>\n\nSection 1\ntea\n\nSection 2\ncup",
    "My answer is yes.",
    "First\n******\nSecond",
    "Write about tea. Tea is warm.",
    '"Tea is all that I say."',
    "tea\n\ncup",
    "tea is here\n\n***\n\ncup [name] *bold*",
    "Tea.\nP.S. more tea",
    "Intro line\nTea TEA *TEA*, tea\nOutro, with comma",
    "coffee 喝茶 ☕ \u2028 مرحبا",
    "tea " * 4000,
    "*" * 50,
    "None",
]


def ask(
    key: int, text: str, names: tuple[str, ...], kwargs: tuple[dict[str, Any], ...]
) -> VerifiedPrompt:
    return VerifiedPrompt(f"ifeval-{key}", text, key=key, names=names, kwargs=kwargs)


def check(prompt: VerifiedPrompt, response: str) -> VerifiedResult:
    return Ifeval.check(prompt, Final(prompt.id, response, "", True, None, Cost()))


@pytest.fixture
def punkt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NLTK's sentence splitter with no learnt parameters, so that no download is needed."""
    import nltk

    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    return tmp_path


def prompts_and_responses() -> tuple[list[VerifiedPrompt], dict[int | str, str]]:
    """Every kind with every answer, and some prompts with several instructions: 600 in all."""
    rng = random.Random(0)
    prompts: list[VerifiedPrompt] = []
    responses: dict[int | str, str] = {}
    names = list(KINDS)
    for n in range(600):
        one = n < len(names) * len(ANSWERS)
        chosen = [names[n % len(names)]] if one else rng.sample(names, rng.randint(2, 3))
        text = f"Write about tea. ({n})"
        prompts.append(ask(1000 + n, text, tuple(chosen), tuple(KINDS[name] for name in chosen)))
        responses[1000 + n] = ANSWERS[n // len(names)] if one else rng.choice(ANSWERS)
    return prompts, responses


def write(
    folder: Path, prompts: list[VerifiedPrompt], responses: dict[int | str, str]
) -> tuple[Path, Path]:
    data, answers = folder / "data.jsonl", folder / "responses.jsonl"
    with data.open("w") as file:
        for p in prompts:
            row = {
                "key": p.key,
                "prompt": p.text,
                "instruction_id_list": p.names,
                "kwargs": p.kwargs,
            }
            file.write(json.dumps(row) + "\n")
    with answers.open("w") as file:
        for n, (key, text) in enumerate(responses.items()):
            name = {"key": key} if n % 2 else {"prompt": f"Write about tea. ({int(key) - 1000})"}
            file.write(json.dumps({**name, "response": text}) + "\n")
    return data, answers


def score(data: Path, answers: Path, *more: str) -> Result:
    words = ["eval", "ifeval", "--data", data, "--responses", answers, "--json", *more]
    return CliRunner().invoke(main, list(map(str, words)))


def test_every_figure_equals_the_harness(punkt: Path) -> None:
    """The harness's own results and aggregation, on 600 responses, compared without tolerance."""
    prompts, responses = prompts_and_responses()
    data, answers = write(punkt, prompts, responses)
    runner = CliRunner()
    done = runner.invoke(
        main,
        ["eval", "ifeval", "--data", str(data), "--responses", str(answers), "--json"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    ours = json.loads(done.stdout)["scores"]

    from lm_eval.api.metrics import mean

    utils = verifiers()
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    theirs = [utils.process_results(row, [responses[row["key"]]]) for row in rows]
    for level, aggregate in (("prompt", mean), ("inst", agg_inst_level_acc)):
        for rule in ("strict", "loose"):
            name = f"{level}_level_{rule}_acc"
            assert ours[name]["value"] == aggregate([row[name] for row in theirs]), name
            assert 0.1 < ours[name]["value"] < 0.9  # neither all right nor all wrong
    strict, loose = ours["prompt_level_strict_acc"], ours["prompt_level_loose_acc"]
    assert strict["value"] < loose["value"] and strict["n"] == 600
    assert ours["inst_level_strict_acc"]["n"] == sum(len(r["kwargs"]) for r in rows)
    four = [
        ours[f"{a}_level_{b}_acc"]["value"] for a in ("prompt", "inst") for b in ("strict", "loose")
    ]
    assert ours["mean"]["value"] == pytest.approx(sum(four) / 4)


def test_every_kind_of_instruction_can_pass_and_fail(punkt: Path) -> None:
    for name, kwargs in KINDS.items():
        prompt = ask(1, "Write about tea.", (name,), (kwargs,))
        found = {check(prompt, answer).strict for answer in ANSWERS}
        assert found == {(True,), (False,)}, name


def test_short_texts_keep_their_language(punkt: Path) -> None:
    prompt = ask(1, "x", ("language:response_language",), ({"language": "en"},))
    assert len({check(prompt, "no tea at all").strict for _ in range(30)}) == 1


def test_a_letter_that_is_none_is_drawn_alike_every_time(punkt: Path) -> None:
    """Keys 1122 and 1129 ask for # and !: the verifier draws a letter, which must not vary."""
    kwargs = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
    prompt = ask(1122, "x", ("keywords:letter_frequency",), (kwargs,))
    state = random.getstate()
    assert len({check(prompt, "aa bb cc dd ee").strict for _ in range(30)}) == 1
    assert random.getstate() == state


def test_scores_by_hand(punkt: Path) -> None:
    """Two prompts: one of two instructions with one met, one of one that is met."""
    both = ask(1, "x", ("punctuation:no_comma", "keywords:existence"), ({}, {"keywords": ["tea"]}))
    one = ask(2, "y", ("punctuation:no_comma",), ({},))
    scores = Ifeval.scores([check(both, "no cup"), check(one, "fine")], 0)
    assert scores["prompt_level_strict_acc"].value == 1 / 2
    assert scores["inst_level_strict_acc"].value == 2 / 3
    assert scores["mean"].value == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"key": 1}'], 'wanted "key" or "prompt", and "response"'),
        (['{"response": "a"}'], 'wanted "key" or "prompt", and "response"'),
        (['{"key": [1], "response": "a"}'], r"\[1\] is none of the 2 prompts"),
        (['{"key": 9, "response": "a"}'], "9 is none of the 2 prompts"),
        (['{"prompt": "zzz", "response": "a"}'], "'zzz' is none of the 2 prompts"),
        (['{"key": 1, "response": "a"}'] * 2, "has a response already"),
        (['{"key": 1, "response": "a"}'], "1 are missing, such as key 2"),
        (["[1]"], "wanted an object, found list"),
        (["{"], "line 1 is not JSON"),
    ],
)
def test_faulty_responses_are_named(tmp_path: Path, lines: list[str], words: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(lines))
    prompts = [ask(n, str(n), (), ()) for n in (1, 2)]
    with pytest.raises(StoreError, match=words):
        read_responses(file, prompts)


def test_faulty_data_are_named(punkt: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"key": 1, "prompt": "x", "instruction_id_list": ["a"], "kwargs": []}')
    with pytest.raises(StoreError, match=r"line 1 is not IFEval's .*1 instructions, 0 kwargs"):
        read_prompts(Ifeval, file)
    with pytest.raises(StoreError, match="cannot be read"):
        read_prompts(Ifeval, tmp_path / "none.jsonl")
    names = '["punctuation:no_comma"]'
    whole = f'{{"key": 1, "prompt": "x", "instruction_id_list": {names}, "kwargs": [{{}}]}}\n'
    for text, words in (
        (whole * 2, "has key 1 twice"),
        ("\n", "is empty"),
        (whole.replace(names, "[]").replace("[{}]", "[]"), "at least one instruction"),
        (whole.replace("1", "[1]"), "a key, a text"),
    ):
        file.write_text(text)
        with pytest.raises(StoreError, match=words):
            read_prompts(Ifeval, file)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("punctuation:no_comma", {"num_words": 3}, "unexpected keyword"),
        ("length_constraints:number_words", {"relation": "around"}, "around is given"),
        ("combination:repeat_prompt", {}, "prompt_to_repeat must be set"),
        ("punctuation:no_commas", {}, 'Did you mean "punctuation:no_comma"'),
        ("length:none", {}, "prompt 1: unknown instruction 'length:none'"),
    ],
)
def test_instructions_that_no_verifier_takes(
    punkt: Path, name: str, kwargs: dict[str, Any], words: str
) -> None:
    """The harness would stop with a traceback, after all answers are generated."""
    prompts = [ask(1, "x", (name,), (kwargs,))]
    data, answers = write(punkt, prompts, {})
    done = score(data, answers)
    assert done.exit_code == 2 and words in done.output
    assert [line[:6] for line in done.output.splitlines()] == ["Error:"]


def test_the_harnesss_own_pipeline_finds_the_same(punkt: Path) -> None:
    """``simple_evaluate`` with its ifeval task, given the responses instead of a model.

    Its data come as the Hub's do: every argument on every instruction, most of them null.
    """
    from lm_eval import tasks
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate

    prompts, responses = prompts_and_responses()
    data, answers = write(punkt, prompts, responses)

    class Answers(LM):  # type: ignore[misc]
        def generate_until(self, requests: Any) -> list[str]:
            by_text = {p.text: responses[p.key] for p in prompts}
            return [by_text[request.args[0]] for request in requests]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    verifiers()  # a fixed language of short texts, for both
    folder = Path(tasks.__file__).parent / "ifeval"
    (punkt / "task").mkdir()
    shutil.copy(folder / "utils.py", punkt / "task")
    here = f"dataset_kwargs: {{data_files: {data}, cache_dir: {punkt / 'cache'}}}"
    task = (folder / "ifeval.yaml").read_text()
    assert "dataset_path: google/IFEval" in task
    task = task.replace("dataset_path: google/IFEval", f"dataset_path: json\n{here}")
    (punkt / "task" / "ifeval.yaml").write_text(task)
    manager = tasks.TaskManager(include_path=punkt / "task", include_defaults=False)
    theirs = simple_evaluate(model=Answers(), tasks=["ifeval"], task_manager=manager)["results"]
    done = score(data, answers)
    assert done.exit_code == 0, done.output
    ours = json.loads(done.stdout)["scores"]
    for level in ("prompt", "inst"):
        for rule in ("strict", "loose"):
            name = f"{level}_level_{rule}_acc"
            assert ours[name]["value"] == theirs["ifeval"][f"{name},none"], name


def test_keys_as_text_and_a_limit(punkt: Path) -> None:
    """Three prompts, responses for two, the second wrong; their keys are texts."""
    prompts = [ask(n, f"{n}", ("punctuation:no_comma",), ({},)) for n in (1, 2, 3)]
    data, _ = write(punkt, prompts, {})
    answers = punkt / "text.jsonl"
    answers.write_text('{"key": "2", "response": "a, b"}\n{"key": "1", "response": "a"}\n')
    done = score(data, answers, "--limit", "2")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["scores"]["prompt_level_strict_acc"]
    assert (found["value"], found["n"]) == (0.5, 2)
    one = json.loads(score(data, answers, "--limit", "1").stdout)["scores"]
    assert one["prompt_level_strict_acc"]["value"] == 1.0
    assert "1 are missing, such as key 3" in score(data, answers).output


def test_missing_sentence_data_are_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    verifiers.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("fetched"))
    for made in ("", "tokenizers/punkt_tab/czech"):  # other languages do not help
        (tmp_path / made).mkdir(parents=True, exist_ok=True)
        with pytest.raises(SparError, match=r"nltk\.downloader punkt_tab, or set NLTK_DATA"):
            verifiers()


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(SparError, match=r"pip install 'spar-lite\[eval\]'"):
        verifiers()


def test_responses_need_no_torch(punkt: Path) -> None:
    prompts, responses = prompts_and_responses()
    data, answers = write(punkt, prompts[:3], {p.key: responses[p.key] for p in prompts[:3]})
    code = (
        "import sys\nfrom spar_lite.app.cli import main\n"
        f"main(['eval', 'ifeval', '--data', {str(data)!r}, '--responses', {str(answers)!r}], "
        "standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prompt level strict acc" in done.stdout


def test_target_or_responses(punkt: Path) -> None:
    done = CliRunner().invoke(main, ["eval", "ifeval"])
    assert done.exit_code == 2 and "wanted a TARGET or --responses FILE" in done.output


# --- As part of a run -----------------------------------------------------------------------------


def settings(data: Path, count: int = 2, prompts: int = 0) -> Recipe:
    own = {"prompts": prompts, "ifeval": count, "ifeval_data": str(data), "ifeval_tokens": 9}
    return parse_recipe({"model": {"id": "none"}, "iterations": 2, "evaluate": own})


def run_stage(recipe: Recipe, folder: Path, place: str) -> tuple[dict[str, Any], ScriptedEngine]:
    """Do one IFEval stage; the base uses a comma in its second answer, an actor in none."""

    def reply(role: Role, request: Request) -> str:
        assert request.max_new_tokens == 9 and request.sampling.temperature == 0
        return "a, b" if role == "base" and request.id == "ifeval-2/0" else "a b"

    engine = ScriptedEngine(reply)
    job = Run(recipe, folder, Silence(), make_engine=lambda _: engine)
    number = {"base": None, "bootstrap": 0}.get(place, 2)
    job.work(lambda run: score_ifeval(run, place, number))
    found = Marker(folder / place, "ifeval").read()
    assert found is not None
    return found, engine


@pytest.fixture
def three(punkt: Path) -> Path:
    """Three prompts that forbid commas."""
    prompts = [ask(n, f"Say {n}.", ("punctuation:no_comma",), ({},)) for n in (1, 2, 3)]
    return write(punkt, prompts, {})[0]


def test_a_run_scores_base_warm_up_and_what_it_ends_with(three: Path, tmp_path: Path) -> None:
    """Two of three prompts are asked for; iteration 2 was not kept, so the end is iteration 1."""
    recipe, folder = settings(three), tmp_path / "run"
    found = Run(recipe, folder, Silence()).unfinished(loop.spar)
    assert [label for label in found if label.endswith("ifeval")] == [
        "base/ifeval",
        "bootstrap/ifeval",
        "iteration-2/ifeval",
    ]
    base, engine = run_stage(recipe, folder, "base")
    assert (base["checkpoint"], base["prompt_level_strict_acc"]) == ("base", 0.5)
    assert [role for role, _ in engine.calls] == ["base"] * 2
    Marker(folder / "iteration-2", "keep").write({"recipe": {}, "kept": 1})
    last, engine = run_stage(recipe, folder, "iteration-2")
    assert (last["checkpoint"], last["prompt_level_strict_acc"]) == ("iteration-1", 1.0)
    assert [role for role, _ in engine.calls] == ["actor"] * 2
    (difference,) = differences(recipe, folder)
    assert (difference["task"], difference["from"], difference["to"]) == (
        "IFEval prompts met",
        "base",
        "iteration-1",
    )
    assert difference["difference"]["value"] == 0.5 and difference["difference"]["n"] == 2
    Marker(folder / "iteration-1", "pairs").write({"recipe": {}, "pairs": 1})
    sides = compare([f"{folder}:base", f"{folder}:iteration-1"])
    assert sides["differences"][0]["task"] == "ifeval-run"


def test_what_the_run_has_scored_already_is_not_asked_again(three: Path, tmp_path: Path) -> None:
    """No iteration was kept, so the run ends with the warm-up."""
    recipe, folder = settings(three), tmp_path / "run"
    first, _ = run_stage(recipe, folder, "bootstrap")
    Marker(folder / "iteration-2", "keep").write({"recipe": {}, "kept": 0})
    last, engine = run_stage(recipe, folder, "iteration-2")
    assert last["checkpoint"] == first["checkpoint"] == "bootstrap" and engine.calls == []


def test_ifeval_may_be_asked_for_later(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but its own steps depends on its keys."""
    uses: dict[str, list[str]] = {}

    def note(self: StepFolder, name: str, keys: list[str], *_: Any, **__: Any) -> None:
        uses[f"{self.name}/{name}"] = list(recipe_slice(self.run.recipe, keys))

    monkeypatch.setattr(StepFolder, "_step", note)
    loop.spar(Run(settings(three, prompts=3), tmp_path, Silence()))
    mine = [label for label, keys in uses.items() if any("ifeval" in key for key in keys)]
    assert mine == [f"{name}/ifeval" for name in ("base", "bootstrap", "iteration-2")]
    uses.clear()
    loop.spar(Run(settings(three, 0), tmp_path, Silence()))
    assert uses and not [label for label in uses if label.endswith("ifeval")]


def test_what_is_missing_is_said_before_the_first_stage(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    def fails(recipe: Recipe, words: str) -> None:
        job = Run(recipe, tmp_path / "run", Silence(), make_engine=lambda _: pytest.fail("asked"))
        with pytest.raises(SparError, match=words):
            loop.execute(job)
        assert job.screen.stages == [] and not (tmp_path / "run").exists()  # type: ignore[attr-defined]

    fails(settings(three, 4), r"evaluate\.ifeval wants 4 prompts, found 3")
    fails(settings(tmp_path / "none.jsonl"), "none.jsonl cannot be read")
    verifiers.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    fails(settings(three), r"nltk\.downloader punkt_tab")
    monkeypatch.setitem(sys.modules, "nltk", None)
    fails(settings(three), r"pip install 'spar-lite\[eval\]'")
