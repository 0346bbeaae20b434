"""lm-evaluation-harness on our model: its figures kept, the right adapter active, kind errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from spar_lite.app.cli import main
from spar_lite.errors import EngineError, SparError
from spar_lite.evaluation.stats import Interval, wilson
from spar_lite.evaluation.tasks import general
from spar_lite.evaluation.tasks.general import GeneralResult, documents, figures

if TYPE_CHECKING:
    from spar_lite.model import Policy

pytestmark = pytest.mark.tensors

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

COLOURS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WORDS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: train
num_fewshot: 2
output_type: generate_until
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 6}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
filter_list:
  - name: whole
    filter: [{{function: take_first}}]
  - name: letter
    filter: [{{function: regex, regex_pattern: "([a-z])"}}, {{function: take_first}}]
"""
GROUP = """
group: little
task: [colours, shades]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
GONE = """
task: gone
dataset_path: nobody-at-all/no-such-data
test_split: test
output_type: generate_until
doc_to_text: x
doc_to_target: y
"""
CODE = WORDS + "unsafe_code: true\n"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with eight documents each."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    rows = [
        {
            "question": f"Number {n}: the sky is",
            "choices": ["blue", "green", "red"],
            "answer": n % 3,
        }
        for n in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"data": data, "cache": folder / "cache"}
    for name, text in (("colours", COLOURS), ("shades", COLOURS), ("words", WORDS), ("code", CODE)):
        (folder / f"{name}.yaml").write_text(text.format(name=name, **where))
    (folder / "little.yaml").write_text(GROUP)
    (folder / "gone.yaml").write_text(GONE)
    return folder


def give_weight(policy: Policy, seed: int = 0) -> None:
    """Make the actor's adapter change something: LoRA's B starts at zero."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    for name, tensor in policy.weights("actor").items():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=draw))


def likelihoods(found: dict[str, Any], task: str = "colours") -> list[float]:
    return [one[0] for s in found["samples"][task] for one in s["filtered_resps"]]


# --- With the model -------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_roles_own_adapter_is_scored(
    tiny_policy: Callable[..., Policy], tasks: Path, quantization: str
) -> None:
    """Fresh adapter = base; with weights the log-likelihoods move, and are the model's own."""

    from spar_lite.model.harness import find_tasks, load_task, run_harness

    policy = tiny_policy(quantization=quantization)
    loaded = load_task(find_tasks([], tasks), "colours")
    base = likelihoods(run_harness(policy, "base", loaded))
    assert likelihoods(run_harness(policy, "actor", loaded)) == pytest.approx(base, abs=1e-4)
    give_weight(policy)
    found = run_harness(policy, "actor", loaded)
    moved = likelihoods(found)
    assert max(abs(a - b) for a, b in zip(base, moved, strict=True)) > 1
    assert likelihoods(run_harness(policy, "base", loaded)) == pytest.approx(base, abs=1e-4)

    context = found["samples"]["colours"][0]["arguments"][0][0]
    assert "<|im_start|>user" in context and context.endswith("assistant\n")


def test_log_likelihoods_are_the_models_own(
    tiny_policy: Callable[..., Policy], tasks: Path
) -> None:
    import torch

    from spar_lite.model.harness import find_tasks, load_task, run_harness

    policy, count = tiny_policy(), 0
    give_weight(policy)

    def answered(more: int) -> None:
        nonlocal count
        count += more

    loaded = load_task(find_tasks([], tasks), "colours")
    found = run_harness(policy, "actor", loaded, answered, limit=2, chat=False)
    assert count == 2 * 3
    context, choice = found["samples"]["colours"][0]["arguments"][0]
    assert (context, choice) == ("Number 0: the sky is", " blue")
    before, whole = (policy.tokenizer.encode(text) for text in (context, context + choice))
    with torch.no_grad():
        steps = torch.log_softmax(policy.inner(torch.tensor([whole])).logits[0], -1)
    wanted = sum(float(steps[n - 1, whole[n]]) for n in range(len(before), len(whole)))
    assert likelihoods(found)[0] == pytest.approx(wanted, abs=1e-3)


