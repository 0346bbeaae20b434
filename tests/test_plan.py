"""The plan: bytes beside what a card took, steps beside a run's own, words that help."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from spar_lite.app.cli import main
from spar_lite.app.plan import (
    CARDS,
    announce,
    card_named,
    in_time,
    plan_machine,
    planned,
    too_large,
)
from spar_lite.app.plan import Range as Span
from spar_lite.app.tables import cost_table
from spar_lite.errors import ModelError, RecipeError
from spar_lite.footprint import ADAPTER_BYTES, KNOWN, TRAINED_BYTES, model_shape
from spar_lite.loop import spar
from spar_lite.recipe import Recipe, load_recipe, parse_recipe
from spar_lite.run import Run, Screen

RECIPES = Path(__file__).parent.parent / "recipes"
LOOPS = [p for p in sorted(RECIPES.glob("*.yaml")) if "\ntask:" not in p.read_text("utf-8")]
"""Those of the loop; a task is an experiment's."""
LLAMA = KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"]

# Peak bytes on an H100 (LOG.md, 2026-11-27): DPO with 1, 4 and 8 pairs of 2,048 tokens, SFT with
# two examples of 4,000. Two more copies of the adapter lay in memory then.
MEASURED = {4096: 9.6, 16384: 17.1, 32768: 27.3, 8000: 11.9}
CARD_OF = {
    "llama3_8b_24gb": "rtx4090",
    "mistral_7b_24gb": "24gb",
    "qwen3_4b_16gb": "16gb",
    "qwen2.5_1.5b_8gb": "8gb",
    "smollm2_360m_cpu": "cpu",
    "quickstart": "cpu",
    "warmup": "cpu",
}


def recipe(**sections: Any) -> Recipe:
    return parse_recipe({"model": {"id": "meta-llama/Meta-Llama-3-8B-Instruct"}, **sections})


@pytest.mark.parametrize("tokens", MEASURED)
def test_training_takes_what_a_card_measured(tokens: int) -> None:
    weights = LLAMA.adapter_weights(16)
    fixed = LLAMA.base_bytes(2, quantized=True)
    fixed += weights * (2 * ADAPTER_BYTES + TRAINED_BYTES + 2 * ADAPTER_BYTES)
    found = fixed + tokens * LLAMA.trained_token_bytes(2, checkpointing=True)
    assert found / 1e9 == pytest.approx(MEASURED[tokens], rel=0.04)


def test_base_adapters_and_cache_take_what_a_card_measured() -> None:
    resting = LLAMA.base_bytes(2, quantized=True) + 2 * ADAPTER_BYTES * LLAMA.adapter_weights(16)
    assert resting / 1e9 == pytest.approx(6.039, rel=0.002)
    assert LLAMA.cache_bytes(2) == 131_072
    assert LLAMA.parameters == pytest.approx(8.03e9, rel=0.001)


@pytest.mark.parametrize("r", [16, 64])
def test_the_defaults_fit_24_gb(r: int) -> None:
    """Pairs of 2,048 tokens and refiner's rows of 4,096, as the recipe has them by itself."""
    settings = recipe(model={"id": "meta-llama/Meta-Llama-3-8B-Instruct", "lora": {"r": r}})
    assert settings.dpo.max_length == 2048
    assert settings.rft.max_length == 4096
    machine = plan_machine(settings, "rtx4090")
    stages = list(planned(settings, machine))
    assert too_large(stages, machine) is None
    assert max(stage.memory for stage in stages) < 23.2e9


@pytest.mark.parametrize("path", LOOPS, ids=lambda path: path.stem)
def test_every_recipe_fits_the_card_it_is_for(path: Path) -> None:
    settings = load_recipe(path)
    machine = plan_machine(settings, CARD_OF[path.stem])
    stages = list(planned(settings, machine))
    assert stages
    assert too_large(stages, machine) is None
    assert all(0 < s.seconds.low <= s.seconds.high for s in stages)


