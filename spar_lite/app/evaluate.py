"""The eval command: a subcommand for each file of ``evaluation.tasks``, loaded when it is used."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import click

from spar_lite.app.console import locked, make_console, make_screen
from spar_lite.app.tables import card_table, general_table
from spar_lite.evaluation import tasks
from spar_lite.evaluation.runner import Job
from spar_lite.evaluation.target import find_target
from spar_lite.store import json_text

TARGET = click.Argument(["target"])
COMMON = (
    click.Option(["--checkpoint"], help="Of a run: base, bootstrap or iteration-N [last]."),
    click.Option(["--out"], type=click.Path(path_type=Path), help="Folder for the results."),
    click.Option(["--json", "as_json"], is_flag=True, help="Scores as JSON, and nothing else."),
    click.Option(["-o", "overrides"], multiple=True, metavar="KEY=VALUE", help="Change a key."),
)


class Tasks(click.Group):
    """Finds its commands as files, and gives each TARGET and the options that all have."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(file.name for file in pkgutil.iter_modules(tasks.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        own = importlib.import_module(f"{tasks.__name__}.{cmd_name}").command
        target = [] if any(param.name == "target" for param in own.params) else [TARGET]
        params = [*target, *own.params, *COMMON]
        call = functools.partial(run_task, own.callback)
        return click.Command(cmd_name, params=params, callback=call, help=own.help)


@click.group(cls=Tasks)
def eval_command() -> None:
    """Score a checkpoint, an adapter or a base model.

    Every score comes with n and a 95 % interval. TARGET is a run's folder (its last checkpoint, or
    --checkpoint), an adapter's folder, a recipe (its base model) or a model id.
    """


def run_task(
    command: Any,
    target: str | None,
    checkpoint: str | None,
    out: Path | None,
    as_json: bool,
    overrides: tuple[str, ...],
    **own: Any,
) -> None:
    """Do a task on a target (None: one that needs no model) and show its scorecard."""
    job = None
    with contextlib.ExitStack() as stack:
        if target is not None:
            found = find_target(target, checkpoint, overrides)
            folder = out or found.home
            screen = make_screen(make_console(stderr=as_json))
            stack.enter_context(contextlib.closing(screen))
            # The folder is locked once it is written to.
            claim = functools.cache(lambda: stack.enter_context(locked(folder)))
            job = Job(found, folder, screen, claim=claim)
        card = command(job, **own)
    if as_json:
        click.echo(json_text(card, indent=1))
        return
    console = make_console()
    console.print(general_table(card) if card["task"] == "general" else card_table(card))
    for name in card.get("results_files", [card.get("results_file")]):
        if job is not None:
            console.print(f"Each result: {job.folder / name}", highlight=False)
