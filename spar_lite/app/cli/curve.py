"""The curve command: how much warm-up the refiner needs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from spar_lite.app.cli.common import locked, make_console, quiet_libraries
from spar_lite.store import json_text


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this curve.")
@click.option("--rows", default="0,50,100,200", show_default=True, help="Sizes, with commas.")
@click.option("--unseen", default="", help="Constraint kinds that the warm-up does not teach.")
@click.option("--count", default=60, show_default=True, help="Held-out prompts for each set.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def curve(
    recipe: Path,
    folder: Path | None,
    rows: str,
    unseen: str,
    count: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Score a refiner as its warm-up grows.

    It is taught more and more of RECIPE's warm-up and judges and mends at each size, on held-out
    topics, for the kinds of constraints that the rows teach and for --unseen ones. The same command
    goes on where it stopped.
    """
    from spar_lite.app.curve import warmup_curve
    from spar_lite.app.report.curve import curve_table
    from spar_lite.app.report.progress import make_screen
    from spar_lite.evaluation.runner import kinds_named
    from spar_lite.recipe import load_recipe
    from spar_lite.run import Run

    settings = load_recipe(recipe, overrides)
    folder = folder or Path("runs") / f"{recipe.stem}-curve"
    sizes, kinds = _sizes(rows), kinds_named(unseen, "--unseen")
    screen = make_screen(make_console(stderr=as_json))
    quiet_libraries()
    with contextlib.closing(screen), locked(folder):
        points = warmup_curve(Run(settings, folder, screen), sizes, kinds, count)
    if as_json:
        click.echo(json_text(points, indent=1))
        return
    make_console().print(curve_table(points))


def _sizes(text: str) -> list[int]:
    from spar_lite.errors import RecipeError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() for word in words):
        raise RecipeError(f"--rows wants numbers with commas, such as 0,50,100; found {text!r}.")
    return sorted({int(word) for word in words})
