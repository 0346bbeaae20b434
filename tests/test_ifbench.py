"""IFBench through its authors' verifiers: verdicts on answers written by hand, and kind errors."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spar_lite.app.cli import main
from spar_lite.data.decontaminate import read_benchmark
from spar_lite.engines.base import Request
from spar_lite.errors import SparError, StoreError
from spar_lite.evaluation.compare import compare
from spar_lite.evaluation.inference_search import Final
from spar_lite.evaluation.runner import Job, evaluate
from spar_lite.evaluation.target import Target
from spar_lite.evaluation.tasks.ifbench import NLTK, TAGGER, Ifbench, verifiers
from spar_lite.evaluation.verified import (
    VerifiedPrompt,
    VerifiedResult,
    read_prompts,
    read_responses,
)
from spar_lite.recipe import parse_recipe
from spar_lite.records import Cost, Role
from tests.scripted import ScriptedEngine, Silence

pytest.importorskip("if_verifiable", reason="the extra eval is not installed")

# One line each: instruction, arguments, an answer that meets it, one that does not.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "count:word_count_range",
        {"min_words": 3.0, "max_words": 5.0},
        "Tea is warm today",
        "Tea is warm and kind today",
    ),
    ("count:unique_word_count", {"N": 3.0}, "tea is warm", "tea tea is Tea"),
    ("count:numbers", {"N": 2.0}, "I had 2 cups at 10.", "I had 2 cups."),
    ("count:conjunctions", {"small_n": 2.0}, "Tea and milk, but no sugar", "Tea and milk"),
    ("count:person_names", {"N": 2.0}, "Emma met Liam.", "Emma met Emma."),
    ("sentence:keyword", {"word": "cup", "N": 2.0}, "Tea is hot. Take a cup.", "A cup. Of tea."),
    ("ratio:sentence_type", {}, "It is tea. It is hot. Is it?", "It is tea. Is it?"),
    ("ratio:stop_words", {"percentage": 20.0}, "green tea tastes fresh", "the tea is in the cup"),
    ("words:alphabet", {}, "an big cup", "tea tea tea"),
    ("words:palindrome", {}, "level radar civic kayak rotor madam refer stats tenet solos", "tea"),
    ("words:no_consecutive", {}, "tea is warm", "tea tastes warm"),
    ("words:repeats", {"small_n": 1.0}, "tea is warm", "tea is tea"),
    ("words:start_verb", {}, "Write it down.", "The tea."),
    ("words:words_position", {"keyword": "tea"}, "My tea is good tea now", "tea is good"),
    ("format:parentheses", {}, "a (b [c {d (e [f])}])", "a (b [c])"),
    ("format:emoji", {}, "Tea is hot 😀", "Tea is hot."),
    ("format:list", {"sep": "..."}, "... tea\n... milk", "- tea\n- milk"),
    ("format:line_indent", {}, "tea\n milk\n  cup", "tea\nmilk\n cup"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "a b c"),
    ("format:no_whitespace", {}, "tea", "tea cup"),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "a"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Say tea now"}, "Drink tea now", "Say tea now"),
    ("custom:multiples", {}, "14 21 28 35 42 49", "14 21"),
]


def ask(key: str, text: str, *instructions: tuple[str, dict[str, Any]]) -> VerifiedPrompt:
    names, kwargs = zip(*instructions, strict=True)
    return VerifiedPrompt(f"ifbench-{key}", text, key=key, names=names, kwargs=kwargs)


def check(prompt: VerifiedPrompt, response: str) -> VerifiedResult:
    return Ifbench.check(prompt, Final(prompt.id, response, "", True, None, Cost()))


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small stand-ins of NLTK's data, so that no download is needed."""
    import nltk

    folder = tmp_path / "nltk"
    names = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
    texts = {f"{NLTK['punkt_tab']}{name}": "" for name in names}
    texts |= {f"{NLTK['punkt']}README": "", NLTK["stopwords"]: "the\nis\nin\n"}
    parts = {"weights": {"bias": {"NN": 1.0}}, "tagdict": {"Write": "VB"}, "classes": ["NN", "VB"]}
    texts |= {f"taggers/{TAGGER}/{TAGGER}.{k}.json": json.dumps(v) for k, v in parts.items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("NLTK_DATA", str(folder))
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("fetched"))
    return tmp_path


