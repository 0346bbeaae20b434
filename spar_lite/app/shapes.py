"""Models of a given shape with random weights, so that speed can be measured without a download.

Written to a folder tensor by tensor (never all in memory) and then loaded like any other model,
4-bit where the recipe says so. Their text is noise; only their speed and memory are real.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from spar_lite.footprint import KNOWN, SHAPES
from spar_lite.model import Policy
from spar_lite.model.machine import pick_device, pick_dtype
from spar_lite.recipe import Recipe, parse_recipe
from spar_lite.run import ROLES

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shape_config(name: str) -> Any:
    """The configuration of a model of a shape in ``SHAPES``, or of a ``KNOWN`` id."""
    shape, kind = SHAPES.get(name) or KNOWN[name], LlamaConfig
    for family in (Qwen2Config, Qwen3Config):
        if family.model_type in name.lower():
            kind = family
    return kind(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        bos_token_id=None,
        architectures=[kind.__name__.replace("Config", "ForCausalLM")],
    )


def shape_recipe(name: str, folder: Path, overrides: Sequence[str]) -> Recipe:
    """A recipe whose model is a random one of this shape, written into ``folder``."""
    dtype = pick_dtype(pick_device("auto"))
    model = write_shape(name, folder, dtype)
    small = {"batch_size": 4}
    data = {"model": {"id": str(model)}, "dpo": small, "rft": small}
    return parse_recipe(data, f"--shape {name}", overrides)


def write_shape(name: str, folder: Path, dtype: torch.dtype, seed: int = 0) -> Path:
    """Write a random model of this shape, with a byte tokenizer, into ``folder``; return it."""
    config, tokenizer = shape_config(name), byte_tokenizer()
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, str] = {}
    for tensor_name, like in model.named_parameters():  # a tied head is not named twice
        tensor = torch.ones(like.shape, dtype=dtype)
        if like.dim() > 1:
            # Uniform numbers: several times faster to draw than normal ones, and as good here.
            tensor.uniform_(-0.05, 0.05, generator=generator)
        files[tensor_name] = f"model-{len(files):05d}.safetensors"
        save_file({tensor_name: tensor}, folder / files[tensor_name], metadata={"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the 256 bytes and three special tokens: any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: n for n, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def give_adapters_weight(policy: Policy, size: float = 0.01) -> None:
    """Fresh adapters change nothing; with these the roles differ, as they do in a run."""
    generator = torch.Generator().manual_seed(0)
    for role in ROLES:
        for name, tensor in policy.weights(role).items():
            if "lora_B" in name:
                noise = torch.randn(tensor.shape, generator=generator) * size
                tensor.copy_(noise.to(tensor.device, tensor.dtype))
