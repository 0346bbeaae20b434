"""What one decoding step launches and reads on a CUDA card, counted on any machine.

The step of the real decoder runs on the meta device: a model of the recipe's shape, its layers in 4
bits, two adapters put on as ``Policy.load`` does, no tensor with any numbers. ``kernels`` counts
what it dispatches. Not in it: what ``ABSENT`` says. An H100 launched 4,119 kernels a step for
Llama-3-8B's shape (LOG.md, 2026-11-27); of the same code this counted 3,687.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import click
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from spar_lite.app.console import make_console
from spar_lite.app.kernels import PARTS, Attention, Count, Rule
from spar_lite.app.plan import CARDS, GB, LAUNCH
from spar_lite.app.shapes import shape_config
from spar_lite.app.tables import make_table
from spar_lite.engines.base import Sampling
from spar_lite.errors import ModelError, RecipeError, one_line
from spar_lite.footprint import KNOWN, PREFILL_TOKENS, SHAPES, model_shape
from spar_lite.model.cache import BLOCK, bytes_per_position
from spar_lite.model.decoder import BatchDecoder, TokenSequence
from spar_lite.model.loading import weight_bytes
from spar_lite.model.merged import FusedAdapter, MergedWeights, Weights, copy_bytes
from spar_lite.model.policy import ADAPTERS, add_adapters
from spar_lite.recipe import Model, Recipe
from spar_lite.store import json_text

PROCESSORS = {
    "8gb": (46, 8, 6), "16gb": (34, 8, 9), "24gb": (82, 8, 6), "rtx3060": (28, 8, 6),
    "rtx3090": (82, 8, 6), "rtx4090": (128, 8, 9), "rtx5090": (170, 12, 0), "t4": (40, 7, 5),
    "l4": (58, 8, 9), "a100": (108, 8, 0), "h100": (132, 9, 0),
}  # fmt: skip
"""Multiprocessors and compute capability of ``CARDS``: bitsandbytes chooses its kernel by them."""

ABSENT = (
    "A simulation: no card was asked. Not in it: kernels that cuBLAS launches beside a product, "
    "what the card's own caches spare, arithmetic, prefill, and the host's work between two steps."
)

# --- The step -------------------------------------------------------------------------------------


def four_bit_rule(card: str, dtype: torch.dtype) -> Rule:
    """bitsandbytes' choice of kernel on a card that need not be there."""
    # Its file for CUDA asks a CPU's torch for this name, and a card for its properties.
    with mock.patch.object(torch._C, "_cuda_getCurrentRawStream", None, create=True):
        from bitsandbytes.backends.cuda import ops

    def rule(rows: int, outputs: int, inputs: int) -> bool:
        with mock.patch.object(ops, "_gpu_dispatch_props", PROCESSORS.__getitem__):
            return bool(ops._gemm_4bit_use_custom_cuda(card, dtype, rows, outputs, inputs))

    return rule