def test_the_harness_itself_finds_the_same(tiny_policy: Callable[..., Policy], tasks: Path) -> None:
    """Figures and drawn examples of ``lm_eval.simple_evaluate``, on the model as PEFT wraps it."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from spar_lite.model.harness import find_tasks, load_task, run_harness

    policy, known = tiny_policy(), find_tasks([], tasks)
    give_weight(policy)
    ours = [
        run_harness(policy, "actor", load_task(known, name), limit=5)
        for name in ("words", "little")
    ]
    theirs = simple_evaluate(
        model=HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=8),
        tasks=["words", "little"],
        task_manager=known,
        limit=5,
        apply_chat_template=True,
        bootstrap_iters=1000,
    )
    assert theirs["results"] == ours[0]["results"] | ours[1]["results"]
    for part in ours:
        for task, samples in part["samples"].items():
            assert theirs["samples"][task] == samples


def test_memory_that_runs_out_halves_the_batch(
    tiny_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from spar_lite.model import harness

    tried: list[int] = []

    def scarce(lm: Any, **_: Any) -> dict[str, Any]:
        tried.append(lm.batch_size)
        if lm.batch_size > enough:
            raise torch.OutOfMemoryError("no")
        return {"results": {}}

    monkeypatch.setattr(harness, "evaluate", scarce)
    policy, enough = tiny_policy(), 2
    assert harness.run_harness(policy, "base", {"tasks": {}}, batch=8) == {"results": {}}
    assert tried == [8, 4, 2]
    enough = 0
    with pytest.raises(EngineError, match="one sequence"):
        harness.run_harness(policy, "base", {"tasks": {}}, batch=1)


# --- The command ----------------------------------------------------------------------------------


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["eval", "general", *map(str, words)])


def test_the_command_scores_keeps_and_never_repeats(
    tiny_policy: Callable[..., Policy], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spar_lite.model import Policy
    from spar_lite.model.harness import find_tasks, load_task, run_harness

    policy = tiny_policy()
    give_weight(policy)
    policy.save("actor", tmp_path / "actor")
    words = [tmp_path / "actor", "--tasks", "little,words", "--include", tasks, "--json"]
    done = invoke(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)  # nothing else is there
    assert card["settings"]["role"] == "actor" and card["settings"]["tasks"] == ["little", "words"]
    assert set(card["scores"]) == {
        "colours:acc",
        "colours:acc_norm",
        "shades:acc",
        "shades:acc_norm",
        "little:acc",
        "words:exact_match,whole",
        "words:exact_match,letter",
    }
    assert card["scores"]["little:acc"]["n"] == 16 and card["scores"]["colours:acc"]["n"] == 8

    theirs = run_harness(policy, "actor", load_task(find_tasks([], tasks), "little"))["results"]
    for name in ("colours", "little"):
        assert card["scores"][f"{name}:acc"]["value"] == theirs[name]["acc,none"]
        assert card["stderr"][f"{name}:acc"] == theirs[name]["acc_stderr,none"]

    lines = (tmp_path / "out" / "general-words.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [f"words/{n}" for n in range(8)]
    assert set(rows[0]["responses"]) == {"whole", "letter"}

    monkeypatch.setattr(Policy, "load", lambda *_: pytest.fail("the model was loaded again"))
    again = invoke(*words, "--out", tmp_path / "out")
    assert json.loads(again.stdout) == card
    table = invoke(*words[:-1], "--out", tmp_path / "out")
    assert table.exit_code == 0 and "exact_match,whole" in table.output
    changed = invoke(*words, "--out", tmp_path / "out", "--limit", 2)
    assert changed.exit_code == 2 and "was made with limit: 0, now it is 2" in changed.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tasks", "colour"], 'knows no task "colour"'),
        (["--tasks", "colour"], 'Did you mean "colours"?'),
        (["--tasks", "gone"], "task gone cannot be loaded"),
        (["--tasks", "gone"], "run the same command once with a network"),
        (["--tasks", "code"], "task code runs code that the model writes: --allow-code"),
        (["--tasks", " , "], "wanted --tasks NAME"),
        (["--tasks", "colours", "--batch", "0"], "'--batch': 0 is not in the range"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(
    words: list[str], expected: str, tiny_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    done = invoke(tiny_folder, *words, "--include", tasks, "--out", tmp_path)
    assert done.exit_code == 2
    errors = [line for line in done.output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and expected in errors[0]
    assert "Traceback" not in done.output and not list(tmp_path.glob("*.json*"))


def test_a_missing_extra_is_one_line(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general.importlib.util, "find_spec", lambda _: None)
    done = invoke(tiny_folder, "--tasks", "gsm8k")
    assert done.exit_code == 2 and "pip install 'spar-lite[eval]'" in done.output


def test_own_tasks_must_be_a_folder(tmp_path: Path) -> None:
    from spar_lite.model.harness import find_tasks

    with pytest.raises(SparError, match="wants a folder"):
        find_tasks([], tmp_path / "none")


# --- Figures by hand ------------------------------------------------------------------------------


def found(values: list[Any], metric: str = "acc", **row: Any) -> dict[str, Any]:
    """The harness's results of one task, in its own shape."""
    samples = [
        {
            "doc_id": n,
            "target": "t",
            "filter": "none",
            "filtered_resps": [("r", True)],
            "metrics": [metric],
            metric: value,
        }
        for n, value in enumerate(values)
    ]
    whole = {"name": "one", "alias": "one", "sample_len": len(values), **row}
    return {"results": {"one": whole}, "samples": {"one": samples}}