def write(folder: Path, *prompts: VerifiedPrompt) -> Path:
    """A file as the data set has it."""
    file = folder / "data.jsonl"
    rows = [
        {"key": p.key, "prompt": p.text, "instruction_id_list": p.names, "kwargs": p.kwargs}
        for p in prompts
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def score(data: Path, answers: Path, *more: str) -> Result:
    words = ["eval", "ifbench", "--data", data, "--responses", answers, "--json", *more]
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.mark.parametrize(("name", "kwargs", "right", "wrong"), CASES, ids=[c[0] for c in CASES])
def test_a_right_and_a_wrong_answer(
    nltk_data: Path, name: str, kwargs: dict[str, Any], right: str, wrong: str
) -> None:
    """As the Hub has it: with every argument, most of them null."""
    prompt = ask("7", "Write about tea.", (name, {"m": None, "options": None, **kwargs}))
    assert check(prompt, right).strict == (True,)
    assert check(prompt, wrong).strict == (False,)
    assert check(prompt, " \n").strict == check(prompt, " \n").loose == (False,)


def test_all_58_kinds_are_there(nltk_data: Path) -> None:
    assert len(verifiers()) == 58 and {case[0] for case in CASES} < set(verifiers())


@pytest.mark.parametrize(
    "answer",
    ["tea*", "Sure, here it is:\ntea", "tea\nHope it helps", "Sure, here:\n*tea*\nHope it helps"],
)
def test_loose_is_any_of_eight_ways_to_read_an_answer(nltk_data: Path, answer: str) -> None:
    """Without the first line, the last, both, stars: here "tea" must be all there is."""
    prompt = ask("1", "x", ("repeat:repeat_change", {"prompt_to_repeat": "drink"}))
    assert check(prompt, "tea").strict == (True,)
    prompt = ask("1", "x", ("format:no_whitespace", {}), ("count:punctuation", {}))
    found = check(prompt, answer)
    assert found.loose == (True, False) and found.score == 0.0
    assert found.strict == (answer == "tea*", False)


def test_an_answer_that_a_verifier_stumbles_over_is_not_met(nltk_data: Path) -> None:
    """The package raises IndexError here, and an hour of answers would end in a traceback."""
    prompt = ask("1", "x", ("format:quote_unquote", {}))
    with pytest.raises(IndexError):
        verifiers()["format:quote_unquote"]("").check_following("...")
    assert check(prompt, "...").loose == (False,)


def test_missing_arguments_are_drawn_alike_every_time(nltk_data: Path) -> None:
    """A span that starts at word 0 is drawn anew by the package, which takes 0 for none."""
    kwargs = {"prompt_to_repeat": "one two three four five six", "n_start": 0, "n_end": 3}
    prompt = ask("286", "x", ("repeat:repeat_span", kwargs))
    assert len({check(prompt, "one two three").strict for _ in range(30)}) == 1


def test_scores_of_a_file_of_responses(nltk_data: Path) -> None:
    """Three prompts of four instructions: the first meets both, the second is met loosely."""
    data = write(
        nltk_data,
        ask("0", "First.", ("format:no_whitespace", {}), ("count:numbers", {"N": 1.0})),
        ask("1", "Second.", ("format:no_whitespace", {})),
        ask("2", "Third.", ("format:emoji", {})),
    )
    answers = nltk_data / "r.jsonl"
    rows = [
        {"key": "0", "response": "1"},
        {"prompt": "Second.", "response": "Sure, here:\ntea"},
        {"key": 2, "response": "tea."},
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = score(data, answers)
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)
    found = {name: (score["value"], score["n"]) for name, score in card["scores"].items()}
    assert found["prompt_level_strict_acc"] == (pytest.approx(1 / 3), 3)
    assert found["prompt_level_loose_acc"] == (pytest.approx(2 / 3), 3)
    assert found["inst_level_strict_acc"] == (2 / 4, 4)
    assert found["inst_level_loose_acc"] == (3 / 4, 4)
    assert card["task"] == "ifbench" and card["settings"]["verifiers"].startswith("if-verifiable ")
    one = json.loads(score(data, answers, "--limit", "1").stdout)["scores"]
    assert one["prompt_level_strict_acc"]["value"] == 1.0
    with pytest.raises(StoreError, match="1 are missing, such as key 2"):
        answers.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
        read_responses(answers, read_prompts(Ifbench, data))


@pytest.mark.parametrize(
    ("key", "name", "kwargs", "words"),
    [
        ("1", "format:emojis", {}, 'Did you mean "format:emoji"'),
        ("1", "count:numbers", {"number": 3}, "IFBench prompt 1: the kwargs do not fit"),
        ("1", "repeat:repeat_change", {}, "prompt_to_repeat must be set"),
        (None, "format:emoji", {}, "a key, a text and at least one instruction"),
    ],
)
def test_faulty_data_are_named(
    nltk_data: Path, key: Any, name: str, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(StoreError, match=words):
        read_prompts(Ifbench, write(nltk_data, ask(key, "x", (name, kwargs))))


@pytest.mark.parametrize("name", NLTK)
def test_missing_data_are_named_and_never_fetched(
    nltk_data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    verifiers.cache_clear()
    (nltk_data / "nltk" / NLTK[name]).rename(nltk_data / "away")
    with pytest.raises(SparError, match=rf"nltk\.downloader {name}, or set NLTK_DATA") as error:
        verifiers()
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_one_line(nltk_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is loaded, and before the data are asked for."""
    verifiers.cache_clear()
    monkeypatch.setitem(sys.modules, "if_verifiable.ifbench.instructions_registry", None)
    done = CliRunner().invoke(main, ["eval", "ifbench", "no/model"])
    assert done.exit_code == 2 and "IFBench's verifiers come with the extra eval" in done.output
    assert len(done.output.splitlines()) == 1 and "pip install 'spar-lite[eval]'" in done.output


def test_checkpoints_of_a_run_are_compared_prompt_by_prompt(nltk_data: Path) -> None:
    """The base writes two words where none may be; the warm-up's actor writes one."""
    data = write(
        nltk_data, *(ask(str(n), f"Say {n}.", ("format:no_whitespace", {})) for n in range(3))
    )
    recipe, folder = parse_recipe({"model": {"id": "none"}}), nltk_data / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("model: {id: none}\n")
    adapters: dict[str, dict[Role, Path]] = {"base": {}, "bootstrap": {"actor": nltk_data}}
    for place, roles in adapters.items():

        def reply(role: Role, request: Request) -> str:
            return "a b" if role == "base" and request.id != "ifbench-0/0" else "ab"

        target = Target(place, recipe, folder / "eval" / place, roles)
        job = Job(target, target.home, Silence(), partial(ScriptedEngine, reply))
        prompts = read_prompts(Ifbench, data)
        task = Ifbench(prompts, job.plan("greedy", 1, 9), verifiers="theirs")
        card = evaluate(job, task)
        assert card["scores"]["prompt_level_strict_acc"]["n"] == 3
        assert evaluate(job, task) == card  # nothing is asked again
    (found,) = compare([f"{folder}:base", f"{folder}:bootstrap"])["differences"]
    assert found["task"] == "ifbench-greedy" and found["left_out"] == 0
    assert found["difference"]["value"] == pytest.approx(2 / 3)
    sides = [f"{folder}:base", f"{folder}:bootstrap"]
    for words in (["compare", *sides], ["status", str(folder)], ["report", str(folder)]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output


def test_its_prompts_are_kept_out_of_the_training_prompts(nltk_data: Path) -> None:
    text = "Tell me how a kettle boils water so fast, in words that a child of five would know."
    bench = read_benchmark(write(nltk_data, ask("0", text, ("format:emoji", {}))))
    assert bench.holds(f"Please: {text}") and not bench.holds("Tell me of a kettle.")
