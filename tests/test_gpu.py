"""What only a CUDA device can show; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spar_lite.model import Policy, self_check
from spar_lite.recipe import Dpo, Model, Training
from spar_lite.records import Message, PreferencePair, TrainingExample

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
            for merged in (False, True):
                assert self_check(policy, slots, merged).fault is None


def test_training_keeps_lora_in_float32_and_starts_at_ln_2(policy: Policy) -> None:
    from spar_lite.train import train_actor, train_on_examples

    examples = [TrainingExample(f"e{n}", "answer", ASK, f"Hello {n}.") for n in range(8)]
    train_on_examples(policy, "actor", examples, Training(lr=1e-2), seed=0)
    pairs = [PreferencePair(f"p{n}", f"p{n}", ASK, f"Good {n}.", f"Bad {n}.") for n in range(8)]
    report = train_actor(policy, pairs, Dpo(), seed=0)
    assert report.metrics["dpo_term_step0"] == pytest.approx(0.693147, abs=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in policy.weights("actor").values())
