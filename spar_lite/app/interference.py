"""The interference command: refined against interfering pairs, the paper's figure 4, made here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from spar_lite.app.console import harmless, locked, make_console, make_screen, print_plain
from spar_lite.app.tables import make_table
from spar_lite.experiments.figures import draw, need_matplotlib
from spar_lite.experiments.interference import Interference, experiment, panels, results
from spar_lite.recipe import load_as
from spar_lite.run import Run
from spar_lite.store import json_text, write_text

SHARES = ("met", "capitals", "start", "end", "speech")
PLAIN = {"miscount": "miscount", "chosen": "log p chosen", "rejected": "rejected", "drift": "drift"}


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
    need_matplotlib()
    screen = make_screen(make_console(stderr=as_json))
    with contextlib.closing(screen), locked(folder):
        Run(settings, folder, screen).work(experiment)
        found = results(settings, folder)
        write_text(folder / "results.json", json_text(found, indent=1))
        files = draw(folder / "figures" / settings.task, panels(found), caption(found))
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    console = make_console()
    print_results(console, found)
    for file in files:
        print_plain(console, str(file))


def caption(found: Mapping[str, Any]) -> str:
    """Under table and figures: what was counted, and what the intervals are."""
    return (
        f"{found['task']}: {found['pairs']} pairs an arm, {len(found['seeds'])} seeds, scores of "
        f"{found['prompts']} held-out prompts answered greedily; 95 % bootstrap intervals, prompts "
        f"resampled. {found['finding']}"
    )


def print_results(console: Console, found: Mapping[str, Any]) -> None:
    """The table, the finding, the other contrast, and answers to read."""
    console.print(result_table(found))
    print_plain(console, found["finding"], "bold")
    for arm, gap in found["differences"].items():
        value, low, high = (100 * gap[key] for key in ("value", "low", "high"))
        seeds = ", ".join(f"{100 * each:+.1f}" for each in gap["by_seed"])
        text = f"refined minus {arm}: {value:+.1f} points [{low:+.1f}, {high:+.1f}]"
        print_plain(console, f"{text}, n={gap['n']} prompts; by seed {seeds}")
    for example in found["examples"]:
        print_plain(console, f"\n{example['prompt']}", "bold")
        for who, text in example["answers"].items():
            print_plain(console, f"  {who}: {harmless(text)}")


def result_table(found: Mapping[str, Any]) -> Table:
    """One line an arm and step; every figure with its interval, n once a line."""
    names = list(found["points"][0]["scores"])
    titles = [f"{name}, %" if name in SHARES else PLAIN.get(name, name) for name in names]
    table = make_table(f"{found['task']} [95 % interval]", "arm", "step", "n", *titles, left=1)
    for point in found["points"]:
        scores = point["scores"]
        cells = [_cell(scores.get(name), name) for name in names]
        table.add_row(point["arm"], str(point["step"]), str(scores["met"]["n"]), *cells)
    return table


def _cell(score: Mapping[str, Any] | None, name: str) -> str:
    if score is None:
        return "-"
    scale, places = (100, 1) if name in SHARES else (1, 2)
    value, low, high = (scale * score[key] for key in ("value", "low", "high"))
    return f"{value:.{places}f} \\[{low:.{places}f}, {high:.{places}f}]"
