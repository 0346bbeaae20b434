"""Commands about this machine: bench measures it, doctor checks it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite.app.cli.common import make_console, quiet_libraries
from spar_lite.store import json_text

if TYPE_CHECKING:
    from rich.console import Console

    from spar_lite.recipe import Recipe

SHAPE_NAMES = ("tiny", "smollm2-135m", "smollm2-360m", "qwen3-4b", "llama3-8b")
GIB = 2**30


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--shape", type=click.Choice(SHAPE_NAMES), help="Random weights, no download.")
@click.option("--trees", default=0, help="Trees in the search workload [default: 64, CUDA 128].")
@click.option("--static-batch", default=16, show_default=True, help="Batch of the static baseline.")
@click.option("--train-tokens", default=-1, help="Tokens of a training example; 0 skips training.")
@click.option("--memory-gb", default=0.0, help="Cap on memory: emulates a smaller card.")
@click.option("--no-baselines", is_flag=True, help="Leave out the slow plain generate.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def bench(
    recipe: Path | None,
    shape: str | None,
    trees: int,
    static_batch: int,
    train_tokens: int,
    memory_gb: float,
    no_baselines: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Measure the speed and memory of engine and training.

    With RECIPE's model, or a random one of a --shape; beside plain generate (one at a time, and
    static batches) and the machine's roofline. Replies have scripted lengths, so the text does not
    matter.
    """
    from spar_lite.errors import RecipeError

    if (recipe is None) == (shape is None):
        raise RecipeError("wanted a RECIPE or --shape NAME, and not both; see spar-lite bench -h.")
    quiet_libraries()
    from spar_lite.app import bench as room
    from spar_lite.app.bench.workloads import Sizes

    console = make_console(stderr=as_json)
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(recipe, shape, overrides, Path(scratch))
        policy, settings = _load(settings, memory_gb, console)
        cuda = policy.device.type == "cuda"
        plan = room.Bench(
            Sizes(trees or (128 if cuda else 64)),
            static_batch,
            train_tokens if train_tokens >= 0 else 2048 if cuda else 256,
            baselines=not no_baselines,
            memory_bytes=int(memory_gb * GIB),
            seed=settings.seed,
        )
        found = room.bench(policy, settings, plan, lambda text: console.print(f"[dim]{text} …[/]"))
    found["model"] = shape or found["model"]
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    from spar_lite.app.report.bench import bench_tables

    for table in bench_tables(found):
        console.print(table)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def doctor(recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Check this machine, and that the fast path is right.

    Versions, memory, and the logits of the engine beside those of plain forward passes.

    For base, actor and refiner, in full precision and 4-bit, on every device; with RECIPE's model,
    or a tiny random one. Exits with 1 if a check fails.
    """
    quiet_libraries()
    import torch

    from spar_lite.app.bench.doctor import check_engine, versions

    console = make_console()
    for line in versions():
        console.print(line, highlight=False)
    failed = 0
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(recipe, None if recipe else "tiny", overrides, Path(scratch))
        if recipe:
            devices = devices[-1:] if settings.model.device == "auto" else [settings.model.device]
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


def _settings(
    recipe: Path | None, shape: str | None, overrides: tuple[str, ...], scratch: Path
) -> Recipe:
    from spar_lite.recipe import load_recipe

    if recipe is not None:
        return load_recipe(recipe, overrides)
    import torch

    from spar_lite.app.bench import write_shape

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    folder = write_shape(str(shape), scratch / "model", dtype)
    plain = scratch / "recipe.yaml"
    # One example at a time: 2,048 tokens of a large vocabulary are all that a small card can take.
    plain.write_text(
        f"model: {{id: {json.dumps(str(folder))}}}\n"
        "dpo: {batch_size: 4, micro_batch: 1}\nrft: {batch_size: 4, micro_batch: 1}\n"
    )
    return load_recipe(plain, overrides)


def _load(settings: Recipe, memory_gb: float, console: Console) -> tuple[Any, Recipe]:
    """The policy under the cap, and the settings with the share of memory that this means."""
    from spar_lite.errors import ModelError
    from spar_lite.model import Policy
    from spar_lite.model.machine import pick_device, total_memory

    device = pick_device(settings.model.device)
    if memory_gb:
        share = memory_gb * GIB / total_memory(device)
        if share > 1:
            raise ModelError(
                f"--memory-gb {memory_gb:g}: {device} has {total_memory(device) / GIB:.1f} GiB."
            )
        model = settings.model.model_copy(update={"memory_fraction": share})
        settings = settings.model_copy(update={"model": model})
    console.print(f"[dim]loading on {device} …[/]")
    return Policy.load(settings.model, settings.seed), settings
