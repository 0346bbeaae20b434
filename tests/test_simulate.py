"""What ``bench --simulate`` counts: the same on the meta device as in a step that is run."""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, T5Config

from spar_lite.app.cli import main
from spar_lite.app.kernels import Count
from spar_lite.app.shapes import shape_config
from spar_lite.app.simulate import count_weights, four_bit_rule, in_groups, meta_model
from spar_lite.model.merged import Weights
from spar_lite.model.policy import ADAPTERS, add_adapters
from spar_lite.recipe import Lora, Model

pytestmark = pytest.mark.tensors

SETTINGS = Model(id="tiny", lora=Lora(r=4, alpha=8))
LENGTHS = [7, 30, 12, 64, 40]


def always(*_: int) -> bool:
    return True


def run_on_cpu(depth: int, weights: Weights) -> Count:
    """A step with numbers, counted by the same mode."""
    config = shape_config("tiny")
    config.num_hidden_layers = depth
    model = add_adapters(AutoModelForCausalLM.from_config(config).eval(), SETTINGS)
    model.set_adapter(ADAPTERS["refiner"], inference_mode=True)
    return count_weights(model.eval().base_model.model, weights, LENGTHS, always)


def run_on_meta(depth: int, weights: Weights, quantized: bool = False) -> Count:
    config = shape_config("tiny")
    config.num_hidden_layers = depth
    model = meta_model(config, SETTINGS, torch.float32, quantized)
    return count_weights(model, weights, LENGTHS, always)


@pytest.mark.parametrize("weights", ["separate", "fused", "merged"])
def test_what_is_counted_without_numbers_is_what_runs(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels by name and bytes by part of a layer, fp32, as on a CPU."""
    # On a CPU merged products are written in either order, whichever is faster there.
    monkeypatch.setattr("spar_lite.model.merged.best_product", lambda: torch.nn.functional.linear)
    found = []
    for run in (run_on_cpu, run_on_meta):
        one, two = run(1, weights), run(2, weights)
        layer = two.kernels - one.kernels, two.bytes - one.bytes
        found.append(layer)
    assert found[0] == found[1]
    kernels, moved = found[1]
    assert kernels["attention"] == 1 and kernels["scatter_"] == 2
    # Every row's keys and values up to the longest's, and two new ones; 2 heads of 16, 4 bytes.
    assert moved["cache"] == 2 * 4 * 2 * 16 * len(LENGTHS) * (64 + 1)


def test_the_fewest_kernels_are_those_of_merged_weights() -> None:
    """Seven products: PEFT's adapter takes seven kernels of each in 4 bits, the fused one two."""
    kernels = {
        weights: run_on_meta(2, weights, True).kernels - run_on_meta(1, weights, True).kernels
        for weights in ("separate", "fused", "merged")
    }
    counts = {weights: found.total() for weights, found in kernels.items()}
    assert counts["separate"] - counts["fused"] == 7 * (7 - 2) - 14  # no casts: all is float32
    assert counts["fused"] - counts["merged"] == 7 * 2
    assert kernels["fused"]["gemm_4bit"] == 7 and not kernels["merged"]["gemm_4bit"]


def test_4_bit_weights_without_numbers_take_the_bytes_of_real_ones() -> None:
    config = shape_config("tiny")
    found = meta_model(config, SETTINGS, torch.float32, True).model.layers[0].mlp.up_proj
    real = bitsandbytes.nn.Linear4bit(64, 128, bias=False, quant_type="nf4").to("cpu")
    for weight in (found.base_layer.weight, real.weight):
        state = weight.quant_state
        sizes = [t.nbytes for t in (weight, state.absmax, state.code, state.state2.absmax)]
        assert sizes == [64 * 128 // 2, 64 * 128 // 64, 16 * 4, 4]
        assert weight.dtype == torch.uint8 and state.shape == (128, 64)


def test_bitsandbytes_chooses_by_card_and_rows() -> None:
    """Llama-3-8B's down projection: packed up to 64 rows on a 4090, never so on an H100."""
    down = 4096, 14336
    assert [four_bit_rule("rtx4090", torch.bfloat16)(n, *down) for n in (1, 64, 65)] == [1, 1, 0]
    assert [four_bit_rule("h100", torch.bfloat16)(n, *down) for n in (1, 64, 65)] == [1, 0, 0]


def test_groups_read_up_to_their_longest() -> None:
    assert [in_groups([4, 1, 3, 2], n) for n in (1, 2, 4)] == [16, 12, 10]
    assert in_groups([5], 3) == 5


def test_the_command_counts_a_model_that_is_not_there() -> None:
    command = ["bench", "--shape", "llama3-8b", "--simulate"]
    done = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    counts = {name: step["kernels_a_layer"] for name, step in found["weights"].items()}
    assert counts["merged"] < counts["fused"] < counts["separate"]
    # 64 rows read up to 1,600 tokens of 131,072 bytes, and write one.
    assert found["weights"]["fused"]["bytes"]["cache"] == 64 * 1601 * 131_072
    assert "A simulation" in found["note"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "does not fit" in done.output and "A simulation" in done.output


def test_a_wrong_wish_is_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model:\n  id: some/model\n")
    T5Config().save_pretrained(tmp_path / "t5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    folders = [
        ([str(recipe), "--simulate", "-o", f"model.id={tmp_path / name}"], "cannot be simulated")
        for name in ("t5", "empty", "broken")
    ]
    for words, expected in (
        (["--shape", "tiny", "--card", "h100"], "want --simulate"),
        (["--shape", "tiny", "--simulate", "--trees", "3"], "--simulate measures nothing"),
        (["--shape", "tiny", "--simulate", "--train-tokens", "0"], "--simulate measures nothing"),
        (["--shape", "tiny", "--simulate", "--tokens", "9", "3"], "--tokens: wanted the least"),
        ([str(recipe), "--simulate"], "some/model cannot be planned"),
        *folders,
    ):
        done = CliRunner().invoke(main, ["bench", *words])
        assert done.exit_code == 2 and expected in done.output, done.output
