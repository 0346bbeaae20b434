"""Commands that list what can be set and checked: recipe, constraints."""

from __future__ import annotations

import random
from pathlib import Path

import click

from spar_lite.constraints import KINDS
from spar_lite.recipe import describe_keys, dump_recipe, load_recipe


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key.")
def recipe_command(recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """List every recipe key, or print RECIPE resolved.

    Each key has its default and its meaning.
    """
    if recipe is not None:
        click.echo(dump_recipe(load_recipe(recipe, overrides)), nl=False)
        return
    for key, default, text in describe_keys():
        click.echo(f"{key}{f' = {default}' if default else ''}\n    {text}")


@click.command()
def constraints_command() -> None:
    """List the constraint kinds that a program can check.

    With an example of each.
    """
    for name, kind in KINDS.items():
        click.echo(f"{name}\n    {kind.sample(random.Random(0)).phrasings()[0]}")
