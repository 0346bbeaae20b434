"""The warm-up curve: how judging and mending grow with the rows that the refiner was taught.

One refiner is trained on more and more of the rows and scored at each size, on held-out topics with
kinds of constraints that the rows teach (seen) and others (unseen). Every size keeps its adapter
and its results; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spar_lite.errors import RecipeError
from spar_lite.evaluation.runner import Job, evaluate
from spar_lite.evaluation.target import Target
from spar_lite.evaluation.tasks.judge import Judging, builtin_cases
from spar_lite.evaluation.tasks.refine import Refining
from spar_lite.records import TrainingExample, stable_seed
from spar_lite.run import Run
from spar_lite.steps import training_progress
from spar_lite.store import StageFile, write_text
from spar_lite.warmup import in_order, refiner_rows, warmup_rows, warmup_tasks


def warmup_curve(
    run: Run, sizes: Sequence[int], unseen: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Train and score at each size; ``count`` held-out prompts for each set of kinds.

    Returns one dictionary a size: rows, seconds and tokens of training so far, and for "seen" and
    "unseen" the cards of ``eval judge`` and ``eval refine``.

    Raises:
        RecipeError: a kind is both seen and unseen, or there are fewer rows than the largest size.
    """
    seen = warmup_tasks(run.recipe).kinds
    if both := sorted(set(seen) & set(unseen)):
        raise RecipeError(f"--unseen: the warm-up teaches {', '.join(both)}; choose other kinds.")
    run.work(warmup_rows)
    rows = _rows(run)
    if sizes[-1] > len(rows):
        raise RecipeError(
            f"--rows {sizes[-1]}: the warm-up has {len(rows)} rows for the refiner. Raise "
            "bootstrap.prompts, bootstrap.k or bootstrap.minimal."
        )
    sets = {"seen": tuple(seen), "unseen": tuple(unseen)} if unseen else {"seen": tuple(seen)}
    points: list[dict[str, Any]] = []
    before = 0
    for size in sizes:
        folder = run.folder / "curve" / f"rows-{size:05d}"
        taught = _train(run, folder, size, rows[before:size], points)
        point: dict[str, Any] = {"rows": size, **taught}
        for name, kinds in sets.items():
            point[name] = _score(run, folder / name, kinds, count)
        points.append(point)
        before = size
    return points


def _rows(run: Run) -> list[TrainingExample]:
    """The refiner's rows in the order in which they are taught: shuffled, or the easy ones first.

    A judgement and its chat stay together, so that every prefix is balanced.
    """
    file: StageFile[TrainingExample] = StageFile(
        run.folder / "bootstrap", "examples", TrainingExample
    )
    rows = refiner_rows(file.load())
    lessons: dict[str, list[TrainingExample]] = {}
    for row in rows:
        lessons.setdefault(row.id.rpartition("/")[0], []).append(row)
    order = list(lessons.values())
    random.Random(stable_seed(run.recipe.seed, "curve")).shuffle(order)
    flat = [row for lesson in order for row in lesson]
    by_constraints = run.recipe.bootstrap.curriculum == "constraints"
    return [row for part in in_order(run, flat) for row in part] if by_constraints else flat


def _train(
    run: Run, folder: Path, size: int, rows: list[TrainingExample], before: list[dict[str, Any]]
) -> dict[str, float]:
    """Teach further rows to the refiner, or load what an earlier run of this command taught."""
    from spar_lite.train import train_on_examples

    noted = folder / "training.json"
    if noted.exists():
        if rows:
            run.policy.restore("refiner", folder / "refiner")
        found: dict[str, float] = json.loads(noted.read_text(encoding="utf-8"))
        return found
    total = {"seconds": 0.0, "tokens": 0.0}
    if before:
        total = {key: before[-1][key] for key in total}
    if rows:
        label = f"refiner, rows {size - len(rows) + 1} to {size}"
        begin = time.perf_counter()
        parts = in_order(run, rows)
        seed = stable_seed(run.recipe.seed, "curve", folder.name)
        settings = run.recipe.bootstrap.model_copy(update={"schedule": "constant_with_warmup"})
        step = training_progress(run.screen, label, [len(part) for part in parts], settings)
        for part in parts:
            report = train_on_examples(run.policy, "refiner", part, settings, seed, step)
            total["tokens"] += report.tokens
        total["seconds"] += round(time.perf_counter() - begin, 1)
        run.policy.save("refiner", folder / "refiner")
    write_text(noted, json.dumps(total))
    return total


def _score(run: Run, folder: Path, kinds: tuple[str, ...], count: int) -> dict[str, Any]:
    """Judge and refine cards of the refiner as it is now."""
    target = Target(f"{run.folder.name} {folder.parent.name} {folder.name}", run.recipe, folder)
    job = Job(target, folder, run.screen, run.open_engine, run.folder / "curve")
    cases = builtin_cases(job, count, kinds)
    judged = evaluate(job, Judging(cases, "constraints", {"kinds": list(kinds)}))
    return {"judge": judged, "refine": evaluate(job, Refining(count, kinds, "program"))}
