"""Commands about runs: run, and status, which shows the tables that run ends with."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click
from rich.console import Console

from spar_lite.app.console import locked, make_console, make_screen, print_alarms, print_plain
from spar_lite.app.loop_table import iteration_table, weak_parts
from spar_lite.app.plan import PLANNED, announce
from spar_lite.app.tables import cost_table, difference_row, score_table
from spar_lite.errors import StoreError
from spar_lite.evaluation.compare import differences, run_alarms
from spar_lite.loop import execute, spar, summaries
from spar_lite.recipe import Log, Recipe, load_recipe
from spar_lite.run import Run, Screen, saved_recipe
from spar_lite.store import read_json


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this run.")
@click.option(
    "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key: -o search.branch=4"
)
def run_command(recipe: Path, folder: Path | None, overrides: tuple[str, ...]) -> None:
    """Run a recipe, or go on where it stopped.

    RECIPE says everything; the same command goes on with a run that was stopped or killed.
    Under "accelerate launch" several processes share the training.
    """
    folder = folder or Path("runs") / recipe.stem
    if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        do_run(load_recipe(recipe, overrides), folder)
        return
    from spar_lite.distributed import together

    with together() as first:
        settings = load_recipe(recipe, overrides)
        if first:
            do_run(settings, folder)
        else:
            settings = settings.model_copy(update={"log": Log()})  # the first sends all curves
            spar(Run(settings, folder, Screen(), lenient=True, follows=True))


def do_run(settings: Recipe, folder: Path) -> None:
    """What is left of a run, and its tables."""
    console = make_console()
    screen = make_screen(console)
    run = Run(settings, folder, screen)
    if left := run.unfinished(spar):
        with contextlib.closing(screen), locked(folder):
            announce(settings, folder, screen, left)
            execute(run)
    else:
        console.print(f"{folder}: all stages are finished; nothing to do.", highlight=False)
    print_tables(console, settings, folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def status_command(folder: Path) -> None:
    """Show how far a run is, its scores and its costs."""
    settings = saved_recipe(folder)
    console = make_console()
    try:
        left = Run(settings, folder, Screen()).unfinished(spar)
        console.print(f"{folder}: {f'next is {left[0]}' if left else 'finished'}", highlight=False)
    except StoreError as fault:  # a file was touched; what it left is shown all the same
        print_plain(console, str(fault), "red")
    print_tables(console, settings, folder)


def print_tables(console: Console, recipe: Recipe, folder: Path) -> None:
    """Costs, what each iteration did, scores, how they changed, and what went wrong."""
    found = summaries(recipe, folder)
    planned = read_json(folder / PLANNED) or {}
    for table in (cost_table(found, planned), iteration_table(found), score_table(found)):
        if table is not None:
            console.print(table)
    for difference in differences(recipe, folder):
        print_plain(console, difference_row(difference))
    print_alarms(console, run_alarms(recipe, folder))
    print_alarms(console, weak_parts(found))
    if recipe.judge.mode == "llm":
        console.print("Verdicts are the model's own: it judges itself.", highlight=False)
