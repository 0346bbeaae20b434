"""The key/value cache under the decoder: one row a sequence, all rows of one length.

Grows in rows and length as the sequences do, never beyond a budget of bytes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

BLOCK = 64
"""Lengths are multiples of this many positions."""


class SlotCache:
    """Keys and values of all slots, in the shape that transformers' attention asks for.

    Per layer two tensors (rows, kv heads, length, head dim). ``write_at`` says which rows and
    positions the next forward pass writes; ``update`` is then called by each attention layer.

    Args:
        position_bytes: bytes that one position of one row takes in all layers.
        budget: bytes that the cache may take in all; None for no limit.
    """

    is_compileable = False

    def __init__(self, position_bytes: int, budget: int | None = None) -> None:
        self.position_bytes = position_bytes
        self.budget = budget
        self.rows = 0
        self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def rows_at(self, length: int) -> int:
        """How many rows of this length fit the budget; 0 if not even one does."""
        if self.budget is None:
            return 1 << 30
        return self.budget // (self.position_bytes * _rounded(length))

    def reserve(self, rows: int, length: int) -> None:
        """Hold at least ``rows`` rows of ``length`` positions, keeping what the first ones hold.

        Length grows by a quarter at a time where that fits, so that copying stays rare. Spare rows
        and spare length (their prefixes may still be of use) are given up where they do not fit.
        """
        old = self.length
        if length > old:
            ample = max(length, old + old // 4)
            new = _rounded(ample if self.rows_at(ample) >= max(rows, self.rows) else length)
        else:
            new = old if self.rows_at(old) >= rows else _rounded(length)
        rows = max(rows, min(self.rows, self.rows_at(new)))
        if (rows, new) == (self.rows, old):
            return
        kept = slice(min(rows, self.rows)), slice(None), slice(min(new, old))
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = tensor.new_zeros(rows, tensor.shape[1], new, tensor.shape[3])
                tensors[layer][kept] = tensor[kept]
        self.rows, self.length = rows, new

    def write_at(self, rows: Tensor | slice, positions: Tensor, width: int) -> None:
        """Point the next forward pass at ``rows`` and ``positions`` (batch, queries).

        It attends to the first ``width`` positions. A slice of rows is read as a view, not copied.
        """
        self._rows, self._positions, self._width = rows, positions, width

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (batch, kv heads, queries, head dim); return all to attend."""
        for tensors, new in ((self.keys, key), (self.values, value)):
            if layer_idx == len(tensors):
                tensors.append(new.new_zeros(self.rows, new.shape[1], self.length, new.shape[3]))
            if isinstance(self._rows, slice):
                where = self._positions[:, None, :, None].expand_as(new)
                tensors[layer_idx][self._rows].scatter_(2, where, new)
            else:
                tensors[layer_idx][self._rows[:, None], :, self._positions] = new.transpose(1, 2)
        attended = self._rows, slice(None), slice(self._width)
        return self.keys[layer_idx][attended], self.values[layer_idx][attended]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot to another, in every layer."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked by model code that was given positions and a mask already; never used by it."""
        return self._width


def bytes_per_position(config: Any, itemsize: int) -> int:
    """Bytes that one token's keys and values take in all layers of a model with this config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    both = 2 * heads * size
    if latent := getattr(config, "qk_nope_head_dim", None):  # DeepSeek's keys and values differ
        both = config.num_attention_heads * (latent + config.qk_rope_head_dim + config.v_head_dim)
    return int(config.num_hidden_layers * both * itemsize)


def generate_bytes(config: Any, itemsize: int, prompt: int, new: int) -> int:
    """Bytes that a row of transformers' ``generate`` takes at its peak, about.

    Keys and values of all ``prompt`` and ``new`` tokens; the prompt's activations, computed in one
    pass: eight times a layer's widest output (8,192 tokens of Llama-3-8B with adapters: 1.8 GB);
    the logits and what a draw makes of them, six times in float32.
    """
    kept = bytes_per_position(config, itemsize) if hasattr(config, "num_attention_heads") else 0
    widest: int = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(kept * (prompt + new)) + 8 * widest * itemsize * prompt + 24 * int(config.vocab_size)


def _rounded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
