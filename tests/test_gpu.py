"""What only a CUDA device can show; skipped without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import pytest
import torch

from spar_lite.engines.base import Request, Sampling
from spar_lite.errors import EngineError, ModelError
from spar_lite.model import Policy, RolloutEngine, self_check
from spar_lite.model.merged import Weights
from spar_lite.recipe import Dpo, EngineSettings, Model, Training
from spar_lite.records import Message, PreferencePair, TrainingExample
from spar_lite.train import train_actor, train_on_examples
from tests.architectures import CASES, IN_4_BIT, PAIRS, TEXTS, load

pytestmark = pytest.mark.gpu

ASK = (Message("user", "Say hello."),)


@pytest.fixture(params=["nf4", "none"])
def policy(request: pytest.FixtureRequest, tiny_folder: Path) -> Policy:
    settings = Model(id=str(tiny_folder), quantization=request.param, device="cuda")
    return Policy.load(settings, seed=0)


def test_auto_means_4_bit_on_cuda(tiny_folder: Path) -> None:
    assert Policy.load(Model(id=str(tiny_folder)), seed=0).quantized


def test_the_fast_path_agrees_with_generate(policy: Policy) -> None:
    for role in ("base", "actor", "refiner"):
        policy.switch(role)
        for slots in (3, 64):
            for weights in get_args(Weights):
                assert self_check(policy, slots, weights).fault is None


def test_training_keeps_lora_in_float32_and_starts_at_ln_2(policy: Policy) -> None:
    examples = [TrainingExample(f"e{n}", "answer", ASK, f"Hello {n}.") for n in range(8)]
    train_on_examples(policy, "actor", examples, Training(lr=1e-2), seed=0)
    pairs = [PreferencePair(f"p{n}", f"p{n}", ASK, f"Good {n}.", f"Bad {n}.") for n in range(8)]
    report = train_actor(policy, pairs, Dpo(), seed=0)
    assert report.metrics["dpo_term_step0"] == pytest.approx(0.693147, abs=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in policy.weights("actor").values())


@pytest.mark.parametrize(
    ("name", "quantization"),
    [*((name, "none") for name in CASES), *((name, "nf4") for name in IN_4_BIT)],
)
def test_an_architecture_works_on_cuda(tmp_path: Path, name: str, quantization: str) -> None:
    """In bf16: rounding is larger, and other kernels serve it."""
    policy = load(tmp_path, name, quantization, "cuda")
    prompts = [policy.encode((Message("user", text),)) for text in TEXTS]
    for slots, weights in ((4, "separate"), *((64, weights) for weights in get_args(Weights))):
        found = self_check(policy, slots, weights, prompts, 60)
        assert (found.fault is None) == CASES[name].fast, found
    settings = Dpo(batch_size=2, max_length=256, gradient_checkpointing=False)
    report = train_actor(policy, PAIRS, settings, 0)
    assert report.metrics["dpo_term_step0"] == pytest.approx(0.693147, abs=2e-2)


@pytest.mark.parametrize("path", ["auto", "static", "continuous"])
def test_nan_ends_generation_on_cuda_and_does_not_poison_it(policy: Policy, path: str) -> None:
    tensor = next(t for n, t in policy.weights("actor").items() if "lora_B" in n)
    tensor[0, 0] = torch.nan
    engine = RolloutEngine(policy, EngineSettings(path=path), 0)  # type: ignore[arg-type]
    request = Request("a", ASK, 4, Sampling(0.8))
    with pytest.raises(EngineError, match="logits are NaN or infinite"):
        asyncio.run(engine.generate("actor", [request]))
    assert asyncio.run(engine.generate("base", [request]))


def test_a_model_that_does_not_fit_the_card_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        Policy.load(Model(id=str(tiny_folder), device="cuda", memory_fraction=1e-9), 0)