def meta_model(config: Any, settings: Model, dtype: torch.dtype, quantized: bool) -> Any:
    """The model with both adapters on the meta device, made as ``Policy.load`` makes it."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if quantized:
        _quantize(base, dtype)
    base.eval().requires_grad_(False)
    with torch.device("meta"):
        model = add_adapters(base, settings)
    model.set_adapter(ADAPTERS["refiner"], inference_mode=True)
    return model.eval().base_model.model


def _quantize(base: Any, dtype: torch.dtype) -> None:
    nf4 = {"compress_statistics": True, "quant_type": "nf4"}
    head = base.get_output_embeddings()
    dense = [name for name, module in base.named_modules() if module is head]
    double = BitsAndBytesConfig(bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    replace_with_bnb_linear(base, dense, double)
    quantize_4bit(torch.ones(64), **nf4)  # it keeps a table from its first call on: a real one
    for layer in base.modules():
        if isinstance(layer, Linear4bit):
            packed, state = quantize_4bit(layer.weight.data.to(dtype), **nf4)
            layer.weight = Params4bit(
                packed, quant_state=state, quant_type="nf4", bnb_quantized=True, module=layer
            )
    base.is_loaded_in_4bit = True  # PEFT asks


def count_step(model: Any, lengths: Sequence[int], rule: Rule) -> Count:
    """Count one decoding step of rows that have so many tokens each, the new one among them.

    Raises:
        ValueError: slots cannot serve the model's layers.
    """
    decoder = BatchDecoder(model, len(lengths), (), PREFILL_TOKENS["cuda"])
    decoder.width_step, decoder.adds_mask = BLOCK, True  # as on CUDA
    for length in lengths:
        sequence = TokenSequence([0] * (length - 1), 9, Sampling(temperature=0.7), seed=0)
        sequence.done = length - 2
        decoder.active.append(sequence)

    def step(*cache: Tensor) -> Count:
        vocabulary = model.config.get_text_config().vocab_size
        count = Count(model.device.type, cache, vocabulary, rule)
        with count, Attention(count):
            decoder.step()
        return count

    step()  # it makes the cache's tensors
    return step(*decoder.cache.keys, *decoder.cache.values)


def count_weights(model: Any, weights: Weights, lengths: Sequence[int], rule: Rule) -> Count:
    """Count a step with the refiner's products computed in one of the three ways."""
    kinds = {"fused": FusedAdapter, "merged": MergedWeights}
    if weights == "separate":
        return count_step(model, lengths, rule)
    fast = kinds[weights](model, ADAPTERS["refiner"])
    count = count_step(model, lengths, rule)
    fast.remove()
    return count


