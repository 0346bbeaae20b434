"""The export command: what a run made, in the shapes that other programs read.

An adapter for plain PEFT, the model with it merged in, pairs for TRL and LLaMA-Factory, trees; each
with a README (``card``) of what is known of it. A folder appears whole or not at all. Only --push,
after asking, sends anything anywhere.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from spar_lite.app.card import EVERY, make_card
from spar_lite.errors import ModelError, SparError, StoreError, one_line
from spar_lite.evaluation.target import Target, find_target
from spar_lite.loop import summaries
from spar_lite.records import PreferencePair, Prompt, Role, Tree, to_json
from spar_lite.run import ROLES, saved_recipe
from spar_lite.store import Marker, StageFile, json_text, read_json, write_lines, write_text

T = TypeVar("T")

DTYPES = {"merged": "bfloat16", "gguf-ready": "float16"}
FORMATS = ("adapter", *DTYPES, "pairs", "trees")
SAMPLE = "What is light? It is what the sun sends us, and 7 other stars; by it we see."
"""What a merged model must answer as the adapter does."""
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
"""ShareGPT's names for the roles of a chat."""
SHAREGPT = {
    "file_name": "pairs_sharegpt.jsonl",
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
"""LLaMA-Factory's description of such a file, as an entry of its dataset_info.json."""


class Source(NamedTuple):
    """What is exported: of a run, the adapter of one role at one checkpoint, or its data."""

    run: Path
    target: Target
    role: Role
    checkpoint: str | None


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "shape", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--checkpoint", help="Of a run: bootstrap or iteration-N [last; of data: all].")
@click.option("--role", type=click.Choice(ROLES), default="actor", help="Whose adapter [actor].")
@click.option("--push", metavar="OWNER/NAME", help="Then send it to the Hub, after asking.")
def export_command(
    run: Path, shape: str, out: Path, checkpoint: str | None, role: Role, push: str | None
) -> None:
    """Write an adapter, a merged model, pairs or trees for others.

    adapter: for PEFT; merged: for transformers, in bf16; gguf-ready: for llama.cpp's converter, in
    f16; pairs: for TRL and LLaMA-Factory; trees: JSONL. Each comes with a card that says what is
    known of it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} is there already and stays as it is. Name a new folder: -o FOLDER")
    if push:
        check_push(push)
    recipe = saved_recipe(run)
    source = Source(run, find_target(str(run), checkpoint), role, checkpoint)
    write = {"adapter": write_adapter, "pairs": write_pairs, "trees": write_trees}
    try:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".export-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            dtype = DTYPES.get(shape)
            facts = write_merged(source, made, dtype) if dtype else write[shape](source, made)
            name = source.target.home.name if shape in ("adapter", *DTYPES) else checkpoint or EVERY
            card = make_card(recipe, run, name, shape, facts)
            write_text(made / "README.md", card)
            made.replace(out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror or error}).") from None
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for path in files:
        click.echo(f"{path.stat().st_size / 1e6:12,.3f} MB  {path.relative_to(out)}")
    click.echo(f"{sum(p.stat().st_size for p in files) / 1e6:12,.3f} MB  in {out}")
    if push and click.confirm(f"Send these {len(files)} files to {push} on the Hub?"):
        send(out, push, "model" if shape in ("adapter", *DTYPES) else "dataset")


# --- Models ---------------------------------------------------------------------------------------


def trained(source: Source) -> tuple[Path, bool, list[str]]:
    """The adapter's folder, whether its base had 4 bits, and both in words.

    Raises:
        StoreError: this checkpoint has no adapter of that role, or a part of one.
    """
    run, target, role, _ = source
    if role not in target.adapters:
        has = " and ".join(target.adapters) or "no adapter at all"
        raise StoreError(f"{target.name} has no {role}: it has {has}.")
    weights = target.adapters[role] / "adapter_model.safetensors"
    if not weights.is_file():
        raise StoreError(f"{weights} is missing. Restore it, or name another --checkpoint.")
    model, stages = target.recipe.model, summaries(target.recipe, run).values()
    on_card = any(stage.get("device") == "cuda" for stage in stages)
    four = model.quantization == "nf4" or (model.quantization == "auto" and on_card)
    does = "answers instructions" if role == "actor" else "judges answers and mends failed ones"
    words = [f"Adapter of the {role}, which {does}: LoRA of rank {model.lora.r}"]
    return target.adapters[role], four, words + ["Learnt on the base in 4 bits (NF4)"] * four


def write_adapter(source: Source, folder: Path) -> list[str]:
    """PEFT's two files; the base is named as the recipe names it, not by where it was cached."""
    adapter, _, facts = trained(source)
    config = read_json(adapter / "adapter_config.json") or {}
    config["base_model_name_or_path"] = source.target.recipe.model.id
    write_text(folder / "adapter_config.json", json_text(config, indent=2) + "\n")
    shutil.copy(adapter / "adapter_model.safetensors", folder)
    return facts


def write_merged(source: Source, folder: Path, dtype: str) -> list[str]:
    """The base plus the adapter, added in float32 and rounded once; with tokenizer and template.

    Raises:
        ModelError: it does not fit the memory, or the sum would not be what the two are.
    """
    import torch
    from transformers.utils import cached_file

    from spar_lite.model.loading import load_base, load_tokenizer, not_finite
    from spar_lite.model.source import locate, reach_hub

    (adapter, four, facts), settings = trained(source), source.target.recipe.model
    where = locate(settings.id)
    if not Path(where).is_dir():
        reach_hub(where)
    tokenizer = load_tokenizer(where, settings)
    base = load_base(where, settings, torch.device("cpu"), four)
    if four:  # a sum in 4 bits would lose what the adapter learnt
        base = base.dequantize()
        facts.append("Its weights are those of the 4-bit base, made whole again, and the adapter's")
    model = merge(base, adapter, tokenizer.encode(SAMPLE)).to(getattr(torch, dtype))
    if bad := not_finite(model.named_parameters()):
        raise ModelError(f"{bad} is too large for {dtype}. Take another format.")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # llama.cpp reads SentencePiece models from their own file, which transformers 5 does not write.
    with contextlib.suppress(OSError):
        shutil.copy(str(cached_file(where, "tokenizer.model")), folder)
    if dtype == "float16":  # llama.cpp may ask for transformers 4, which lacks 5's name for it
        path = folder / "tokenizer_config.json"
        told = path.read_text(encoding="utf-8")
        write_text(path, told.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
    return facts


def merge(base: Any, adapter: Path, ids: list[int]) -> Any:
    """One plain model that answers as base and adapter do; ``ids``: of a text to try that with.

    Raises:
        ModelError: the adapter does not fit, or its sum with the base is another model.
    """
    import torch
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(base, str(adapter)).eval()
        with torch.inference_mode():
            apart = model(input_ids=torch.tensor([ids])).logits
        model = model.merge_and_unload(safe_merge=True).eval()
        with torch.inference_mode():
            merged = model(input_ids=torch.tensor([ids])).logits
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 300)
        raise ModelError(f"{adapter} cannot be merged into its base: {reason}") from None
    far = float((merged - apart).abs().max() / apart.abs().max())
    if not far < 1e-3:  # embeddings that are tied to an adapted head, for one
        raise ModelError(
            f"{adapter}: merged, it would answer otherwise (logits differ by {100 * far:.2g} %): "
            "no merged model can stand for it. Take --format adapter."
        )
    return model


# --- Data -----------------------------------------------------------------------------------------


def load(source: Source, name: str, kind: type[T]) -> Iterator[tuple[str, dict[str, Prompt], T]]:
    """(iteration, its prompts, record), of all finished iterations or the one that was named.

    Raises:
        StoreError: there is none.
    """
    run, chosen = source.run, source.checkpoint
    names = [f"iteration-{n}" for n in range(1, source.target.recipe.iterations + 1)]
    done = [p for p in names if chosen in (None, p) and Marker(run / p, name).read() is not None]
    if not done:
        raise StoreError(f"{run} has no finished {name} there. See: spar-lite status {run}")
    for place in done:
        prompts = {p.id: p for p in StageFile(run / place, "prompts", Prompt).load()}
        for record in StageFile(run / place, name, kind).load():
            yield place, prompts, record


def write_pairs(source: Source, folder: Path) -> list[str]:
    """Those pairs that the run learns from, in TRL's shape and in LLaMA-Factory's."""
    found = [pair for _, _, pair in load(source, "pairs", PreferencePair)]
    taken = [p for p in found if source.target.recipe.dpo.interfering or not p.interferes]
    trl, sharegpt = [], []
    for pair in taken:
        sides = {"chosen": pair.chosen, "rejected": pair.rejected}
        chats = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        trl.append({"prompt": [to_json(message) for message in pair.prompt], **chats})
        turns = [{"from": SPEAKERS[m.role], "value": m.content} for m in pair.prompt]
        said = {side: {"from": "gpt", "value": text} for side, text in sides.items()}
        sharegpt.append({"conversations": turns, **said})
    write_lines(folder / "pairs.jsonl", trl)
    write_lines(folder / str(SHAREGPT["file_name"]), sharegpt)
    write_text(folder / "dataset_info.json", json_text({"spar_pairs": SHAREGPT}, indent=2) + "\n")
    return [
        f"{len(taken)} pairs; {len(found) - len(taken)} more, whose sides differ in more than what "
        "was mended, are left out, as in the training",
        f"The rejected answer of {sum(p.cut_off for p in taken)} was cut off by the token limit",
        "pairs.jsonl: prompt, chosen and rejected as chats, for TRL's DPOTrainer",
        "pairs_sharegpt.jsonl: for LLaMA-Factory; dataset_info.json describes it as spar_pairs",
    ]


def write_trees(source: Source, folder: Path) -> list[str]:
    """All trees with their prompts."""
    rows = [
        {"iteration": place, "prompt": to_json(prompts[tree.prompt_id]), **to_json(tree)}
        for place, prompts, tree in load(source, "trees", Tree)
    ]
    write_lines(folder / "trees.jsonl", rows)
    solved = sum(row["accepted"] is not None for row in rows)
    return [f"{len(rows)} trees, {solved} of them solved: every node with its votes and critique"]


# --- The Hub --------------------------------------------------------------------------------------


def check_push(name: str) -> None:
    """Refuse, before long work, a name that the Hub cannot have, and whoever it does not know.

    Raises:
        StoreError: either.
    """
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise StoreError(f"--push wants OWNER/NAME, found {name!r}.")
    if not get_token():
        raise StoreError("--push: the Hub would not know who you are. First: hf auth login")


def send(folder: Path, name: str, kind: str) -> None:
    """Send a folder to a repository, which is private if it is new.

    Raises:
        SparError: the Hub says no, or cannot be reached; the token is not in it.
    """
    from huggingface_hub import HfApi, get_token

    try:
        HfApi().create_repo(name, repo_type=kind, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder))
    except Exception as error:  # noqa: BLE001 - its own errors, or those of the HTTP library
        reason = " ".join(str(error).split()).replace(get_token() or "\0", "***")[:300]
        again = f"hf upload --repo-type {kind} {name} {folder}"
        raise SparError(f"Not sent: {reason}. {folder} is whole; again: {again}") from None
    click.echo(f"Sent to {name}; if it is new, it is private.")
