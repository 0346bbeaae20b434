"""The curve command: how judging and mending grow with the rows that the refiner was taught.

One refiner is trained on more and more of the rows and scored at each size, on held-out topics with
kinds of constraints that the rows teach (seen) and others (unseen). Every size keeps its adapter
and its results; the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from spar_lite.app.console import locked, make_console, make_screen
from spar_lite.app.tables import cell, make_table
from spar_lite.errors import RecipeError
from spar_lite.evaluation.runner import Job, evaluate, kinds_named
from spar_lite.evaluation.target import Target
from spar_lite.evaluation.tasks.judge import Judging, minimal_pairs
from spar_lite.evaluation.tasks.refine import Refining
from spar_lite.lessons import refiner_rows
from spar_lite.recipe import load_recipe
from spar_lite.records import TrainingExample, stable_seed
from spar_lite.run import Run
from spar_lite.steps import training_progress
from spar_lite.store import StageFile, json_text, write_text
from spar_lite.warmup import in_order, warmup_rows, warmup_tasks

COLUMNS = {
    "judge right, %": ("judge", "accuracy"),
    "votes unreadable, %": ("judge", "unreadable_votes"),
    "truly mended, %": ("refine", "truly_mended"),
    "believed mended, %": ("refine", "believed_mended"),
}


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this curve.")
@click.option("--rows", default="0,50,100,200", show_default=True, help="Sizes, with commas.")
@click.option("--unseen", default="", help="Constraint kinds that the warm-up does not teach.")
@click.option("--count", default=60, show_default=True, help="Held-out prompts for each set.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def curve_command(
    recipe: Path,
    folder: Path | None,
    rows: str,
    unseen: str,
    count: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Score a refiner as its warm-up grows.

    It is taught more and more of RECIPE's warm-up and judges and mends at each size, on held-out
    topics, for the kinds of constraints that the rows teach and for --unseen ones. The same command
    goes on where it stopped.
    """
    settings = load_recipe(recipe, overrides)
    folder = folder or Path("runs") / f"{recipe.stem}-curve"
    words = [word.strip() for word in rows.split(",") if word.strip()]
    if not words or not all(word.isdigit() for word in words):
        raise RecipeError(f"--rows wants numbers with commas, such as 0,50,100; found {rows!r}.")
    sizes, kinds = sorted({int(word) for word in words}), kinds_named(unseen, "--unseen")
    screen = make_screen(make_console(stderr=as_json))
    with contextlib.closing(screen), locked(folder):
        points = warmup_curve(Run(settings, folder, screen), sizes, kinds, count)
    if as_json:
        click.echo(json_text(points, indent=1))
    else:
        make_console().print(curve_table(points))


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
    sets = {"seen": list(seen), "unseen": list(unseen)} if unseen else {"seen": list(seen)}
    points: list[dict[str, Any]] = []
    total, before = {"seconds": 0.0, "tokens": 0.0}, 0
    for size in sizes:
        folder = run.folder / "curve" / f"rows-{size:05d}"
        total = _teach(run, folder, size, rows[before:size], total)
        point: dict[str, Any] = {"rows": size, **total}
        for name, kinds in sets.items():
            place = folder / name
            target = Target(f"{run.folder.name} {folder.name} {name}", run.recipe, place)
            job = Job(target, place, run.screen, run.open_engine, run.folder / "curve")
            cases = minimal_pairs(job.base_answers(count, kinds), job.seed)
            judged = evaluate(job, Judging(cases, "constraints", kinds=kinds))
            refined = evaluate(job, Refining(count, tuple(kinds), "program"))
            point[name] = {"judge": judged, "refine": refined}
        points.append(point)
        before = size
    return points


def _rows(run: Run) -> list[TrainingExample]:
    """The refiner's rows in the order in which they are taught: shuffled.

    A judgement and its chat stay together, so that every prefix is balanced.
    """
    examples = StageFile(run.folder / "bootstrap", "examples", TrainingExample).load()
    lessons: dict[str, list[TrainingExample]] = {}
    for row in refiner_rows(examples):
        lessons.setdefault(row.id.rpartition("/")[0], []).append(row)
    order = list(lessons.values())
    random.Random(stable_seed(run.recipe.seed, "curve")).shuffle(order)
    return [row for lesson in order for row in lesson]


def _teach(
    run: Run, folder: Path, size: int, rows: list[TrainingExample], total: Mapping[str, float]
) -> dict[str, float]:
    """Teach further rows to the refiner, or load what an earlier run of this command taught.

    ``total``: seconds and tokens so far; returns them with those of these rows.
    """
    from spar_lite.train import train_on_examples

    noted = folder / "training.json"
    if noted.exists():
        if rows:
            run.policy.restore("refiner", folder / "refiner")
        found: dict[str, float] = json.loads(noted.read_text(encoding="utf-8"))
        return found
    total = dict(total)
    if rows:
        label = f"refiner, rows {size - len(rows) + 1} to {size}"
        begin = time.perf_counter()
        parts = in_order(run, rows)
        seed = stable_seed(run.recipe.seed, "curve", folder.name)
        settings = run.recipe.bootstrap.model_copy(update={"schedule": "constant_with_warmup"})
        step = training_progress(run.screen, label, [len(part) for part in parts], settings)
        for part in parts:
            report = train_on_examples(
                run.policy, "refiner", part, settings, seed, step, run.screen.say
            )
            total["tokens"] += report.tokens
        total["seconds"] += round(time.perf_counter() - begin, 1)
        run.policy.save("refiner", folder / "refiner")
    write_text(noted, json.dumps(total))
    return total


def curve_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """One line a size and set of kinds."""
    table = make_table(
        "Warm-up: rows taught against judging and mending [95 % interval]",
        *("rows", "seconds", "kinds", *COLUMNS),
        left=0,
        caption="Half of the judge's cases are Yes, so 50 % is what a constant judge gets.",
    )
    for point in points:
        for name in ("seen", "unseen"):
            if name in point:
                scores = [point[name][card]["scores"][key] for card, key in COLUMNS.values()]
                figures = (str(point["rows"]), f"{point['seconds']:.0f}", name)
                table.add_row(*figures, *map(cell, scores))
    return table
