"""Fast weights: for as long as one role answers, each layer is one plain matrix.

The base is de-quantized and the active adapter's product added once, into new tensors; nothing is
quantized again and the trained adapter is not touched. A step then reads 2 bytes a parameter
instead of unpacking 4-bit blocks anew, and has no LoRA products. The price is memory for a second
copy of the weights.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from spar_lite.errors import ModelError

BUCKETS = 10
"""Row counts by powers of two, up to 512, for which the faster product is measured."""


class FastWeights:
    """Replaces the products of every LoRA layer, and of the head, until ``remove``.

    Args:
        model: the transformers model beneath PEFT's wrapper.
        adapter: the name of the adapter to add; None for the base alone.
    """

    def __init__(self, model: Any, adapter: str | None) -> None:
        self.layers = _linear(model)
        product = best_product() if model.device.type == "cpu" else torch.nn.functional.linear
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
        head: Any = model.get_output_embeddings()
        if type(head) is torch.nn.Linear:  # one without an adapter
            self.layers.append(head)
            head.__dict__["forward"] = _forward(product, head.weight, head.bias)

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
    refuse_repacked(layer)
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(layer.weight.data, state)
    return whole.to(dtype)


def refuse_repacked(layer: Any) -> None:
    """Raise ModelError if bitsandbytes has put a layer's 4-bit weights into its CPU layout.

    Those are rounded to bf16 and mean something else to everyone but bitsandbytes' own kernel; what
    becomes a ``Policy`` never gets there.
    """
    if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
        raise ModelError(
            "bitsandbytes has repacked the 4-bit weights for this CPU's AVX512-BF16; merging or "
            "training with them would be wrong. Use -o model.quantization=none."
        )


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _forward(product: Product, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    return lambda x, *_, **__: product(x, weight, bias)


@functools.cache
def best_product(clock: Callable[[], float] = time.perf_counter) -> Product:
    """x @ weight.T, written for each number of rows in the order that this CPU does faster.

    Which of x @ W.T and (W @ x.T).T wins differs by machine and by rows, up to threefold (LOG.md).
    """
    weight = torch.ones(1536, 576)
    turn = []
    for bucket in range(BUCKETS):
        x = torch.ones(2**bucket, weight.shape[1])
        plain, turned = (_seconds(f, x, weight, clock) for f in (_linear_rows, _turned_rows))
        turn.append(turned < plain)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        turned = turn[min(len(rows).bit_length() - 1, BUCKETS - 1)]
        out = (_turned_rows if turned else _linear_rows)(rows, weight)
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], len(weight))

    return product


def _linear_rows(rows: Tensor, weight: Tensor) -> Tensor:
    return rows @ weight.t()


def _turned_rows(rows: Tensor, weight: Tensor) -> Tensor:
    # Attention has a fast kernel for rows that lie together, and a slow one for others.
    return (weight @ rows.t()).t().contiguous()


def _seconds(
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    clock: Callable[[], float],
) -> float:
    """Least time of one product, of a few."""
    took = []
    for _ in range(7):
        start = clock()
        product(x, weight)
        took.append(clock() - start)
    return min(took)
