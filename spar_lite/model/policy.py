"""One base model, two LoRA adapters, one process.

The actor's adapter is called "default" inside PEFT, because TRL's DPO trainer insists on that name
for the adapter that it trains and copies as the reference; everywhere else it is the actor. Roles
are toggled in place: no weight moves.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import (
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor

from spar_lite.errors import ModelError, one_line
from spar_lite.model.adapters import read_adapter
from spar_lite.model.chat import ChatTemplate
from spar_lite.model.loading import keep_4bit_layout, load_base, load_tokenizer, not_finite
from spar_lite.model.machine import TUNE_EVERY, best_threads, give_back, pick_device
from spar_lite.model.merged import (
    FastWeights,
    FusedAdapter,
    MergedWeights,
    Weights,
    refuse_repacked,
)
from spar_lite.model.source import locate, reach_hub
from spar_lite.recipe import Model
from spar_lite.records import Role

ADAPTERS: dict[Role, str] = {"actor": "default", "refiner": "refiner"}


class Policy:
    """The base with both adapters, its tokenizer, and the toggle between roles."""

    def __init__(self, model: PeftModel, chat: ChatTemplate, quantized: bool) -> None:
        self.model = model
        self.chat = chat
        self.tokenizer = chat.tokenizer
        self.encode = chat.encode
        self.quantized = quantized
        self.role: Role | None = None
        self.fast: FastWeights | None = None
        self.chooses_threads = False
        self._tuned = -math.inf
        self._fresh = {
            role: {name: tensor.cpu().clone() for name, tensor in self.weights(role).items()}
            for role in ADAPTERS
        }
        self.switch("actor")

    @classmethod
    def load(cls, settings: Model, seed: int) -> Policy:
        """Load the base (4-bit where the recipe and device say so) and two fresh adapters.

        Fresh adapters change nothing yet: LoRA's B starts at zero.

        Raises:
            ModelError: the model, its tokenizer or its chat template is missing, damaged or does
                not fit the memory.
        """
        device = pick_device(settings.device)
        quantized = settings.quantization == "nf4" or (
            settings.quantization == "auto" and device.type == "cuda"
        )
        where = locate(settings.id)
        if not Path(where).is_dir():
            reach_hub(where)
        # The template first: what it refuses is said before minutes of loading.
        tokenizer = load_tokenizer(where, settings)
        chat = ChatTemplate(tokenizer, settings.chat_template, settings.id)
        base = load_base(where, settings, device, quantized)
        if tokenizer.pad_token_id >= base.get_input_embeddings().num_embeddings:
            tokenizer.pad_token = tokenizer.eos_token  # theirs is one that the model never had
        keep_4bit_layout(base)
        torch.manual_seed(seed)
        policy = cls(add_adapters(base, settings), chat, quantized)
        if device.type == "cpu" and settings.threads:
            torch.set_num_threads(settings.threads)
        policy.chooses_threads = device.type == "cpu" and not settings.threads
        policy.tune_threads()
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(settings.memory_fraction, policy.device)
            # On Hopper SDPA prefers cuDNN, which plans anew for each new number of keys: decoding
            # took 180 ms a step with it and 119 without (H100, 8B in NF4, 64 rows; LOG.md).
            torch.backends.cuda.enable_cudnn_sdp(False)
        return policy

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.model.device)

    @property
    def inner(self) -> Any:
        """The transformers model with its LoRA layers, beneath PEFT's wrapper."""
        return self.model.base_model.model

    @property
    def eos(self) -> tuple[int, ...]:
        """Token ids that end a reply: the model's and the tokenizer's."""
        own = self.inner.generation_config.eos_token_id
        ids = set(own if isinstance(own, list) else [own]) | {self.tokenizer.eos_token_id}
        return tuple(sorted(i for i in ids if i is not None))

    @property
    def positions(self) -> int:
        """Tokens of prompt and reply together that can be served; without end if not said.

        Long-rope models (Phi-3.5) end before their second set of factors: it would count for tokens
        in the cache too, which were computed with the first.
        """
        config = self.inner.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        key = "max_position_embeddings"
        if rope.get("rope_type") == "longrope" and rope.get(f"original_{key}"):
            return int(rope[f"original_{key}"])
        return getattr(config, key, None) or sys.maxsize

    def tune_threads(self) -> None:
        """Choose the CPU threads, and after a while anew, unless the recipe says how many.

        For whoever works long to call between two pieces of work.
        """
        if self.chooses_threads and time.monotonic() - self._tuned > TUNE_EVERY:
            hidden = self.inner.config.get_text_config().hidden_size
            torch.set_num_threads(best_threads(min(hidden, 768)))  # of wider ones it takes seconds
            self._tuned = time.monotonic()

    def switch(self, role: Role) -> None:
        """Make ``role`` answer: toggles adapters in place, in eval mode, nothing trainable."""
        if role != self.role:
            self.slow_down()
        if role == "base":
            self.model.base_model.disable_adapter_layers()
        else:
            if self.role == "base":
                self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(ADAPTERS[role], inference_mode=True)
        self.model.eval()
        self.role = role

    def speed_up(self, weights: Weights = "merged") -> None:
        """Compute the present role's products so until ``slow_down``; see ``merged``."""
        if self.fast is not None and self.fast.kind != weights:
            self.slow_down()
        if self.fast is None and weights != "separate":
            adapter = None if self.role in (None, "base") else ADAPTERS[self.role]
            self.fast = {"merged": MergedWeights, "fused": FusedAdapter}[weights](
                self.inner, adapter
            )

    def slow_down(self) -> None:
        """Back to the layers' own products; the memory is returned."""
        if self.fast is not None:
            self.fast.remove()
            self.fast = None
            give_back(self.device)

    @contextmanager
    def training(self, role: Role) -> Iterator[PeftModel]:
        """Make one adapter, and nothing else, trainable while the context lasts."""
        self.switch(role)
        self.slow_down()
        for module in self.inner.modules():
            if hasattr(module, "weight"):
                refuse_repacked(module)
        self.model.set_adapter(ADAPTERS[role])
        self.model.train()
        try:
            yield self.model
        finally:
            self.inner.activation_checkpointing_disable()
            self.inner.disable_input_require_grads()
            self.model.zero_grad(set_to_none=True)
            self.switch(role)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text, special tokens dropped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def weights(self, role: Role) -> dict[str, Tensor]:
        """The adapter's own tensors by name (views, not copies)."""
        mark = f".{ADAPTERS[role]}."
        return {
            name.replace(mark, "."): parameter.data
            for name, parameter in self.model.named_parameters()
            if mark in name and "lora_" in name
        }

    def put(self, adapter: str, tensors: Mapping[str, Tensor]) -> None:
        """Give an adapter, by PEFT's name for it, copies of these tensors, by those of ``weights``.

        One that is not there is left alone.
        """
        mark = f".{adapter}."
        for name, parameter in self.model.named_parameters():
            if mark in name and "lora_" in name:  # anew, since a trainer may have cast the old one
                tensor = tensors[name.replace(mark, ".")]
                parameter.data = tensor.to(parameter.device, copy=True)

    def fingerprint(self, role: Role) -> str:
        """A hash of the adapter's bytes: changes exactly when the adapter does."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.weights(role).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, role: Role, folder: Path) -> None:
        """Write the adapter as PEFT safetensors that plain ``PeftModel.from_pretrained`` loads."""
        name = ADAPTERS[role]
        staging = folder.with_name(folder.name + ".tmp")
        self.model.save_pretrained(str(staging), selected_adapters=[name])
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # ours alone, from an unfinished stage
        # PEFT writes every adapter but "default" into a folder of its own name.
        (staging if name == "default" else staging / name).rename(folder)
        shutil.rmtree(staging, ignore_errors=True)

    def restore(self, role: Role, folder: Path | None) -> None:
        """Load an adapter that ``save`` wrote into this role; None: the fresh one of the beginning.

        Raises:
            ModelError: the folder holds no adapter, one that is no plain LoRA of our scale and
                shape, or one that is not finite.
        """
        if folder is None:
            self.slow_down()
            self.put(ADAPTERS[role], self._fresh[role])
            return
        if not (folder / "adapter_model.safetensors").is_file():
            raise ModelError(f"{folder} holds no adapter_model.safetensors.")
        try:
            state = load_peft_weights(str(folder), device=str(self.device))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder}: the adapter's file is damaged ({error}).") from None
        config = self.model.peft_config[ADAPTERS[role]]
        if (alpha := read_adapter(folder, config)["alpha"]) != config.lora_alpha:
            raise ModelError(
                f"{folder}: the adapter was made with alpha {alpha}, and here model.lora.alpha is "
                f"{config.lora_alpha}. Set model.lora as it was there."
            )
        own = get_peft_model_state_dict(self.model, adapter_name=ADAPTERS[role])
        # PEFT itself stays silent where tensors are missing, and half the adapter would be fresh.
        for name in sorted(state.keys() | own.keys()):
            wanted, found = (tuple(d[name].shape) if name in d else None for d in (own, state))
            if wanted != found:
                raise ModelError(
                    f"{folder}: the adapter does not fit this model: {name} wanted shape "
                    f"{wanted or 'none'}, found {found or 'none'}. Were model.lora or model.id "
                    "different when it was made?"
                )
        if bad := not_finite(state.items()):
            raise ModelError(
                f"{folder}: {bad} holds NaN or infinity: its training diverged. Go back to an "
                "earlier adapter, or train anew with a lower learning rate."
            )
        self.slow_down()
        set_peft_model_state_dict(self.model, state, adapter_name=ADAPTERS[role])


def add_adapters(base: Any, settings: Model) -> PeftModel:
    """Put two fresh adapters on a base."""
    target = settings.lora.target
    config = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=target if isinstance(target, str) else list(target),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers for an attribute that 5.23 renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*Setting fan_in_fan_out")  # GPT-2's
        try:
            model = get_peft_model(base, config, adapter_name=ADAPTERS["actor"])
            model.add_adapter(ADAPTERS["refiner"], config)
        except ValueError as error:
            reason = one_line(error)
            raise ModelError(
                f"model.lora.target {target!r} does not fit {settings.id}: "
                f"{reason} Name linear layers of its own, or take all-linear."
            ) from None
    return model
