"""The command line: one file a group of commands, put together here.

Errors are shown as one line and exit with 2; everything heavy is imported inside the commands, so
that --help is instant.
"""

from __future__ import annotations

from typing import Any

import click

from spar_lite import __version__
from spar_lite.app.cli import bench, compare, curve, evaluate, lists, runs
from spar_lite.errors import SparError

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


for command in (
    runs.run,
    runs.status,
    runs.show,
    compare.compare,
    curve.curve,
    evaluate.evaluate,
    bench.bench,
    bench.doctor,
    lists.recipe_,
    lists.constraints_,
):
    main.add_command(command)
