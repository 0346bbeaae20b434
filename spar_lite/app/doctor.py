"""The doctor command: versions, memory, and the engine's self-check for every role.

What loads torch is imported inside the functions, so that its help is there at once.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import get_args

import click

from spar_lite.app.console import make_console
from spar_lite.errors import SparError, one_line
from spar_lite.recipe import Recipe, load_recipe
from spar_lite.run import ROLES

GIB = 2**30
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def doctor_command(recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Check this machine, and that the fast path is right.

    Versions, memory, and the logits of the engine beside those of plain forward passes.

    For base, actor and refiner, in full precision and 4-bit, on every device; with RECIPE's model,
    or a tiny random one. Exits with 1 if a check fails.
    """
    import torch

    from spar_lite.app.shapes import shape_recipe

    console = make_console()
    cuda, failed = torch.cuda.is_available(), 0
    devices = ["cpu", "cuda"] if cuda else ["cpu"]
    packages = " ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    for line in (
        f"Python {platform.python_version()}, {packages}",
        f"{_memory('cpu', 'cpu')}, {torch.get_num_threads()} threads",
        _memory(torch.cuda.get_device_name(), "cuda") if cuda else "no CUDA device",
    ):
        console.print(line, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        if recipe:
            settings = load_recipe(recipe, overrides)
            devices = devices[-1:] if settings.model.device == "auto" else [settings.model.device]
        else:
            settings = shape_recipe("tiny", Path(scratch), overrides)
        for device in devices:
            for kind in ("none", "nf4"):
                if recipe and settings.model.quantization not in ("auto", kind):
                    continue
                for name, fault in check_engine(settings, device, kind):
                    failed += fault is not None
                    sign = "[red]✗[/]" if fault else "[green]✓[/]"
                    console.print(f"{sign} {name}{f': {fault}' if fault else ''}", highlight=False)
    if failed:
        console.print(
            f"{failed} failed: the engine will use plain generate there (slow, but right)."
        )
        raise SystemExit(1)


def _memory(name: str, kind: str) -> str:
    import torch

    from spar_lite.model.machine import free_memory, total_memory

    device = torch.device(kind)
    return (
        f"{name}: {free_memory(device, 1) / GIB:.1f} of {total_memory(device) / GIB:.1f} GiB free"
    )


def check_engine(
    recipe: Recipe, device: str, quantization: str
) -> Iterator[tuple[str, str | None]]:
    """Yield (what was checked, its fault or None): each role, its products computed in each way."""
    from spar_lite.app.shapes import give_adapters_weight
    from spar_lite.model import Policy, self_check
    from spar_lite.model.merged import Weights

    what = f"{device}, {'4-bit NF4' if quantization == 'nf4' else 'full precision'}"
    update = {"device": device, "quantization": quantization}
    try:
        policy = Policy.load(recipe.model.model_copy(update=update), recipe.seed)
    except (SparError, RuntimeError) as error:
        yield f"{what}: load", one_line(error)
        return
    give_adapters_weight(policy)
    for role in ("base", *ROLES):
        for weights in get_args(Weights):
            policy.switch(role)
            try:
                fault = self_check(policy, 64, weights).fault
            except SparError as error:
                fault = str(error)
            yield f"{what}, {role}, {weights} weights", fault
