"""The loop as a table of stages: order, iteration, resume, ledger.

Each stage reads records of earlier ones and writes its own; a finished stage is never done again,
and a recipe that changed under it is an error. The stages stand in this folder's files; their work
is in the files that those call.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spar_lite.errors import RecipeError, StoreError
from spar_lite.evaluate import HeldoutResult, paired_difference
from spar_lite.pipeline.common import Stage, Summary
from spar_lite.pipeline.heldout import heldout_stages
from spar_lite.pipeline.iteration import iteration_stages
from spar_lite.pipeline.warmup import warmup_stages
from spar_lite.recipe import Recipe, dump_recipe, parse_recipe, recipe_slice
from spar_lite.run import Run
from spar_lite.store import Marker, StageFile, write_text


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a run, in order."""
    found = [*heldout_stages(recipe, "base", 0, fresh=True)]
    if recipe.bootstrap.source != "none" or recipe.bootstrap.start_from:
        found += warmup_stages(recipe)
        found += heldout_stages(recipe, "bootstrap", 0)
    for number in range(1, recipe.iterations + 1):
        found += iteration_stages(recipe, number)
        found += heldout_stages(recipe, f"iteration-{number}", number)
    return found


def execute(run: Run, only: Collection[str] = ()) -> dict[str, Summary]:
    """Do what is left of a run; return every stage's summary by label.

    ``only``: labels of the stages wanted; all if empty.

    Raises:
        StoreError: the folder holds stages that were done with other recipe values.
    """
    saved = run.folder / "recipe.yaml"
    wanted = [s for s in stages(run.recipe) if not only or s.label in only]
    todo = [s for s in wanted if not _finished(run, s)]
    if not saved.exists() or todo:
        write_text(saved, dump_recipe(run.recipe))
    for stage in todo:
        _do(run, stage)
    return summaries(run.recipe, run.folder)


def summaries(recipe: Recipe, folder: Path) -> dict[str, Summary]:
    """What every finished stage noted when it ended, by label, in order."""
    found = {s.label: Marker(folder / s.folder, s.name).read() for s in stages(recipe)}
    return {label: summary for label, summary in found.items() if summary is not None}


def differences(recipe: Recipe, folder: Path) -> dict[str, Summary]:
    """Held-out score of each checkpoint against the one before, paired over the same prompts."""
    names = [s.folder for s in stages(recipe) if s.name == "heldout"]
    found: dict[str, list[HeldoutResult]] = {}
    for name in names:
        if Marker(folder / name, "heldout").read() is not None:
            found[name] = StageFile(folder / name, "heldout", HeldoutResult).load()
    done = list(found)
    pairs = list(itertools.pairwise(done))
    if len(done) > 2:
        pairs.append((done[0], done[-1]))
    return {
        f"{a} → {b}": asdict(paired_difference(found[a], found[b], recipe.seed)) for a, b in pairs
    }


def unfinished(run: Run) -> list[Stage]:
    """The stages still to do."""
    return [s for s in stages(run.recipe) if not _finished(run, s)]


def _finished(run: Run, stage: Stage) -> bool:
    """Whether a stage is done; an error if it was done under another recipe."""
    marker = Marker(run.folder / stage.folder, stage.name).read()
    if marker is None:
        return False
    now, then = recipe_slice(run.recipe, stage.keys), marker["recipe"]
    # A key that only one of them has came or went with a version; it is nobody's change of mind.
    for key in sorted(set(now) & set(then)):
        if now[key] != then[key] and now[key] != _as_read_today(run.recipe, key, then[key]):
            raise StoreError(
                f"{run.folder}: {stage.label} was finished with {key}: {then[key]!r}, the "
                f"recipe now says {now[key]!r}. To go on with this run: "
                f"-o '{key}={_yaml(then[key])}'. For the new value: another --run folder."
            )
    return True


def _as_read_today(recipe: Recipe, key: str, value: Any) -> Any:
    """What a value that an earlier version wrote down means now; itself if it means nothing."""
    try:
        read = parse_recipe(
            recipe.model_dump(mode="json", by_alias=True), overrides=[f"{key}={json.dumps(value)}"]
        )
    except RecipeError:
        return value
    return recipe_slice(read, (key,))[key]


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if value is True else str(value)


def _do(run: Run, stage: Stage) -> None:
    """Work one stage, then mark it finished, last of all."""
    begin = time.perf_counter()
    run.take_usage()
    run.ledger(stage=stage.label, event="start")
    summary = stage.work(run)
    cost: Summary = {"seconds": round(time.perf_counter() - begin, 2), **run.take_usage()}
    cost["peak_memory_bytes"] = run.peak_memory()
    cost["device"] = run.device
    kept = {"recipe": recipe_slice(run.recipe, stage.keys), **summary, **cost}
    Marker(run.folder / stage.folder, stage.name).write(kept)
    run.ledger(stage=stage.label, event="done", **summary, **cost)
    run.screen.end(describe(summary))


def describe(summary: Summary) -> str:
    """A summary in a few words, for the screen."""
    words = []
    for key, value in summary.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = f"{value:.3g}" if isinstance(value, float) else str(value)
            words.append(f"{number} {key.replace('_', ' ')}")
    return ", ".join(words)