def test_steps_bear_the_runs_own_names(tmp_path: Path) -> None:
    settings = load_recipe(RECIPES / "quickstart.yaml", ["iterations=2"])
    labels = {step.label for step in Run(settings, tmp_path, Screen()).steps(spar, lenient=True)}
    found = [stage.label for stage in planned(settings, plan_machine(settings, "cpu"))]
    assert set(found) <= labels
    assert len(set(found)) == len(found)
    costly = {"responses", "judgements", "trees", "actor", "refiner", "heldout_answers"}
    assert {f"iteration-2/{name}" for name in costly} <= set(found)


@pytest.mark.parametrize(
    "changes",
    [
        ["refiner=frozen"],
        ["refiner=shared"],
        ["pairs.source=constraint-drop", "search.strategy=none"],
        ["dpo.rejected=initial", "judge.mode=code"],
        ["bootstrap.pairs=pairs.jsonl"],
    ],
)
def test_every_switch_is_planned_as_it_is_done(tmp_path: Path, changes: list[str]) -> None:
    settings = load_recipe(RECIPES / "quickstart.yaml", ["iterations=2", *changes])
    labels = {step.label for step in Run(settings, tmp_path, Screen()).steps(spar, lenient=True)}
    stages = {stage.label: stage for stage in planned(settings, plan_machine(settings, "cpu"))}
    assert stages.keys() <= labels
    trained = {label for label in stages if stages[label].rows == 0}
    twice = ["iteration-1/actor_alone", "bootstrap/actor_alone"] if "shared" in changes[0] else []
    assert set(twice) <= trained
    assert ("iteration-1/refiner" in trained) == (changes != ["refiner=frozen"])
    asked = {label for label in labels if "/other_" in label}
    assert asked - stages.keys() <= {"iteration-2/other_judgements"}  # a program takes no time
    assert stages["iteration-1/trees"].requests.high > 0 or settings.search.strategy == "none"


@pytest.mark.parametrize("changes", [["refiner=shared"], ["bootstrap.pairs=pairs.jsonl"]])
def test_an_actors_training_by_another_name_has_its_own_advice(changes: list[str]) -> None:
    sizes = ["bootstrap.max_length=99999", "bootstrap.pass_tokens=99999", "dpo.max_length=99999"]
    settings = load_recipe(RECIPES / "llama3_8b_24gb.yaml", [*sizes, *changes])
    machine = plan_machine(settings, "24gb")
    (stage, *_) = (s for s in planned(settings, machine) if "/actor_" in s.label)
    fault = too_large([stage], machine)
    assert fault is not None and "Set -o bootstrap.max_length=" in fault


def test_what_is_learnt_is_planned_by_where_it_comes_from() -> None:
    def actor(**sections: Any) -> tuple[float, float]:
        machine = plan_machine(asked := recipe(prompts={"count": 100}, **sections), "cpu")
        found = {stage.label.partition("/")[2]: stage for stage in planned(asked, machine)}
        return found["actor"].requests, found["actor"].tokens

    assert actor(pairs={"source": "sampled"})[0] == (0, 100)
    assert actor(iterate={"pairs": 7})[0] == (7, 7)
    assert actor(actor={"method": "rft"})[1][1] == actor()[1][1] / 2


def test_the_quickstart_takes_what_was_planned() -> None:
    """Requests of a run of 2026-11-28 (LOG.md); its 32 minutes on two slow cores are in range."""
    settings = load_recipe(RECIPES / "quickstart.yaml")
    stages = {s.label: s for s in planned(settings, plan_machine(settings, "cpu"))}
    done = {"bootstrap/answers": 480, "iteration-1/responses": 90, "iteration-1/judgements": 205}
    done["iteration-1/trees"] = 324
    done["bootstrap/refiner"] = 340
    for label, requests in done.items():
        low, high = stages[label].requests
        assert 0.8 * low <= requests <= 1.2 * high, label


