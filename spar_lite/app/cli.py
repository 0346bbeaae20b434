"""The command line: a command's module is loaded when the command is asked for.

So ``--help`` is instant. Errors are shown as one line and exit with 2.
"""

from __future__ import annotations

import errno
import logging
import os
import warnings
from importlib import import_module
from typing import Any

import click

from spar_lite import __version__
from spar_lite.errors import SparError

USER_FAULT = 2
"""Exit code of every error that the user can mend."""

COMMANDS = {
    "run": ("runs", "Run a recipe, or go on where it stopped."),
    "plan": ("plan", "Say what a recipe will take on a card, before it runs."),
    "status": ("runs", "Show how far a run is, its scores and its costs."),
    "show": ("show", "Show a run's trees, its answers, or what has an ID."),
    "refine": ("talk", "Answer an INSTRUCTION, judge the answer, and grow a tree of refinements."),
    "chat": ("talk", "Chat with a checkpoint's actor, its refiner or the base."),
    "report": ("report", "Write runs as one HTML page: answers, scores, trees."),
    "export": ("export", "Write an adapter, a merged model, pairs or trees for others."),
    "compare": ("compare", "Compare runs or checkpoints: scores, costs, differences."),
    "sweep": ("sweep", "Run a recipe in cells that differ in a few keys, and compare them."),
    "interference": (
        "interference",
        "Do pairs that differ in more than what was mended teach less?",
    ),
    "eval": ("evaluate", "Score a checkpoint, an adapter or a base model."),
    "bench": ("bench", "Measure the speed and memory of engine and training."),
    "doctor": ("doctor", "Check this machine, and that the fast path is right."),
    "recipe": ("lists", "List every recipe key, or print RECIPE resolved."),
    "constraints": ("lists", "List the constraint kinds that a program can check."),
}
"""By name: the module with its ``NAME_command``, and its line in the list of commands."""

QUIET = {
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class LazyGroup(click.Group):
    """Lists commands without loading them, and shows our errors as one line."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command itself, in place of the one that only stands in the list."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            # The libraries' bars and advice would tear our screen; errors still come through. They
            # read these when they are imported, which the command's module may do.
            for key, value in QUIET.items():
                os.environ.setdefault(key, value)
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            module = import_module(f"spar_lite.app.{COMMANDS[name][0]}")
            command = getattr(module, f"{name}_command")
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a SparError becomes a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except SparError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(USER_FAULT)
        except OSError as error:  # a full disk, a folder that may not be read, a lost network
            if error.errno == errno.EPIPE:
                raise  # click's: nobody reads what is written any more
            click.echo(f"Error: {error}. Once that is mended, the same command goes on.", err=True)
            ctx.exit(USER_FAULT)
        except KeyboardInterrupt:
            click.echo("Stopped. The same command goes on from here.", err=True)
            ctx.exit(130)


@click.group(
    cls=LazyGroup,
    commands={name: click.Command(name, short_help=line) for name, (_, line) in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="spar-lite")
def main() -> None:
    """SPaR on one GPU: a model judges its answers, mends them in search trees, and learns.

    One 4-bit base model, two LoRA adapters (actor, refiner), no teacher. Method: arXiv 2412.11605.
    """
