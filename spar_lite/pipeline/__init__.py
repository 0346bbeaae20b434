"""The loop as a table of stages: order, iteration, resume, ledger.

Each stage reads records of earlier ones and writes its own; a finished stage is never done again,
and a recipe that changed under it is an error. The stages stand in this folder's files; their work
is in the files that those call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from spar_lite.errors import RecipeError, StoreError
from spar_lite.pipeline.common import Stage, Summary
from spar_lite.pipeline.heldout import heldout_stages
from spar_lite.pipeline.ifeval import ifeval_prompts, ifeval_stages
from spar_lite.pipeline.iteration import iteration_stages
from spar_lite.pipeline.warmup import warmup_stages
from spar_lite.recipe import Recipe, dump_recipe, parse_recipe, recipe_slice
from spar_lite.run import Run
from spar_lite.store import Marker, write_text


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a run, in order."""
    found = [*heldout_stages(recipe, "base", 0, fresh=True), *ifeval_stages(recipe, "base", None)]
    if recipe.bootstrap.source != "none" or recipe.bootstrap.start_from:
        found += warmup_stages(recipe)
        found += heldout_stages(recipe, "bootstrap", 0)
        found += ifeval_stages(recipe, "bootstrap", 0)
    for number in range(1, recipe.iterations + 1):
        found += iteration_stages(recipe, number)
        found += heldout_stages(recipe, f"iteration-{number}", number)
    if recipe.iterations:
        found += ifeval_stages(recipe, f"iteration-{recipe.iterations}", recipe.iterations)
    return found


def execute(run: Run, only: Collection[str] = ()) -> dict[str, Summary]:
    """Do what is left of a run; return every stage's summary by label.

    ``only``: labels of the stages wanted; all if empty.

    Raises:
        StoreError: the folder holds stages that were done with other recipe values.
        SparError: IFEval is asked for, and its verifiers or prompts are not there.
    """
    saved = run.folder / "recipe.yaml"
    wanted = [s for s in stages(run.recipe) if not only or s.label in only]
    todo = [s for s in wanted if not _finished(run, s)]
    if any(stage.name == "ifeval" for stage in todo):
        ifeval_prompts(run.recipe)  # what is missing is said before the first stage
    if not saved.exists() or todo:
        write_text(saved, dump_recipe(run.recipe))
    for stage in todo:
        _do(run, stage)
    return summaries(run.recipe, run.folder)


def summaries(recipe: Recipe, folder: Path) -> dict[str, Summary]:
    """What every finished stage noted when it ended, by label, in order."""
    found = {s.label: Marker(folder / s.folder, s.name).read() for s in stages(recipe)}
    return {label: summary for label, summary in found.items() if summary is not None}


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
