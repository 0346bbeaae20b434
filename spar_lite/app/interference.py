"""The interference command: refined against interfering pairs, the paper's figure 4, made here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from spar_lite.app.console import harmless, locked, make_console, make_screen, print_plain
from spar_lite.app.tables import cell, label, make_table, score_text
from spar_lite.errors import SparError
from spar_lite.experiments.figures import draw
from spar_lite.experiments.interference import Interference, experiment
from spar_lite.experiments.outcome import panels, results
from spar_lite.recipe import load_as
from spar_lite.run import Run
from spar_lite.store import json_text, write_text

CAPTION = (
    "chosen, rejected: log p per token of the pairs' sides, in nats; drift: that of the answers "
    "under the start. Greedy answers; bootstrap intervals, held-out prompts (or pairs) resampled."
)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this experiment.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def interference_command(
    recipe: Path, folder: Path | None, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Do pairs that differ in more than what was mended teach less?

    RECIPE is recipes/character_sequence.yaml, recipes/start_end_story.yaml or one like them. The
    same command goes on where it stopped. Writes results.json and figures into the folder.
    """
    settings = load_as(Interference, recipe, overrides)
    folder = folder or Path("runs") / recipe.stem
    screen = make_screen(make_console(stderr=as_json))
    with contextlib.closing(screen), locked(folder):
        Run(settings, folder, screen).work(experiment)
        found = results(settings, folder)
        write_text(folder / "results.json", json_text(found, indent=1))
        try:
            caption = f"{title_of(found)}. {CAPTION} {found['finding']}"
            files = draw(folder / "figures" / settings.task, panels(found), caption)
        except SparError as fault:  # matplotlib is an extra; the figures' numbers are there
            files = []
            screen.say(str(fault))
    if as_json:
        click.echo(json_text(found, indent=1))
    else:
        print_results(make_console(), found, files)


def title_of(found: Mapping[str, Any]) -> str:
    """What was counted."""
    n = f"{found['prompts']} held-out prompts, {found['pairs']} pairs an arm"
    return f"{found['task']}: {n}, {len(found['seeds'])} seeds"


def print_results(console: Console, found: Mapping[str, Any], files: Sequence[Path]) -> None:
    """The table, the finding, both contrasts, answers to read, and where the figures are."""
    console.print(result_table(found))
    print_plain(console, found["finding"], "bold")
    for arm, gap in found["differences"].items():
        seeds = ", ".join(f"{100 * each:+.1f}" for each in gap["by_seed"])
        text = cell(gap, "met").replace("\\[", "[")  # no table reads it
        print_plain(console, f"refined minus {arm}, points met: {text} prompts; by seed {seeds}")
    for example in found["examples"]:
        print_plain(console, f"\n{example['prompt']}", "bold")
        for who, text in example["answers"].items():
            print_plain(console, f"  {who}: {harmless(text)}")
    for file in files:
        print_plain(console, str(file))


def result_table(found: Mapping[str, Any]) -> Table:
    """One line an arm and step; every figure with its interval."""
    names = list(dict.fromkeys(name for p in found["points"] for name in p["scores"]))
    title = f"{title_of(found)} [95 % interval]"
    table = make_table(title, "arm", "step", *map(label, names), caption=CAPTION)
    for point in found["points"]:
        scores = point["scores"]
        cells = [score_text(scores[name], name) if name in scores else "-" for name in names]
        table.add_row(point["arm"], str(point["step"]), *cells)
    return table
