"""Commands about runs: run, status, show."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite.app.cli.common import locked, make_console, quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this run.")
@click.option(
    "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key: -o search.branch=4"
)
def run(recipe: Path, folder: Path | None, overrides: tuple[str, ...]) -> None:
    """Run a recipe, or go on where it stopped.

    RECIPE says everything; the same command goes on with a run that was stopped or killed.
    """
    from spar_lite.app.report.progress import make_screen
    from spar_lite.recipe import load_recipe

    settings = load_recipe(recipe, overrides)
    folder = folder or Path("runs") / recipe.stem
    console = make_console()
    from spar_lite.loop import execute, spar
    from spar_lite.run import Run

    screen = make_screen(console)
    job = Run(settings, folder, screen)
    if not job.unfinished(spar):
        console.print(f"{folder}: all stages are finished; nothing to do.", highlight=False)
        _tables(console, folder, settings)
        return
    quiet_libraries()
    with contextlib.closing(screen), locked(folder):
        execute(job)
    _tables(console, folder, settings)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def status(folder: Path) -> None:
    """Show how far a run is, its scores and its costs."""
    from spar_lite.errors import StoreError
    from spar_lite.loop import spar
    from spar_lite.run import Run, Screen

    settings = _saved_recipe(folder)
    console = make_console()
    try:
        left = Run(settings, folder, Screen()).unfinished(spar)
        console.print(f"{folder}: {f'next is {left[0]}' if left else 'finished'}", highlight=False)
    except StoreError as fault:  # a file was touched; what it left is shown all the same
        console.print(str(fault), highlight=False, markup=False, soft_wrap=True, style="red")
    _tables(console, folder, settings)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("prompt_id", required=False)
@click.option("--iteration", default=1, show_default=True, help="Which iteration's trees.")
@click.option(
    "--answers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Instead: N held-out answers of every checkpoint, side by side.",
)
def show(folder: Path, prompt_id: str | None, iteration: int, answers: int | None) -> None:
    """Draw a run's search trees, or show its answers.

    All trees of an iteration, or that of PROMPT_ID; or with --answers N the held-out answers.
    """
    if answers is not None:
        from spar_lite.app.report.answers import answer_lines

        for line in answer_lines(_saved_recipe(folder), folder, answers):
            click.echo(line)
        return
    from spar_lite.app.report.trees import draw_tree
    from spar_lite.errors import StoreError, did_you_mean
    from spar_lite.records import Prompt, Tree
    from spar_lite.store import StageFile

    place = folder / f"iteration-{iteration}"
    if not (place / "trees.jsonl").exists():
        raise StoreError(f"{place} has no finished trees. See: spar-lite status {folder}")
    prompts = {p.id: p for p in StageFile(place, "prompts", Prompt).load()}
    trees = {t.id: t for t in StageFile(place, "trees", Tree).load()}
    if prompt_id is not None and prompt_id not in trees:
        hint = did_you_mean(prompt_id, trees)
        raise StoreError(f'{place} has no tree for "{prompt_id}" ({len(trees)} others).{hint}')
    console = make_console()
    for tree in trees.values():
        if prompt_id in (None, tree.id):
            console.print(draw_tree(tree, prompts[tree.prompt_id]), highlight=False)


def _tables(console: Console, folder: Path, settings: Any) -> None:
    from spar_lite.app.report.loop import iteration_table
    from spar_lite.app.report.tables import alarm_rows, cost_table, difference_row, score_table
    from spar_lite.app.report.weak import weak_parts
    from spar_lite.evaluation.changes import differences, run_alarms
    from spar_lite.loop import summaries

    plain: Any = {"highlight": False, "markup": False, "soft_wrap": True}
    found = summaries(settings, folder)
    for table in (cost_table(found), iteration_table(found), score_table(found)):
        if table is not None:
            console.print(table)
    for difference in differences(settings, folder):
        console.print(difference_row(difference), **plain)
    for said in (run_alarms(settings, folder), weak_parts(found)):
        for row in alarm_rows(said):
            console.print(row, style="red", **plain)
    if settings.judge.mode == "llm":
        console.print("Verdicts are the model's own: it judges itself.", highlight=False)


def _saved_recipe(folder: Path) -> Any:
    from spar_lite.errors import StoreError
    from spar_lite.recipe import load_recipe

    if not (folder / "recipe.yaml").exists():
        raise StoreError(f"{folder} holds no recipe.yaml, so it is not a run folder.")
    return load_recipe(folder / "recipe.yaml")
