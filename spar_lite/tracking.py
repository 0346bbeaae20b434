"""Figures sent elsewhere too, while a run goes on: TensorBoard, Weights & Biases, Trackio (log.to).

The trainers send their curves themselves (``report_to``), the steps what they note at their end.
The run's own files stay the record: nothing reads what is sent, and what cannot be sent is said.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from spar_lite.errors import RecipeError, one_line
from spar_lite.recipe import Log

PROJECT = "spar-lite"


def check_tracker(log: Log) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        RecipeError: with the command that installs it.
    """
    if log.to != "none" and find_spec(log.to) is None:
        raise RecipeError(f"log.to: {log.to} is not installed. First: pip install {log.to}")


@contextmanager
def tracked(log: Log, folder: Path, label: str) -> Iterator[dict[str, Any]]:
    """Arguments by which a trainer sends its curve while the context lasts; ``label``: its step's.

    Each training is a run of its own there, since each counts its steps from the first.
    """
    if log.to == "none":
        yield {"report_to": "none"}
        return
    with _at_home(folder, label):
        try:
            yield {"report_to": log.to, "run_name": f"{folder.name} {label}", "project": PROJECT}
        finally:
            if log.to == "wandb":  # transformers leaves it open, and the next would go on with it
                with suppress(Exception):  # what cannot be sent has been said
                    import_module("wandb").finish()


def send(log: Log, folder: Path, label: str, found: Mapping[str, Any]) -> str | None:
    """Send what a step noted, such as "iteration-1/heldout", its scores without their intervals.

    They stand at 0 for the base, 1 for the warm-up, N + 1 for iteration N. Returns what is to be
    said where that fails: a run of many hours does not end for it.
    """
    if log.to == "none":
        return None
    place, _, step = label.partition("/")
    number = place.rpartition("-")[2]
    at = int(number) + 1 if number.isdigit() else int(place == "bootstrap")
    figures = {f"{step}/{name}": value for name, value in _figures(found)}
    try:
        with _at_home(folder, "steps"):
            if log.to == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                with SummaryWriter(os.environ["TENSORBOARD_LOGGING_DIR"]) as writer:
                    for name, value in figures.items():
                        writer.add_scalar(name, value, at)
                return None
            tracker = import_module(log.to)
            tracker.init(project=PROJECT, name=f"{folder.name} {label}")
            tracker.log({**figures, "checkpoint": at})
            tracker.finish()
    except Exception as error:  # noqa: BLE001 - whatever a tracker or its network raises
        reason = one_line(error)
        return f"log.to: {label} could not be sent to {log.to} ({reason})"
    return None


def _figures(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a summary by their paths; of a score its value."""
    for name, value in found.items():
        value = value.get("value", value) if isinstance(value, Mapping) else value
        if isinstance(value, Mapping):
            yield from _figures(value, f"{above}{name}/")
        elif type(value) in (int, float) and math.isfinite(value):
            yield above + name, float(value)


def _at_home(folder: Path, label: str) -> Any:
    """Trackers write into the run's folder, unless their own variables say otherwise."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    wanted = {"WANDB_PROJECT": PROJECT, "WANDB_DIR": str(logs), "TRACKIO_DIR": str(logs)}
    known = {key: os.environ.get(key, value) for key, value in wanted.items()}
    return mock.patch.dict(os.environ, {**known, "TENSORBOARD_LOGGING_DIR": str(logs / label)})