@pytest.mark.parametrize(
    ("card", "sections", "advice"),
    [
        ("rtx3060", {}, "bootstrap.pass_tokens="),
        ("8gb", {}, "bootstrap.max_length="),
        (
            "rtx3060",
            {"bootstrap": {"source": "none"}, "dpo": {"max_length": 8192}},
            "dpo.max_length",
        ),
        ("24gb", {"dpo": {"gradient_checkpointing": False}}, "dpo.gradient_checkpointing=true"),
        ("t4", {"model": {"id": "Qwen/Qwen2.5-7B-Instruct", "quantization": "none"}}, "nf4"),
    ],
)
def test_what_does_not_fit_names_the_one_setting(
    card: str, sections: dict[str, Any], advice: str
) -> None:
    settings = parse_recipe({"model": {"id": "meta-llama/Llama-3.1-8B-Instruct"}, **sections})
    machine = plan_machine(settings, card)
    fault = too_large(list(planned(settings, machine)), machine)
    assert fault is not None
    assert advice in fault


def test_the_advice_is_enough() -> None:
    overrides: list[str] = []
    settings = recipe()
    machine = plan_machine(settings, "rtx3060")
    while fault := too_large(list(planned(settings, machine)), machine):
        overrides.append(fault.rpartition("-o ")[2])
        settings = parse_recipe({"model": {"id": settings.model.id}}, "recipe", overrides)
        machine = plan_machine(settings, "rtx3060")
        assert len(overrides) < 5
    assert overrides


def test_a_shape_comes_from_the_models_folder(tmp_path: Path) -> None:
    config = {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_shape(parse_recipe({"model": {"id": str(tmp_path)}}).model) == LLAMA
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    with pytest.raises(ModelError, match="cannot be planned: KeyError"):
        model_shape(parse_recipe({"model": {"id": str(tmp_path)}}).model)
    for broken in ([1], {**config, "num_attention_heads": 0}):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(ModelError, match="cannot be planned"):
            model_shape(parse_recipe({"model": {"id": str(tmp_path)}}).model)
    with pytest.raises(ModelError, match=r"hf download some/model config\.json"):
        model_shape(parse_recipe({"model": {"id": "some/model"}}).model)


def test_the_command_says_what_fits_without_torch(tmp_path: Path) -> None:
    path = str(RECIPES / "llama3_8b_24gb.yaml")
    done = CliRunner().invoke(main, ["plan", path, "--card", "rtx4090", "--price", "0.4"])
    assert done.exit_code == 0, done.output
    assert "fits: at most 21.6 GB" in done.output
    assert "cost: " in done.output
    assert "iteration-1/trees" in done.output
    done = CliRunner().invoke(main, ["plan", path, "--card", "t4", "-o", "model.lora.r=512"])
    assert done.exit_code == 1
    assert "fp16" in done.output
    done = CliRunner().invoke(main, ["plan", path, "--card", "rtx490"])
    assert done.exit_code == 2
    assert "rtx4090" in done.output
    code = "import spar_lite.app.plan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_of_the_bench_make_the_range_narrow(tmp_path: Path) -> None:
    settings = load_recipe(RECIPES / "quickstart.yaml")
    rates = {"workloads": {"search": {"finished_tokens_per_s": 100.0}}}
    found = {**rates, "model": settings.model.id, "training": {"sft": {"tokens_per_s": 140.0}}}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found))
    by_hand = plan_machine(settings, "cpu", path)
    stages = {s.label: s for s in planned(settings, by_hand)}
    low, high = stages["bootstrap/refiner"].seconds
    assert low == pytest.approx(0.8 * stages["bootstrap/refiner"].tokens.low / 140)
    assert high == pytest.approx(1.25 * stages["bootstrap/refiner"].tokens.high / 140)
    path.write_text(json.dumps({**found, "model": "another"}))
    with pytest.raises(RecipeError, match="is of another, not pypi"):
        plan_machine(settings, "cpu", path)
    path.write_text("{}")
    with pytest.raises(RecipeError, match="bench RECIPE --json > FILE"):
        plan_machine(settings, "cpu", path)


class Everything(set[str]):
    """Holds every label."""

    def __contains__(self, _: object) -> bool:
        return True


