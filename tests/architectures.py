"""Tiny random models of every architecture that we claim."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from spar_lite.model import Policy
from spar_lite.recipe import Lora, Model
from spar_lite.records import Message, PreferencePair
from tests.tiny import write_model


@dataclass(frozen=True)
class Case:
    """One architecture; ``fast``: slots serve it."""

    config: str
    more: dict[str, Any] = field(default_factory=dict)
    fast: bool = True


WINDOW = 24  # tokens: shorter than the prompts below
CASES = {
    "Llama": Case("LlamaConfig"),
    "Qwen2 (biases)": Case("Qwen2Config"),
    "Qwen2, windows in the upper layers": Case(
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "Qwen3": Case("Qwen3Config", {"head_dim": 16}),
    "Mistral": Case("MistralConfig", {"sliding_window": None}),
    "Mistral, window": Case("MistralConfig", {"sliding_window": WINDOW}),
    "Gemma 2": Case(
        "Gemma2Config",
        # Caps that a tiny model's logits and scores reach, too.
        {"head_dim": 16, "sliding_window": WINDOW, "final_logit_softcapping": 2.0}
        | {"attn_logit_softcapping": 1.0},
    ),
    "Gemma 3": Case(
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "Phi-3": Case("Phi3Config", {"sliding_window": WINDOW}),
    "Granite": Case(
        "GraniteConfig",
        {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.0625}
        | {"residual_multiplier": 0.22},
    ),
    "Cohere": Case("CohereConfig", {"logit_scale": 0.0625}),
    "Cohere 2": Case("Cohere2Config", {"logit_scale": 0.0625, "sliding_window": WINDOW}),
    "SmolLM3": Case("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "OLMo 2": Case("Olmo2Config"),
    "GPT-NeoX": Case("GPTNeoXConfig"),
    "GPT-2": Case("GPT2Config", {"n_positions": 1024, "n_inner": 128}),
    "Qwen3.5 (linear attention)": Case(
        "Qwen3_5TextConfig",
        {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
        | {"linear_value_head_dim": 16},
        fast=False,
    ),
}


def load(folder: Path, name: str, quantization: str = "none", device: str = "cpu") -> Policy:
    case = CASES[name]
    if not (folder / "config.json").exists():
        write_model(folder, getattr(transformers, case.config), **case.more)
    settings = Model(
        id=str(folder),
        device=device,  # type: ignore[arg-type]
        threads=1,
        quantization=quantization,  # type: ignore[arg-type]
        lora=Lora(r=4, alpha=8),
    )
    policy = Policy.load(settings, 0)
    generator = torch.Generator().manual_seed(7)
    for role in ("actor", "refiner"):
        for tensor in policy.weights(role).values():  # type: ignore[arg-type]
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    policy.switch("actor")
    return policy


TEXTS = ["Name a colour.", "Name a bird that sings. " * 3, "Say it again, please. " * 6, "Hello!"]

PAIRS = [
    PreferencePair(f"p{n}", f"p{n}", (Message("user", f"Say {n}"),), f"yes {n}", f"NO {n}")
    for n in range(4)
]

IN_4_BIT = ("Llama", "Qwen2 (biases)", "Gemma 2", "Phi-3")
