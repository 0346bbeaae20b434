"""The eval commands: one a task, all about one target (a run, an adapter, a base model)."""

from __future__ import annotations

import click


@click.group("eval")
def evaluate() -> None:
    """Score a run's checkpoint, an adapter or a base model; n and a 95 % interval with each."""