def simulate(recipe: Recipe, card: str, rows: int, tokens: tuple[int, int]) -> dict[str, Any]:
    """Kernels, bytes and tokens a second of a step, for each value of ``engine.weights``.

    Rows have ``tokens`` from the least to the most, evenly spread. All layers are counted from one
    and two of them; where a model has several kinds of layers, all are run.

    Raises:
        ModelError: the model's shape is not known.
        OSError: its config.json cannot be read.
        ValueError: it is no causal LM, or its layers are none that slots can serve.
        RuntimeError: it does what the meta device cannot, as models of experts do.
    """
    config, settings = _config(recipe.model), recipe.model
    quantized = settings.quantization != "none"
    text = config.get_text_config()
    layers, kinds = text.num_hidden_layers, getattr(text, "layer_types", None) or ()
    deep = layers if len(set(kinds)) > 1 else 2
    dtype = torch.bfloat16 if CARDS[card].bf16 else torch.float16
    rule = four_bit_rule(card, dtype)
    low, high = tokens
    lengths = [high - (high - low) * n // max(1, rows - 1) for n in range(rows)]
    models = []
    for depth in (1, deep):
        some = copy.deepcopy(config)
        some.get_text_config().num_hidden_layers = depth
        if kinds:
            some.get_text_config().layer_types = kinds[:depth]
        models.append(meta_model(some, settings, dtype, quantized))
    position = bytes_per_position(text, dtype.itemsize)
    base = weight_bytes(config, False, dtype, quantized)
    sizes = {n: position * in_groups(lengths, n) for n in (1, 2, 3, rows)}
    found: dict[str, Any] = {"model": settings.id, "card": card, "rows": rows, "tokens": tokens}
    found |= {"layers": layers, "cache_bytes_in_groups": sizes, "weights": {}}
    for weights in get_args(Weights):
        one, many = (count_weights(model, weights, lengths, rule) for model in models)
        step = _step(one, many, deep, layers, rows, card)
        copies = copy_bytes(models[0], ADAPTERS["refiner"]) * layers if weights == "merged" else 0
        held = base + copies + position * rows * -(-high // BLOCK) * BLOCK
        found["weights"][weights] = {**step, "held_bytes": held}
    return found


def in_groups(lengths: Sequence[int], count: int) -> int:
    """Tokens read if rows, sorted, are in ``count`` groups that each read up to their longest."""
    rows = sorted(lengths)
    ends = [len(rows) * n // count for n in range(count + 1)]
    return sum((end - start) * rows[end - 1] for start, end in itertools.pairwise(ends))


def _config(model: Model) -> Any:
    if model.id in SHAPES or model.id in KNOWN:
        return shape_config(model.id)
    folder = Path(model.id).expanduser()
    if not folder.is_dir():
        model_shape(model)  # it says what to do
    return AutoConfig.from_pretrained(str(folder))


def _step(one: Count, many: Count, deep: int, layers: int, rows: int, card: str) -> dict[str, Any]:
    """Figures of all layers, from a count of one and one of ``deep`` of them."""

    def whole(first: int, last: int) -> int:
        return first + (last - first) * (layers - 1) // (deep - 1)

    names = sorted(many.kernels)
    kernels = sum(whole(one.kernels[name], many.kernels[name]) for name in names)
    moved = {part: whole(one.bytes[part], many.bytes[part]) for part in PARTS}
    reading = sum(moved.values()) / (CARDS[card].bandwidth * GB)
    launching = LAUNCH.times(kernels)
    layer = {name: (many.kernels[name] - one.kernels[name]) / (deep - 1) for name in names}
    return {
        "kernels_a_layer": round(sum(layer.values()), 2),
        "layer": {name: number for name, number in layer.items() if number},
        "kernels": kernels,
        "bytes": moved,
        "seconds": {"bytes": reading, "launches": list(launching)},
        "tokens_per_s": [rows / max(reading, launch) for launch in reversed(launching)],
    }


# --- What is shown --------------------------------------------------------------------------------


def count_and_show(
    recipe: Recipe, card: str, rows: int, tokens: tuple[int, int], as_json: bool
) -> None:
    """Simulate a step, and print it."""
    if tokens[0] > tokens[1]:
        raise RecipeError(f"--tokens: wanted the least and then the most, found {tokens}.")
    try:
        found = simulate(recipe, card, rows, tokens)
    except (OSError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise ModelError(f"{recipe.model.id} cannot be simulated: {reason}") from None
    if as_json:
        click.echo(json_text({**found, "note": ABSENT}, indent=1))
        return
    console = make_console()
    title = f"{found['model']} on {card}, {rows} rows of {tokens[0]} to {tokens[1]} tokens: a step"
    columns = ("engine.weights", "kernels a layer", "kernels", *(f"{p}, GB" for p in PARTS))
    table, lines = make_table(title, *columns, "tokens/s"), []
    for weights, step in found["weights"].items():
        moved, (slow, fast) = step["bytes"], step["tokens_per_s"]
        parts = (f"{moved[part] / GB:.2f}" for part in PARTS)
        counts = f"{step['kernels_a_layer']:g}", f"{step['kernels']:,}"
        table.add_row(weights, *counts, *parts, f"{slow:,.0f} to {fast:,.0f}")
        low, high = step["seconds"]["launches"]
        lines.append(
            f"{weights}: {rows} tokens in the larger of {sum(moved.values()) / GB:.1f} GB / "
            f"{CARDS[card].bandwidth:,.0f} GB/s = {1e3 * step['seconds']['bytes']:.1f} ms, and "
            f"{step['kernels']:,} kernels x {1e6 * LAUNCH.low:.0f} to {1e6 * LAUNCH.high:.0f} "
            f"microseconds = {1e3 * low:.0f} to {1e3 * high:.0f} ms"
        )
        if step["held_bytes"] > CARDS[card].memory * GB:
            held = f"{step['held_bytes'] / GB:.1f} GB of weights and cache"
            lines.append(f"{weights} does not fit: {held}. Take fewer rows or tokens.")
    console.print(table)
    sizes = found["cache_bytes_in_groups"]
    groups = (f"in {n} groups by length {sizes[n] / GB:.2f} GB" for n in (2, 3))
    lines.append(
        f"cache: every row is read as far as the longest, {sizes[1] / GB:.2f} GB; "
        f"{', '.join(groups)}, each row to its own length {sizes[rows] / GB:.2f} GB"
    )
    for line in (*lines, ABSENT):
        console.print(line, highlight=False)
