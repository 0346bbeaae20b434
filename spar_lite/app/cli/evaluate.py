"""The eval command: a subcommand for each file of ``evaluation.tasks``, loaded when it is used."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite.app.cli.common import locked, make_console, quiet_libraries

if TYPE_CHECKING:
    from spar_lite.evaluation.runner import Job

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
        """The names of the tasks' files."""
        from spar_lite.evaluation import tasks

        return sorted(file.name for file in pkgutil.iter_modules(tasks.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command in a task's file: its own options and the common ones."""
        if cmd_name not in self.list_commands(ctx):
            return None
        own = importlib.import_module(f"spar_lite.evaluation.tasks.{cmd_name}").command
        target = [] if any(param.name == "target" for param in own.params) else [TARGET]
        params = [*target, *own.params, *COMMON]
        call = functools.partial(run_task, own.callback)
        return click.Command(cmd_name, params=params, callback=call, help=own.help)


@click.group("eval", cls=Tasks)
def evaluate() -> None:
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
    with open_job(target, checkpoint, out, as_json, overrides) as job:
        card = command(job, **own)
    if as_json:
        from spar_lite.store import json_text

        click.echo(json_text(card, indent=1))
        return
    from spar_lite.app.report.evaluation import card_table
    from spar_lite.app.report.general import general_table

    console, table = make_console(), general_table if card["task"] == "general" else card_table
    console.print(table(card))
    for name in card.get("results_files", [card.get("results_file")]):
        if job is not None:
            console.print(f"Each result: {job.folder / name}", highlight=False)


@contextlib.contextmanager
def open_job(
    target: str | None,
    checkpoint: str | None,
    out: Path | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> Iterator[Job | None]:
    """An evaluation whose screen is closed, and whose folder is locked once it is written to."""
    if target is None:
        yield None
        return
    from spar_lite.app.report.progress import make_screen
    from spar_lite.evaluation.runner import Job
    from spar_lite.evaluation.target import find_target

    found = find_target(target, checkpoint, overrides)
    folder = out or found.home
    screen = make_screen(make_console(stderr=as_json))
    quiet_libraries()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(screen))
        claim = functools.cache(lambda: stack.enter_context(locked(folder)))
        yield Job(found, folder, screen, claim=claim)
