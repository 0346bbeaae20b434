"""Adapter folders as PEFT writes them: what of an ``adapter_config.json`` we can be true to.

We make plain LoRA: one rank and one scale for all layers. Other settings would load without a word
and answer as another adapter, so every setting that differs from what PEFT itself would choose for
this model, and is not known to be harmless, is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig

from spar_lite.errors import ModelError

NAMES = {
    "r": "r", "alpha": "lora_alpha", "target": "target_modules", "base": "base_model_name_or_path"
}  # fmt: skip
HARMLESS = (
    "auto_mapping", "fan_in_fan_out", "inference_mode", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "runtime_config", "task_type",
)  # fmt: skip
"""Settings that change nothing at inference: PEFT finds ``fan_in_fan_out`` out by itself, and
``qalora_group_size`` means something with ``use_qalora`` alone."""

STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""``init_lora_weights`` that leave the base as it is; PiSSA, OLoRA and others change it."""

EXPERTS = ("alpha_pattern", "rank_pattern", "target_parameters")
"""What PEFT chooses by itself for experts that share a tensor; only the model can tell."""


def read_adapter(folder: Path, own: LoraConfig | None = None) -> dict[str, Any]:
    """The settings of the adapter in ``folder``: ``r``, ``alpha``, ``target`` and ``base``.

    ``own``: the configuration that the model in memory gives its adapters, with which a setting may
    agree; without one those that depend on the model are left to a later look with one.

    Raises:
        ModelError: there is none, it cannot be read, or it is no plain LoRA.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, found = config["peft_type"], {ours: config[name] for ours, name in NAMES.items()}
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no adapter_config.json.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error!r}).") from None
    unlike = {} if kind == "LORA" else {"peft_type": kind}
    if not found["target"]:
        unlike["target_modules"] = found["target"]
    default = (own or LoraConfig()).to_dict()
    for key, value in config.items():
        if key in (*NAMES.values(), *HARMLESS) or (own is None and key in EXPERTS):
            continue
        as_usual = STARTS if key == "init_lora_weights" else (_plain(default.get(key)),)
        if value and _plain(value) not in as_usual:
            unlike[key] = value
    if unlike:
        named = ", ".join(f"{key}: {json.dumps(value)[:60]}" for key, value in unlike.items())
        raise ModelError(
            f"{folder}: wanted a plain LoRA adapter, found {named}. Merge it into its base with "
            "PEFT (merge_and_unload, save_pretrained) and take that folder as the model."
        )
    return found | {"target": _plain(found["target"])}


def _plain(value: Any) -> Any:
    """A setting as JSON has it, the order of names left out."""
    return sorted(value) if isinstance(value, list | set | tuple) else value
