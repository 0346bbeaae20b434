"""Faster products for as long as one role answers; the trained adapter is not touched.

Merged: each layer is one plain matrix. The base is de-quantized and the active adapter's product
added once, into new tensors; nothing is quantized again. A step then reads 2 bytes a parameter
instead of unpacking 4-bit blocks anew, and has no LoRA products. The price is memory for a second
copy of the weights.

Fused: base and adapter stay apart, and the adapter is two products in the model's dtype, the second
added to the base's output in place. PEFT launches seven kernels for the same: copy, cast to
float32, A, B, scale, cast back, add.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import linear

from spar_lite.errors import ModelError
from spar_lite.model.machine import least_seconds

BUCKETS = 10
"""Row counts by powers of two, up to 512, for which the faster product is measured."""

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

Weights = Literal["separate", "fused", "merged"]
"""How a role's products are computed; separate: by PEFT's own layers."""


class FastWeights:
    """Replaces the products of some layers until ``remove``."""

    kind: Weights
    layers: list[Any]

    def remove(self) -> None:
        """Give every layer its own products back, and the memory."""
        for layer in self.layers:
            layer.__dict__.pop("forward", None)


class FusedAdapter(FastWeights):
    """Adds ``adapter`` to the base's products as two of the model's dtype; None: the base alone."""

    kind = "fused"

    def __init__(self, model: Any, adapter: str | None) -> None:
        self.layers = _linear(model)
        for layer in self.layers:
            base = layer.get_base_layer()
            layer.forward = functools.partial(_base_alone, base)
            if adapter is not None:
                down = layer.lora_A[adapter].weight.detach()
                up = layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]
                cast = down.to(model.dtype).t(), up.to(model.dtype).t()
                layer.forward = functools.partial(_base_and_adapter, base, *cast)


def _base_alone(base: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    out: Tensor = base(x)
    return out


def _base_and_adapter(base: Any, down: Tensor, up: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
    out: Tensor = base(x)
    # A view, or an error: on a copy the sum would be lost.
    out.view(-1, out.shape[-1]).addmm_(x.flatten(0, -2) @ down, up)
    return out


class MergedWeights(FastWeights):
    """Replaces the products of every LoRA layer, and of the head.

    Args:
        model: the transformers model beneath PEFT's wrapper.
        adapter: the name of the adapter to add; None for the base alone.
    """

    kind = "merged"

    def __init__(self, model: Any, adapter: str | None) -> None:
        self.layers = _linear(model)
        product = best_product() if model.device.type == "cpu" else linear
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


def _forward(product: Product, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    return lambda x, *_, **__: product(x, weight, bias)


def _linear(model: Any) -> list[Any]:
    """The linear layers that carry adapters (embeddings with adapters stay as they are)."""
    found = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return [m for m in found if isinstance(m.get_base_layer(), torch.nn.Linear)]


def copy_bytes(model: Any, adapter: str | None) -> int:
    """Bytes that ``MergedWeights`` will take."""
    layers = [layer.get_base_layer() for layer in _linear(model)]
    return sum(
        layer.in_features * layer.out_features * model.dtype.itemsize
        for layer in layers
        if adapter is not None or getattr(layer.weight, "quant_state", None) is not None
    )


def dense(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer as a plain matrix (out, in); the same tensor if it is one."""
    weight: Tensor = layer.weight.data
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return weight
    refuse_repacked(layer)
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(weight, state)
    return weight.to(dtype)


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


@functools.cache
def best_product(clock: Callable[[], float] = time.perf_counter) -> Product:
    """x @ weight.T, written for each number of rows in the order that this CPU does faster.

    Which of x @ W.T and (W @ x.T).T wins differs by machine and by rows, up to threefold (LOG.md).
    """
    weight = torch.ones(1536, 576)
    faster = []
    for bucket in range(BUCKETS):
        rows = torch.ones(2**bucket, weight.shape[1])
        plain, turned = (
            least_seconds(functools.partial(way, rows, weight), clock) for way in (linear, _turned)
        )
        faster.append(_turned if turned < plain else linear)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = faster[min(len(rows).bit_length() - 1, BUCKETS - 1)](rows, weight)
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], len(weight))

    return product


def _turned(rows: Tensor, weight: Tensor) -> Tensor:
    # Attention has a fast kernel for rows that lie together, and a slow one for others.
    return (weight @ rows.t()).t().contiguous()
