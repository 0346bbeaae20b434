"""Models of a given shape with random weights, so that speed can be measured without a download.

Written to a folder shard by shard (never all in memory) and then loaded like any other model, 4-bit
where the recipe says so. Their text is noise; only their speed and memory are real.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

SHARD_BYTES = 2 << 30

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _llama(hidden: int, wide: int, layers: int, heads: int, kv: int, words: int, tied: bool) -> Any:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=words,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
    )


def _qwen3_4b() -> Any:
    return Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "tiny": lambda: _llama(64, 128, 2, 4, 2, 512, True),
    "smollm2-135m": lambda: _llama(576, 1536, 30, 9, 3, 49152, True),
    "smollm2-360m": lambda: _llama(960, 2560, 32, 15, 5, 49152, True),
    "qwen3-4b": _qwen3_4b,
    "llama3-8b": lambda: _llama(4096, 14336, 32, 32, 8, 128256, False),
}
"""Shapes of well-known models; ``tiny`` is for tests."""


def write_shape(name: str, folder: Path, dtype: torch.dtype, seed: int = 0) -> Path:
    """Write a random model of this shape, with a byte tokenizer, into ``folder``; return it."""
    from transformers import AutoModelForCausalLM

    config = SHAPES[name]()
    tokenizer = byte_tokenizer()
    config.bos_token_id = None
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.dtype = dtype
    config.architectures = [
        "Qwen3ForCausalLM" if config.model_type == "qwen3" else "LlamaForCausalLM"
    ]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [n for n, _ in model.named_parameters()]  # a tied head is not named twice
    generator = torch.Generator().manual_seed(seed)
    index: dict[str, str] = {}
    parameters = dict(model.named_parameters())
    for number, shard in enumerate(_shards(names, parameters, dtype)):
        file = f"model-{number:05d}.safetensors"
        tensors = {n: _random(n, parameters[n], dtype, generator) for n in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def _shards(
    names: list[str], parameters: dict[str, Tensor], dtype: torch.dtype
) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name in names:
        size += parameters[name].numel() * dtype.itemsize
        if shard and size > SHARD_BYTES:
            yield shard
            shard, size = [], parameters[name].numel() * dtype.itemsize
        shard.append(name)
    yield shard


def _random(name: str, like: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=dtype)
    # Uniform numbers: several times faster to draw than normal ones, and just as good here.
    return torch.empty(like.shape, dtype=dtype).uniform_(-0.05, 0.05, generator=generator)


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