def test_a_run_says_its_plan_and_status_compares(tmp_path: Path) -> None:
    class Heard(Screen):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    screen = Heard()
    overrides = ["model.device=cpu", "prompts.count=50000", "iterations=9"]
    settings = load_recipe(RECIPES / "quickstart.yaml", overrides)
    announce(settings, tmp_path, screen, Everything())
    assert screen.said[0].startswith("planned on cpu: ")
    assert any("more than a day" in line for line in screen.said)
    kept = json.loads((tmp_path / "planned.json").read_text())
    low, high = kept["iteration-1/trees"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(cost_table({"iteration-1/trees": {"seconds": 331.0}}, kept))
    assert f"{low:.0f} to {high:.0f}" in console.export_text()
    unknown = settings.model_copy(
        update={"model": settings.model.model_copy(update={"id": "some/model"})}
    )
    announce(unknown, tmp_path / "none", screen, Everything())
    assert not (tmp_path / "none").exists()
    settings = load_recipe(RECIPES / "quickstart.yaml", ["model.device=cpu"])
    announce(settings, tmp_path, screen, ["iteration-1/heldout_answers"])
    stage = {s.label: s for s in planned(settings, plan_machine(settings, "cpu"))}
    left = in_time(stage["iteration-1/heldout_answers"].seconds)
    assert screen.said[-1].startswith(f"planned on cpu: {left}, "), "what is left alone"
    assert "iteration-1/trees" in json.loads((tmp_path / "planned.json").read_text())


@pytest.mark.parametrize(
    ("device", "size", "card"),
    [
        ("NVIDIA GeForce RTX 4090", 24e9, "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16e9, "rtx4090"),
        ("NVIDIA L4", 23e9, "l4"),
        ("NVIDIA L40S", 46e9, "24gb"),
        ("Tesla T4", 15e9, "t4"),
        ("Quadro T400", 4e9, "8gb"),
        ("NVIDIA H200", 141e9, "24gb"),
    ],
)
def test_a_card_is_known_by_its_whole_name(device: str, size: float, card: str) -> None:
    assert card_named(device, size) == card


def test_the_memory_that_is_there_counts_whatever_the_name_stands_for() -> None:
    laptop = dataclasses.replace(plan_machine(recipe(), "rtx4090"), memory=8e9)
    assert laptop.limit == 0.9 * 8e9
    assert too_large(list(planned(recipe(), laptop)), laptop) is not None


def test_a_warm_up_from_a_file_is_scored_and_its_training_is_named(tmp_path: Path) -> None:
    settings = recipe(bootstrap={"source": str(tmp_path), "pairs": "pairs.json"})
    labels = [s.label for s in planned(settings, plan_machine(settings, "24gb"))]
    assert "bootstrap/heldout_answers" in labels
    asked = ["plan", str(RECIPES / "llama3_8b_24gb.yaml"), "--card", "24gb"]
    done = CliRunner().invoke(main, [*asked, "-o", f"bootstrap.source={tmp_path}"])
    assert "not planned: training on the rows of bootstrap.source" in done.output


def test_times_have_the_unit_that_suits_them() -> None:
    assert in_time(Span(2, 90)) == "2 to 90 s"
    assert in_time(Span(60, 600)) == "1 to 10 min"
    assert in_time(Span(3600, 36_000)) == "1 to 10 h"
    assert set(CARD_OF.values()) <= {*CARDS, "cpu"}


def test_a_recipe_may_lie_over_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {id: a, lora: {r: 4}}\nseed: 3\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nmodel: {id: b}\ndpo: {beta: 0.5}\n")
    found = load_recipe(tmp_path / "mine.yaml", ["seed=5"])
    assert (found.model.id, found.model.lora.r, found.seed, found.dpo.beta) == ("b", 4, 5, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        (tmp_path / "far.yaml").write_text("base: ~/base.yaml\nseed: 9\n")
        assert load_recipe(tmp_path / "far.yaml").seed == 9
    (tmp_path / "base.yaml").write_text("base: mine.yaml\nmodel: {id: a}\n")
    with pytest.raises(RecipeError, match='"base" leads back to it'):
        load_recipe(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("base: gone.yaml\n")
    with pytest.raises(RecipeError, match=r"gone\.yaml: no such recipe"):
        load_recipe(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("base: [1]\n")
    with pytest.raises(RecipeError, match="wanted the path of a recipe"):
        load_recipe(tmp_path / "mine.yaml")
