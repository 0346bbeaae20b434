"""Is this machine fit? Versions, memory, and the engine's self-check for every role."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import torch

from spar_lite.errors import SparError
from spar_lite.model import Policy, self_check
from spar_lite.model.machine import free_memory, pick_device, total_memory
from spar_lite.recipe import Recipe
from spar_lite.records import Role

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")
ROLES: tuple[Role, ...] = ("base", "actor", "refiner")


def versions() -> Iterator[str]:
    """Lines about Python, packages, devices and free memory."""
    found = " ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    yield f"Python {platform.python_version()}, {found}"
    cpu = pick_device("cpu")
    yield _memory("cpu", cpu) + f", {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        yield _memory(torch.cuda.get_device_name(), pick_device("cuda"))
    else:
        yield "no CUDA device"


def _memory(name: str, device: torch.device) -> str:
    free, total = free_memory(device, 1.0), total_memory(device)
    return f"{name}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def check_engine(
    recipe: Recipe, device: str, quantization: str
) -> Iterator[tuple[str, str | None]]:
    """Yield (what was checked, its fault or None): each role, with and without merged weights."""
    what = "4-bit NF4" if quantization == "nf4" else "full precision"
    update = {"device": device, "quantization": quantization}
    try:
        policy = Policy.load(recipe.model.model_copy(update=update), recipe.seed)
    except (SparError, RuntimeError) as error:
        yield f"{device}, {what}: load", " ".join(str(error).split())[:200]
        return
    give_adapters_weight(policy)
    for role in ROLES:
        for merged in (False, True):
            policy.switch(role)
            name = f"{device}, {what}, {role}, {'merged' if merged else 'separate'} weights"
            try:
                fault = self_check(policy, 64, merged).fault
            except SparError as error:
                fault = str(error)
            yield name, fault


def give_adapters_weight(policy: Policy, size: float = 0.01) -> None:
    """Fresh adapters change nothing; with these the roles differ, as they do in a run."""
    generator = torch.Generator().manual_seed(0)
    roles: tuple[Role, ...] = ("actor", "refiner")
    for role in roles:
        for name, tensor in policy.weights(role).items():
            if "lora_B" in name:
                noise = torch.randn(tensor.shape, generator=generator) * size
                tensor.copy_(noise.to(tensor.device, tensor.dtype))
