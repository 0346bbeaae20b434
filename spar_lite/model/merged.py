"""Fast weights: for as long as one role answers, each layer is one plain matrix.

The base is de-quantized and the active adapter's product added once, into new tensors; nothing is
quantized again and the trained adapter is not touched. A step then reads 2 bytes a parameter
instead of unpacking 4-bit blocks anew, and has no LoRA products. The price is memory for a second
copy of the weights. Knows PEFT's layers and bitsandbytes' storage; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

TURN_FROM = 8
"""Rows from which W @ x.T beats x @ W.T on a CPU (measured, see LOG.md); one row is the reverse."""


class FastWeights:
    """Replaces the products of every LoRA layer, and of the head, until ``remove``.

    Args:
        model: the transformers model beneath PEFT's wrapper.
        adapter: the name of the adapter to add; None for the base alone.
    """

    def __init__(self, model: Any, adapter: str | None) -> None:
        self.layers = _linear(model)
        turned = model.device.type == "cpu"
        product = _turned if turned else torch.nn.functional.linear
        try:
            for layer in self.layers:
                base = layer.get_base_layer()
                weight = dense(base, model.dtype)
                if adapter is not None:
                    weight = (weight.float() + layer.get_delta_weight(adapter)).to(model.dtype)
                layer.forward = _forward(product, weight, base.bias)
        except BaseException:
            self.remove()
            raise
        head = model.lm_head
        self.head: Callable[[Tensor], Tensor] = (
            (lambda hidden: _turned(hidden, head.weight, head.bias)) if turned else head
        )

    def remove(self) -> None:
        """Give every layer its own products back, and the memory."""
        for layer in self.layers:
            layer.__dict__.pop("forward", None)


def copy_bytes(model: Any, adapter: str | None) -> int:
    """Bytes that ``FastWeights`` will take."""
    layers = [layer.get_base_layer() for layer in _linear(model)]
    return sum(
        layer.in_features * layer.out_features * model.dtype.itemsize
        for layer in layers
        if adapter is not None or getattr(layer.weight, "quant_state", None) is not None
    )


def _linear(model: Any) -> list[Any]:
    """The linear layers that carry adapters (embeddings with adapters stay as they are)."""
    found = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return [m for m in found if isinstance(m.get_base_layer(), torch.nn.Linear)]


def dense(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer as a plain matrix (out, in); the same tensor if it is one."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        weight: Tensor = layer.weight.data
        return weight
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(layer.weight.data, state)
    return whole.to(dtype)


def _forward(
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor], weight: Tensor, bias: Tensor | None
) -> Callable[..., Tensor]:
    return lambda x, *_, **__: product(x, weight, bias)


def _turned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T, computed as (weight @ x.T).T where that is faster."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) < TURN_FROM:
        return torch.nn.functional.linear(x, weight, bias)
    # Attention has a fast kernel for rows that lie together, and a slow one for others.
    out = (weight @ rows.t()).t().contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], len(weight))