def scored(found: dict[str, Any]) -> tuple[dict[str, Interval], dict[str, float]]:
    return figures(found, documents(found))


def test_yes_or_no_gets_wilsons_interval() -> None:
    """Three of three: the harness's standard error is 0, but three documents prove little."""
    scores, _ = scored(found([1.0, True, 1], **{"acc,none": 1.0, "acc_stderr,none": 0.0}))
    assert scores == {"one:acc": wilson(3, 3)}
    assert scores["one:acc"].low == pytest.approx(0.4385, abs=1e-4)


def test_shares_get_the_harnesss_standard_error_cut_at_the_ends() -> None:
    """F1 of 0.9 and 1: mean 0.95, s.e. 0.05, so 0.95 ± 0.098, and no share is above 1."""
    raw = found([0.9, 1.0], "f1", **{"f1,none": 0.95, "f1_stderr,none": 0.05})
    scores, errors = scored(raw)
    score = scores["one:f1"]
    assert (score.value, score.high, score.n) == (0.95, 1.0, 2)
    assert score.low == pytest.approx(0.852, abs=1e-4)
    assert errors == {"one:f1": 0.05}


def test_without_a_standard_error_the_interval_is_unknown() -> None:
    """A perplexity's items are pairs: no share, no record, and here no standard error."""
    raw = found([(1.0, 2)] * 3, "ppl", **{"ppl,none": 12.5, "ppl_stderr,none": "N/A"})
    scores, errors = scored(raw)
    score = scores["one:ppl"]
    assert (score.value, score.n) == (12.5, 3) and math.isnan(score.low)
    assert errors == {} and math.isnan(documents(raw)["one"][0].score)


def test_an_aggregate_that_is_no_mean_keeps_its_standard_error() -> None:
    """Items 1 and 0 under another aggregate (0.3): Wilson's interval would be of their mean."""
    raw = found([1, 0], **{"acc,none": 0.3, "acc_stderr,none": 0.1})
    assert scored(raw)[0]["one:acc"].high == pytest.approx(0.496, abs=1e-3)


def test_a_group_has_the_sum_of_its_documents() -> None:
    raw = found([1.0, 0.0], **{"acc,none": 0.5, "acc_stderr,none": 0.5})
    raw["results"]["all"] = {
        "name": "all",
        "alias": "all",
        "sample_len": 9,
        "sample_count": {"acc,none": 2},
        "acc,none": 0.5,
        "acc_stderr,none": 0.4,
    }
    score = scored(raw)[0]["all:acc"]
    assert (score.value, score.low, score.high, score.n) == (0.5, 0.0, 1.0, 2)


def test_a_document_is_one_record() -> None:
    first, second = documents(found([1.0, 0.25], **{"acc,none": 0.625}))["one"]
    said = {"none": [["r", True]]}
    assert first == GeneralResult("one/0", 1.0, "t", said, {"acc,none": 1.0})
    assert second.score == 0.25
