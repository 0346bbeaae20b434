"""What is exported: other programs load it, its card is honest, nothing is sent unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import datasets
import huggingface_hub
import pytest
import torch
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from spar_lite import loop
from spar_lite.app.card import make_card
from spar_lite.app.cli import main
from spar_lite.app.console import INVISIBLE
from spar_lite.recipe import PairSource, dump_recipe
from spar_lite.records import PreferencePair, Tree
from spar_lite.run import saved_recipe
from spar_lite.store import StageFile
from tests.loops import recipe, start

pytestmark = pytest.mark.tensors

HOSTILE = (
    "<script>alert(1)</script> ![x](javascript:alert(2)) [a](http://b.c) http://d.e | ``` ` *b* "
    "\u202eright\u202c zero\u200bwidth \x1b[31mred [bold]rich[/] \ud83d &lt; " + "x" * 1_000_000
)


REFINED = ("refined", "first-refinement")


def export(run: Path, shape: str, out: Path, *words: str, **more: Any) -> Result:
    return CliRunner().invoke(
        main, ["export", str(run), "--format", shape, "-o", str(out), *words], **more
    )


def exported(run: Path, shape: str, out: Path, *words: str) -> Path:
    result = export(run, shape, out, *words)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration, whose adapters are far enough from the base to be seen."""
    settings = recipe(
        tiny_folder, iterations=1, prompts__count=12, dpo__interfering=True, dpo__lr=2e-2
    )
    folder = tmp_path_factory.mktemp("export") / "run"
    loop.execute(start(folder, settings))
    return folder


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: Any, tokenizer: Any) -> list[list[int]]:
    found = []
    for text in ("Write about tea.", "Say it.", "What is light?"):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        found.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return found


@pytest.mark.parametrize("role", ["actor", "refiner"])
def test_an_adapter_is_one_to_plain_peft(
    run: Path, tiny_folder: Path, tmp_path: Path, role: str
) -> None:
    out = exported(run, "adapter", tmp_path / "out", "--role", role)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    theirs, ours = (
        greedy(PeftModel.from_pretrained(plain(tiny_folder), folder), tokenizer)
        for folder in (out, run / "iteration-1" / role)
    )
    assert theirs == ours != greedy(plain(tiny_folder), tokenizer)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == saved_recipe(run).model.id


def test_a_merged_model_answers_as_base_and_adapter_do(
    run: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """The float32 sum says the same, greedily; what is written are its weights, rounded once.

    That rounding alone may turn a near tie, of which a random model has many.
    """
    out = exported(run, "merged", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False)
    apart = PeftModel.from_pretrained(plain(tiny_folder), run / "iteration-1" / "actor")
    said = greedy(apart, tokenizer)
    summed = apart.merge_and_unload()
    assert greedy(summed, tokenizer) == said
    assert greedy(plain(out), tokenizer)
    state = summed.state_dict()
    for name, tensor in load_file(out / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, state[name].bfloat16())


def test_what_was_trained_on_four_bits_is_merged_into_their_values(
    run: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    nf4 = tmp_path / "run"
    shutil.copytree(run, nf4)
    settings = saved_recipe(nf4, ["model.quantization=nf4"])
    (nf4 / "recipe.yaml").write_text(dump_recipe(settings))
    out = exported(nf4, "merged", tmp_path / "out")
    assert "4 bits" in (out / "README.md").read_text()
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    found = load_file(out / "model.safetensors")
    full = load_file(exported(run, "merged", tmp_path / "full") / "model.safetensors")
    near = [torch.dist(found[name], full[name]) / full[name].norm() for name in found]
    assert found.keys() == full.keys() and 0 < max(near) < 0.2  # NF4's own error, no more


def test_gguf_ready_is_f16_and_says_how_it_goes_on(run: Path, tmp_path: Path) -> None:
    out = exported(run, "gguf-ready", tmp_path / "out")
    state = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert "convert_hf_to_gguf.py FOLDER --outtype f16" in (out / "README.md").read_text()
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (
        AutoTokenizer.from_pretrained(out).encode("hi") and (out / "chat_template.jinja").exists()
    )


def test_a_sum_that_is_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    """Weights that overflow in f16; a head with an adapter that is also the embedding."""
    big = tmp_path / "big"
    shutil.copytree(run, big)
    base = Path(saved_recipe(run).model.id)
    shutil.copytree(base, tmp_path / "base")
    model = plain(base)
    model.model.norm.weight.data[:] = 1e6
    model.save_pretrained(tmp_path / "base")
    settings = saved_recipe(big, [f"model.id={tmp_path / 'base'}"])
    (big / "recipe.yaml").write_text(dump_recipe(settings))
    result = export(big, "gguf-ready", tmp_path / "out")
    assert result.exit_code == 2 and "too large for float16" in result.output
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".export-*"))


