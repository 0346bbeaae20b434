"""4-bit weights on the CPU, with and without AVX512-BF16.

On a CPU with it bitsandbytes repacks a layer's weights at its first inference forward: rounded to
bf16, and read rightly by nothing but its own kernel. Which way it goes is decided by a function
that is asked when a layer is made, so that either can be had on any machine: ``repacks`` is what
that function says. The repacking itself is plain torch and runs everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import get_args

import bitsandbytes.nn.modules
import pytest
import torch

from spar_lite.engines.base import Request, Sampling
from spar_lite.errors import ModelError
from spar_lite.model import Policy, RolloutEngine, self_check
from spar_lite.model.merged import Weights
from spar_lite.recipe import EngineSettings, Lora, Model
from spar_lite.records import Message, Role
from tests.tiny import write_model

pytestmark = pytest.mark.tensors

ROLES: tuple[Role, ...] = ("base", "actor", "refiner")
ASK = (Message("user", "Name a bird, or two of them."),)


@pytest.fixture(params=[True, False], ids=["avx512_bf16", "other"])
def repacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: request.param)
    return bool(request.param)


@pytest.fixture(params=["LlamaConfig", "Qwen2Config"])  # Qwen2 has biases
def policy(request: pytest.FixtureRequest, repacks: bool, tmp_path: Path) -> Policy:
    import transformers

    write_model(tmp_path, getattr(transformers, request.param))
    settings = Model(
        id=str(tmp_path), device="cpu", quantization="nf4", threads=1, lora=Lora(r=4, alpha=8)
    )
    policy = Policy.load(settings, 0)
    generator = torch.Generator().manual_seed(7)
    roles: tuple[Role, ...] = ("actor", "refiner")
    for role in roles:
        for tensor in policy.weights(role).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return policy


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = policy.inner(input_ids=torch.tensor([policy.encode(ASK)])).logits
    return found


def gradients(policy: Policy) -> list[torch.Tensor]:
    """Of the actor's tensors, for the likelihood of some tokens."""
    with policy.training("actor") as model:
        ids = torch.tensor([policy.encode(ASK)])
        model(input_ids=ids, labels=ids).loss.backward()
        return [
            p.grad.clone()
            for n, p in model.named_parameters()
            if p.grad is not None and ".default." in n
        ]


def test_generating_changes_neither_weights_nor_gradients(policy: Policy) -> None:
    wanted = gradients(policy)
    before = logits(policy)  # the first inference: here it would repack
    engine = RolloutEngine(policy, EngineSettings(), 0)
    asyncio.run(engine.generate("actor", [Request("a", ASK, 6, Sampling(0.8))]))
    policy.slow_down()  # the engine leaves its merged weights in place for the next stage
    assert torch.equal(logits(policy), before)
    found = gradients(policy)
    assert len(found) == len(wanted) > 10
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("role", ROLES)
def test_merged_weights_are_the_separate_ones(policy: Policy, role: Role) -> None:
    policy.switch(role)
    wanted = logits(policy)
    policy.speed_up()
    assert torch.allclose(logits(policy), wanted, atol=1e-3)
    policy.slow_down()
    assert torch.equal(logits(policy), wanted)
    for weights in get_args(Weights):
        assert self_check(policy, 4, weights).fault is None


def test_weights_that_were_repacked_are_refused(policy: Policy) -> None:
    """What bitsandbytes does if it is let; no way through our code leads there."""
    layer = policy.inner.model.layers[0].mlp.up_proj.get_base_layer()
    layer.support_avx512bf16_for_cpu = True
    layer.eval()
    with torch.no_grad(), contextlib.suppress(AttributeError, RuntimeError):  # no such kernel
        layer(torch.zeros(1, 64))
    assert layer.weight.quant_state.packing_format_for_cpu
    with pytest.raises(ModelError, match=r"repacked.*model\.quantization=none"):
        policy.speed_up()
    with (
        pytest.raises(ModelError, match=r"repacked.*model\.quantization=none"),
        policy.training("actor"),
    ):
        pass
