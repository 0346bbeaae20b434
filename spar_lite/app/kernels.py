"""Counts kernels and bytes of what torch dispatches, as a CUDA card would run it.

Each operation that writes memory is one kernel, and its bytes are all that it reads and writes;
what only looks at memory in another way costs nothing. Two things run otherwise on CUDA than on a
CPU or the meta device, and are counted as they are there:

* a 4-bit product is one kernel of bitsandbytes, or a dequantization and cuBLAS;
* attention with a mask is one memory-efficient kernel, after what SDPA makes of a mask of booleans
  (one without a mask is flash attention); it reads every row up to the last key that it is given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "_local_scalar_dense"}
"""Operations that launch nothing, beside those that return a view."""

GATHERS, SCATTERS = {"embedding", "index", "index_select", "gather"}, {"scatter_", "index_put_"}
"""Operations that read, or write, only a part of their first tensor."""

PARTS = ("weights", "cache", "activations", "logits")
"""What bytes are of."""

Rule = Callable[[int, int, int], bool]
"""Of (rows, outputs, inputs): whether bitsandbytes multiplies the packed weights themselves."""


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is launched on ``device`` while it is active.

    Args:
        device: type of the device whose operations count.
        cache: the tensors of keys and values.
        vocabulary: last dimension of logits.
        reads_4_bits: which 4-bit products are one kernel.
    """

    def __init__(
        self, device: str, cache: Iterable[Tensor], vocabulary: int, reads_4_bits: Rule
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.cache = {_storage(tensor) for tensor in cache}
        self.vocabulary = vocabulary
        self.reads_4_bits = reads_4_bits
        self.made: set[int] = set()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, and count it."""
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "_local_scalar_dense" and args[0].is_meta:
            return 0  # of so many rows the logits are not finite
        if name == "_to_copy" and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=args[0].dtype)  # the tokens that were drawn
        out = func(*args, **kwargs)
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if name == "lift_fresh":  # what torch.tensor makes
            self.made.add(_storage(out))
        if self.paused or view or name in FREE:
            return out
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        if name == "gemm_4bit":
            self._four_bits(inputs, out)
        elif name in GATHERS:
            self.launch(name, inputs[1:], outputs, (inputs[0], _size(out)))
        elif name in SCATTERS:
            self.launch(name, inputs[1:], [], (inputs[0], _size(inputs[-1])))
        else:
            self.launch(name, inputs, outputs)
        return out

    def launch(
        self,
        name: str,
        read: Sequence[Tensor],
        written: Sequence[Tensor],
        *others: tuple[Tensor, int],
    ) -> None:
        """Count a kernel that reads and writes these whole, and of ``others`` so many bytes."""
        if not any(t.device.type == self.device for t in (*read, *written)):
            return
        self.kernels[name] += 1
        self.made.update(map(_storage, written))
        for tensor, size in (*((t, _size(t)) for t in (*read, *written)), *others):
            if tensor.device.type == self.device:
                self.bytes[self._part(tensor)] += size

    def _part(self, tensor: Tensor) -> str:
        if _storage(tensor) in self.cache:
            return "cache"
        if _storage(tensor) not in self.made:
            return "weights"  # older than the step
        return "logits" if tensor.shape[-1:] == (self.vocabulary,) else "activations"

    def _four_bits(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """bitsandbytes' product: its own kernel, or the dense weight and then cuBLAS."""
        outputs, columns = out.shape[-1], inputs[0].shape[-1]
        rows = out.numel() // outputs
        self.launch("gemm_4bit", inputs, [out])
        if not self.reads_4_bits(rows, outputs, columns):
            # The scales from 8 bits to float32, their mean added, the weights, the product.
            self.kernels.update(["dequantize_blockwise", "add", "dequantize_4bit"])
            # Written and read again: a float32 scale for 64 weights, twice, and each weight.
            self.bytes["weights"] += outputs * columns * (4 * 4 + 64 * 2 * out.itemsize) // 64


class Attention(TorchFunctionMode):
    """Counts SDPA as CUDA runs it, while ``count`` counts all else."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one function; attention as a single kernel, whatever it is on this device."""
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.count.paused = True
        out = func(*args, **kwargs)
        self.count.paused = False
        mask, read = kwargs.get("attn_mask"), list(args[:3])
        if mask is not None and mask.dtype == torch.bool:
            zero = torch.scalar_tensor(0.0, dtype=out.dtype, device=out.device)
            mask = torch.where(mask.logical_not(), float("-inf"), zero)
        self.count.launch("attention", read if mask is None else [*read, mask], [out])
        return out


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes in memory: what was expanded is there once."""
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.itemsize * math.prod(size for size, stride in shape if stride or not size)
