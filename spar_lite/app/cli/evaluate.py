"""The eval command: a subcommand for each file of ``evaluation.tasks``, loaded when it is used."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from spar_lite.app.cli.common import locked, make_console, quiet_libraries
from spar_lite.evaluation import tasks
from spar_lite.evaluation.runner import Job, Shown
from spar_lite.evaluation.target import find_target
from spar_lite.store import json_text


class Tasks(click.Group):
    """Finds its commands as files."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the tasks' files."""
        files = Path(tasks.__path__[0]).glob("[!_]*.py")
        return sorted(path.stem for path in files)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command in a task's file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        found: click.Command = importlib.import_module(f"{tasks.__name__}.{cmd_name}").command
        return found


@click.group("eval", cls=Tasks)
@click.pass_context
def evaluate(context: click.Context) -> None:
    """Score a run's checkpoint, an adapter or a base model; n and a 95 % interval with each.

    TARGET is a run's folder (its last checkpoint, or --checkpoint), an adapter's folder, a recipe
    (its base model) or a model id.
    """
    context.obj = open_job


@contextlib.contextmanager
def open_job(
    word: str, checkpoint: str | None, out: Path | None, as_json: bool, overrides: Sequence[str]
) -> Iterator[Job]:
    """An evaluation whose screen is closed, and whose folder is locked once it is written to."""
    from spar_lite.app.report.progress import make_screen

    target = find_target(word, checkpoint, overrides)
    folder = out or target.home
    screen = make_screen(make_console(stderr=as_json))
    quiet_libraries()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(screen))
        claim = functools.cache(lambda: stack.enter_context(locked(folder)))
        yield Job(target, folder, screen, claim=claim)


@evaluate.result_callback()
def show(shown: Shown) -> None:
    """Scorecards as one table, or as JSON alone."""
    if shown.as_json:
        click.echo(json_text(together(shown.cards), indent=1))
        return
    from spar_lite.app.report.evaluation import card_table
    from spar_lite.app.report.general import general_table

    console, first = make_console(), shown.cards[0]
    console.print(general_table(shown.cards) if first["task"] == "general" else card_table(first))
    for card in shown.cards:
        if shown.folder is not None:
            console.print(f"Each result: {shown.folder / card['results_file']}", highlight=False)


def together(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One scorecard, or the general tasks' in one object shaped like a scorecard."""
    if cards[0]["task"] != "general":
        return cards[0]
    return {
        "task": "general",
        "target": cards[0]["target"],
        "settings": {**cards[0]["settings"], "tasks": [c["settings"]["tasks"] for c in cards]},
        "scores": {name: score for card in cards for name, score in card["scores"].items()},
        "stderr": {name: error for card in cards for name, error in card["stderr"].items()},
        "results_files": [card["results_file"] for card in cards],
        "requests": sum(card["requests"] for card in cards),
        "seconds": round(sum(card["seconds"] for card in cards), 1),
    }
