"""Tiny random models with a real tokenizer, built in code: no network, no data.

Knows transformers; the tokenizer is the benchmark's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from spar_lite.app.shapes import CHATML, byte_tokenizer


def make_tiny_model(folder: Path, seed: int = 0, chat_template: str | None = CHATML) -> Path:
    """Write a two-layer random Llama and its tokenizer into ``folder``; return the folder.

    The vocabulary is the 256 bytes and three special tokens, so any text can be encoded.
    """
    return write_model(folder, LlamaConfig, seed, chat_template, tie_word_embeddings=True)


def write_model(
    folder: Path,
    config: Callable[..., Any],
    seed: int = 0,
    chat_template: str | None = CHATML,
    **more: Any,
) -> Path:
    """Write a two-layer random model of any architecture, and its tokenizer; return the folder."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # Wide enough that greedy tokens are seldom near ties.
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(**{**sizes, **more}), dtype=torch.float32)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_gguf(folder: Path, file: Path) -> None:
    """Write the model in ``folder`` as a float32 GGUF file, chat template included."""
    import gguf

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    # The reader wants at least one merge; its token takes the place of a byte that no text has.
    tokens[tokens.index("\u00ff")] = "qq"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 3)
    writer.add_token_merges(["q q"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(258)
    writer.add_chat_template(str(tokenizer.chat_template))
    for name, tensor in _gguf_tensors(model):
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    yield "token_embd.weight", model.model.embed_tokens.weight.data
    yield "output_norm.weight", model.model.norm.weight.data
    for n, layer in enumerate(model.model.layers):
        own = {
            "attn_norm": layer.input_layernorm.weight,
            # GGUF interleaves the two halves that rotary embedding pairs up.
            "attn_q": _interleave(layer.self_attn.q_proj.weight, model.config.num_attention_heads),
            "attn_k": _interleave(layer.self_attn.k_proj.weight, model.config.num_key_value_heads),
            "attn_v": layer.self_attn.v_proj.weight,
            "attn_output": layer.self_attn.o_proj.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
            "ffn_gate": layer.mlp.gate_proj.weight,
            "ffn_up": layer.mlp.up_proj.weight,
            "ffn_down": layer.mlp.down_proj.weight,
        }
        for name, weight in own.items():
            yield f"blk.{n}.{name}.weight", weight.data


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, -1)
