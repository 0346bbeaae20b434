"""The bench command: it measures engine and training, or counts what a step takes on a card.

``measure`` and ``simulate`` do the work. They load torch, so that they come in when they are asked.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from spar_lite.app.console import make_console
from spar_lite.app.plan import CARDS
from spar_lite.errors import ModelError, RecipeError
from spar_lite.footprint import SHAPES
from spar_lite.recipe import Recipe, load_recipe, parse_recipe
from spar_lite.store import json_text

GIB = 2**30


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Random weights, no download.")
@click.option("--trees", default=0, help="Trees in the search workload [default: 64, CUDA 128].")
@click.option("--train-tokens", default=-1, help="Tokens of a training example; 0 skips training.")
@click.option("--memory-gb", default=0.0, help="Cap on memory: emulates a smaller card.")
@click.option("--no-baselines", is_flag=True, help="Leave out the slow plain generate.")
@click.option("--simulate", is_flag=True, help="Count a decoding step on a card; needs none.")
@click.option("--card", type=click.Choice(list(CARDS)), help="To simulate [default: rtx4090].")
@click.option(
    "--rows", type=click.IntRange(1), help="To simulate: replies at a time [default: 64]."
)
@click.option(
    "--tokens",
    type=(click.IntRange(2), click.IntRange(2)),
    metavar="LEAST MOST",
    help="To simulate: of the shortest and the longest row, prompt and reply [default: 200 1600].",
)
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def bench_command(
    recipe: Path | None,
    shape: str | None,
    trees: int,
    train_tokens: int,
    memory_gb: float,
    no_baselines: bool,
    simulate: bool,
    card: str | None,
    rows: int | None,
    tokens: tuple[int, int] | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Measure the speed and memory of engine and training.

    With RECIPE's model, or a random one of a --shape; beside plain generate (one at a time, and
    static batches) and the machine's roofline. Replies have scripted lengths, so the text does not
    matter.

    With --simulate nothing is measured or downloaded: kernels and bytes of one decoding step on a
    --card, and the tokens a second that follow.
    """
    if (recipe is None) == (shape is None):
        raise RecipeError("wanted a RECIPE or --shape NAME, and not both; see spar-lite bench -h.")
    if not simulate and (card or rows or tokens):
        raise RecipeError("--card, --rows and --tokens want --simulate; see spar-lite bench -h.")
    if simulate and (trees or train_tokens >= 0 or memory_gb or no_baselines):
        raise RecipeError(
            "--trees, --train-tokens, --memory-gb and --no-baselines are of what is measured, and "
            "--simulate measures nothing; see spar-lite bench -h."
        )
    if simulate:
        from spar_lite.app.simulate import count_and_show

        settings = (
            load_recipe(recipe, overrides)
            if recipe
            else parse_recipe({"model": {"id": shape}}, f"--shape {shape}", overrides)
        )
        count_and_show(settings, card or "rtx4090", rows or 64, tokens or (200, 1600), as_json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if recipe:
            settings = load_recipe(recipe, overrides)
        else:
            from spar_lite.app.shapes import shape_recipe

            settings = shape_recipe(str(shape), Path(scratch), overrides)
        found = _measure(settings, trees, train_tokens, int(memory_gb * GIB), no_baselines, as_json)
    found["model"] = shape or found["model"]
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    from spar_lite.app.measure import bench_tables

    for table in bench_tables(found):
        make_console().print(table)


def _measure(
    settings: Recipe, trees: int, train_tokens: int, most: int, no_baselines: bool, as_json: bool
) -> dict[str, Any]:
    """All figures; ``most``: bytes of memory, 0 for all that there is."""
    from spar_lite.app.measure import measure
    from spar_lite.model import Policy
    from spar_lite.model.machine import is_out_of_memory, pick_device, total_memory

    console = make_console(stderr=as_json)
    device = pick_device(settings.model.device)
    cuda, total = device.type == "cuda", total_memory(device)
    if most > total:
        raise ModelError(f"--memory-gb {most / GIB:g}: {device} has {total / GIB:.1f} GiB.")
    if most:
        model = settings.model.model_copy(update={"memory_fraction": most / total})
        settings = settings.model_copy(update={"model": model})
    console.print(f"[dim]loading on {device} …[/]")
    policy = Policy.load(settings.model, settings.seed)
    tokens = train_tokens if train_tokens >= 0 else 2048 if cuda else 256
    trees = trees or (128 if cuda else 64)
    try:
        found = measure(policy, settings, trees, tokens, not no_baselines, console)
        peak = found["peak_memory_bytes"]
        fault = f"{peak / GIB:.1f} GiB at the peak" if most and peak > most else ""
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fault = "the allocator had no more to give"
    if fault:
        raise ModelError(
            f"wanted at most {most / GIB:.1f} GiB, found {fault}. Try a smaller -o engine.batch, "
            "--train-tokens or model."
        )
    return found