def test_pairs_are_what_datasets_and_trl_take(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = exported(run, "pairs", tmp_path / "out")
    found = StageFile(run / "iteration-1", "pairs", PreferencePair).load()
    assert found
    rows = datasets.load_dataset(
        "json", data_files=str(out / "pairs.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [row["chosen"][0]["content"] for row in rows] == [pair.chosen for pair in found]
    config = DPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=1, report_to="none", use_cpu=True,
        per_device_train_batch_size=2, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=plain(tiny_folder),
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_folder),
    )
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)


def test_pairs_are_what_llama_factory_describes(run: Path, tmp_path: Path) -> None:
    """Its converter's rules for a ranking in ShareGPT's form: odd turns, one reply a side."""
    out = exported(run, "pairs", tmp_path / "out", "--checkpoint", "iteration-1")
    (about,) = json.loads((out / "dataset_info.json").read_text()).values()
    assert about["formatting"] == "sharegpt" and about["ranking"] is True
    names = about["columns"]
    for line in (out / about["file_name"]).read_text().splitlines():
        row = json.loads(line)
        turns = [turn["from"] for turn in row[names["messages"]]]
        turns = turns[1:] if turns[0] == "system" else turns
        assert turns == ["human", "gpt"] * (len(turns) // 2) + ["human"]
        for side in (row[names["chosen"]], row[names["rejected"]]):
            assert side["from"] == "gpt" and isinstance(side["value"], str)


def test_trees_come_with_their_prompts(run: Path, tmp_path: Path) -> None:
    out = exported(run, "trees", tmp_path / "out")
    rows = [json.loads(line) for line in (out / "trees.jsonl").read_text().splitlines()]
    trees = StageFile(run / "iteration-1", "trees", Tree).load()
    assert [row["id"] for row in rows] == [tree.id for tree in trees]
    assert all(row["prompt"]["text"] and row["nodes"][0]["text"] for row in rows)


@pytest.mark.parametrize(
    ("shape", "words", "expected"),
    [
        ("adapter", ["--checkpoint", "base"], "has no actor"),
        ("adapter", ["--checkpoint", "iteration-9"], "has no checkpoint iteration-9"),
        ("pairs", ["--checkpoint", "bootstrap"], "no finished pairs"),
        ("adapter", ["--role", "refiner"], "adapter_model.safetensors is missing"),
        ("adapter", ["--push", "name"], "wants OWNER/NAME"),
        ("adapter", ["--push", "a/b"], "hf auth login"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Path, tmp_path: Path, shape: str, words: list[str], expected: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    if "refiner" in words:
        run = shutil.copytree(run, tmp_path_factory.mktemp("lean") / "run")
        (run / "iteration-1" / "refiner" / "adapter_model.safetensors").unlink()
    result = export(run, shape, tmp_path / "out", *words)
    assert result.exit_code == 2 and expected in result.output
    assert result.output.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("my thesis")
    result = export(run, "trees", tmp_path)
    assert result.exit_code == 2 and "-o FOLDER" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


# --- The card -------------------------------------------------------------------------------------


def test_the_card_says_how_well_and_who_judged(run: Path, tmp_path: Path) -> None:
    card = (exported(run, "adapter", tmp_path / "out") / "README.md").read_text()
    assert "answers that count, %" in card and "| 4 |" in card and "95 % interval" in card
    assert "the votes of the model itself" in card and "What this does not show" in card
    assert "| dpo.lr | `0.02` | `5e-06` |" in card and "## Alarms" in card
    assert "More Information Needed" not in card and "TRL" not in card


@pytest.mark.parametrize("source", get_args(PairSource))
def test_the_card_says_what_the_pairs_are(run: Path, source: str) -> None:
    settings = saved_recipe(run, [f"pairs.source={source}", "dpo.rejected=initial"])
    card = make_card(settings, run, "iteration-1", "pairs", [])
    assert ("refinement" in card.partition("A model wrote")[0]) == (source in REFINED)
    assert ("value" in card.partition("A model wrote")[0]) == (source == "best-of-n")
    assert "by the actor before iteration 1" in card and "{}" not in card


def test_data_are_of_all_iterations_unless_one_is_named(run: Path, tmp_path: Path) -> None:
    every = (exported(run, "trees", tmp_path / "all") / "README.md").read_text()
    assert "# SPaR trees: `run of all iterations`" in every and "- iteration-1: pairs" in every
    words = ["--checkpoint", "iteration-1"]
    one = (exported(run, "trees", tmp_path / "one", *words) / "README.md").read_text()
    assert "# SPaR trees: `run iteration-1`" in one and "- iteration-1: pairs" in one
    assert "- iteration-1: pairs" not in make_card(
        saved_recipe(run), run, "iteration-2", "trees", []
    )


def test_the_card_reads_no_markup(run: Path) -> None:
    settings = saved_recipe(run)
    hostile = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"id": HOSTILE.replace("\ud83d", "")}),
            "prompts": settings.prompts.model_copy(update={"source": HOSTILE}),
            "engine": settings.engine.model_copy(update={"url": "http://me:secret@host/v1"}),
        }
    )
    for shape in ("adapter", "pairs"):
        card = make_card(hostile, run, "iteration-1", shape, ["a fact"])
        assert not INVISIBLE.search(card) and len(card) < 20_000 and "secret" not in card
        card.encode()
        body = card.split("---\n", 2)[2]
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
        inside = [child for token in tokens for child in token.children or [token]]
        kinds = {token.type for token in inside}
        assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "fence"}
        spans = [token.content for token in inside if token.type == "code_inline"]
        assert sum("<script>alert(1)</script> ![x](javascript" in span for span in spans) >= 3


