"""The command line: run, status, show, recipe, constraints.

Errors are shown as one line and exit with 2; everything heavy is imported inside the commands, so
that --help is instant.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite import __version__
from spar_lite.errors import SparError

if TYPE_CHECKING:
    from rich.console import Console

USER_FAULT = 2
"""Exit code of every error that the user can mend."""


class Group(click.Group):
    """Shows our errors as one line, wherever they come from."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a SparError becomes a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except SparError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(USER_FAULT)
        except KeyboardInterrupt:
            click.echo("Stopped. The same command goes on from here.", err=True)
            ctx.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spar-lite")
def main() -> None:
    """SPaR on one GPU: a model judges its answers, mends them in search trees, and learns.

    One 4-bit base model, two LoRA adapters (actor, refiner), no teacher. Method: arXiv 2412.11605.
    """


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this run.")
@click.option(
    "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key: -o search.branch=4"
)
def run(recipe: Path, folder: Path | None, overrides: tuple[str, ...]) -> None:
    """Run the loop of RECIPE; the same command again goes on where it stopped."""
    from spar_lite.recipe import load_recipe
    from spar_lite.report.progress import make_screen

    settings = load_recipe(recipe, overrides)
    folder = folder or Path("runs") / recipe.stem
    console = _console()
    from spar_lite.pipeline import execute, unfinished
    from spar_lite.run import Run

    screen = make_screen(console)
    job = Run(settings, folder, screen)
    if not unfinished(job):
        console.print(f"{folder}: all stages are finished; nothing to do.", highlight=False)
        _tables(console, folder, settings)
        return
    _quiet_libraries()
    with _closing(screen), _locked(folder):
        execute(job)
    _tables(console, folder, settings)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def status(folder: Path) -> None:
    """Show how far a run is, its scores and what it has cost."""
    from spar_lite.pipeline import unfinished
    from spar_lite.report.progress import make_screen
    from spar_lite.run import Run

    settings = _saved_recipe(folder)
    console = _console()
    left = unfinished(Run(settings, folder, make_screen(console)))
    console.print(
        f"{folder}: finished" if not left else f"{folder}: next is {left[0].label}",
        highlight=False,
    )
    _tables(console, folder, settings)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("prompt_id", required=False)
@click.option("--iteration", default=1, show_default=True, help="Which iteration's trees.")
def show(folder: Path, prompt_id: str | None, iteration: int) -> None:
    """Draw the search trees of a run: all of them, or that of PROMPT_ID."""
    from spar_lite.errors import StoreError, did_you_mean
    from spar_lite.records import Prompt, Tree
    from spar_lite.report.trees import draw_tree
    from spar_lite.store import StageFile

    place = folder / f"iteration-{iteration}"
    if not (place / "trees.jsonl").exists():
        raise StoreError(f"{place} has no finished trees. See: spar-lite status {folder}")
    prompts = {p.id: p for p in StageFile(place, "prompts", Prompt).load()}
    trees = {t.id: t for t in StageFile(place, "trees", Tree).load()}
    if prompt_id is not None and prompt_id not in trees:
        hint = did_you_mean(prompt_id, trees)
        raise StoreError(f'{place} has no tree for "{prompt_id}" ({len(trees)} others).{hint}')
    console = _console()
    for tree in trees.values():
        if prompt_id in (None, tree.id):
            console.print(draw_tree(tree, prompts[tree.prompt_id]), highlight=False)


@main.command("recipe")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key.")
def recipe_(recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """List every recipe key with its default and meaning, or resolve and print RECIPE."""
    from spar_lite.recipe import describe_keys, dump_recipe, load_recipe

    if recipe is not None:
        click.echo(dump_recipe(load_recipe(recipe, overrides)), nl=False)
        return
    for key, default, text in describe_keys():
        click.echo(f"{key}{f' = {default}' if default else ''}\n    {text}")


@main.command("constraints")
def constraints_() -> None:
    """List the constraint kinds that a program can check, with an example of each."""
    import random

    from spar_lite.constraints import KINDS

    for name, kind in KINDS.items():
        click.echo(f"{name}\n    {kind.sample(random.Random(0)).describe()}")


def _tables(console: Console, folder: Path, settings: Any) -> None:
    from spar_lite.pipeline import differences, summaries
    from spar_lite.report.tables import cost_table, difference_rows, iteration_table, score_table

    found = summaries(settings, folder)
    for table in (cost_table(found), iteration_table(found), score_table(found)):
        if table is not None:
            console.print(table)
    for row in difference_rows(differences(settings, folder)):
        console.print(row, highlight=False)
    if settings.judge.mode == "llm":
        console.print("Verdicts are the model's own: it judges itself.", highlight=False)


def _saved_recipe(folder: Path) -> Any:
    from spar_lite.errors import StoreError
    from spar_lite.recipe import load_recipe

    if not (folder / "recipe.yaml").exists():
        raise StoreError(f"{folder} holds no recipe.yaml, so it is not a run folder.")
    return load_recipe(folder / "recipe.yaml")


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A log or a pipe has no width of its own: wide enough that no table cell is cut.
    return console if console.is_terminal else Console(width=160)


def _quiet_libraries() -> None:
    """Their bars and advice would tear our screen; errors still come through."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


@contextlib.contextmanager
def _closing(screen: Any) -> Iterator[None]:
    try:
        yield
    finally:
        screen.close()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of the same run folder; a killed one leaves no lock behind."""
    import fcntl

    from spar_lite.errors import StoreError

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"{folder} is in use by another spar-lite run.") from None
        yield