# --- The Hub --------------------------------------------------------------------------------------


class Hub:
    """Stands for the Hub's client; keeps what it was asked."""

    def __init__(self, fault: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fault = fault

    def __call__(self) -> Hub:
        return self

    def create_repo(self, name: str, **more: Any) -> None:
        self.calls.append((name, more))

    def upload_folder(self, **more: Any) -> None:
        if self.fault:
            raise OSError(self.fault)
        self.calls.append(
            (more["repo_id"], sorted(p.name for p in Path(more["folder_path"]).iterdir()))
        )


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_sent_unless_the_answer_is_yes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    result = export(run, "trees", tmp_path / "out", "--push", "me/trees", input=answer)
    assert "trees.jsonl" in result.output and "MB" in result.output and "me/trees" in result.output
    assert hub.calls == [] and "hf_secret" not in result.output
    assert (tmp_path / "out" / "trees.jsonl").exists()


def test_a_yes_sends_the_folder_to_a_private_repository(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    result = export(run, "trees", tmp_path / "out", "--push", "me/trees", input="y\n")
    assert result.exit_code == 0 and "hf_secret" not in result.output
    (_, made), (name, files) = hub.calls
    assert made == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert (name, files) == ("me/trees", ["README.md", "trees.jsonl"])


def test_a_refusal_of_the_hub_is_one_line_without_the_token(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub("401 for Bearer hf_secret"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    result = export(run, "trees", tmp_path / "out", "--push", "me/trees", input="y\n")
    assert result.exit_code == 2 and "hf_secret" not in result.output
    assert "401 for Bearer ***" in result.output and "hf upload" in result.output
