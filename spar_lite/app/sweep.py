"""The sweep command: cells of a recipe side by side, as one table and one figure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from spar_lite.app.console import locked, make_console, make_screen, print_alarms, print_plain
from spar_lite.app.plan import Range, in_time, plan_machine, planned
from spar_lite.app.tables import PLAIN, cell, label, make_table
from spar_lite.errors import SparError
from spar_lite.evaluation.stats import mean
from spar_lite.experiments.figures import Line, Panel, draw
from spar_lite.experiments.sweep import (
    Outcome,
    Sweep,
    load_sweep,
    outcomes,
    paired,
    pooled,
    run_sweep,
)
from spar_lite.loop import spar
from spar_lite.recipe import Recipe, recipe_slice
from spar_lite.run import Run, Screen
from spar_lite.steps import input_files
from spar_lite.store import json_text

REVIEW = ("judge_agreement", "truly_mended")
Outcomes = Mapping[str, Sequence[Outcome]]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of this sweep.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what it takes, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
def sweep_command(file: Path, folder: Path | None, only_plan: bool, as_json: bool) -> None:
    """Run a recipe in cells that differ in a few keys, and compare them.

    Every run is a folder of its own, CELL/seed-N; what two of them have in common is done once. The
    same command goes on where it stopped. Exits with 1 if a cell failed; the others are done all
    the same. FILE is YAML:

    \b
    base: RECIPE              a path beside FILE
    set: {KEY: VALUE}         for all cells
    grid: {KEY: [VALUES]}     every combination is a cell; {NAME: VALUE} names them
    cells: {NAME: {KEY: VALUE}}   instead of grid
    seeds: [0, 1, 2]          each cell is run for each
    match: none | pairs | tokens
    measure: answers_that_count, judge_agreement, truly_mended, on_topic ...

    match: the least that a cell of a seed makes in iteration 1 (pairs, or generated tokens) is what
    all of that seed learn from, in that iteration and in every later one.
    """
    sweep = load_sweep(file, folder or Path("runs") / file.stem)
    console = make_console()
    if only_plan:
        console.print(plan_table(sweep))
        return
    screen = make_screen(make_console(stderr=as_json))
    with contextlib.closing(screen), locked(sweep.folder):
        faults = run_sweep(sweep, screen)
        found = outcomes(sweep, faults)
        written = _draw(sweep, found, screen)
    rows = sweep_rows(sweep, found)
    said = {f"{name}, seed {seed}": [fault] for (name, seed), fault in faults.items()}
    if as_json:
        click.echo(json_text({"cells": rows, "failed": said, "figures": written}, indent=1))
    else:
        console.print(sweep_table(sweep, rows))
        print_alarms(console, said)
        for path in written:
            print_plain(console, path)
    if faults:
        raise SystemExit(1)


def sweep_rows(sweep: Sweep, found: Outcomes) -> list[dict[str, Any]]:
    """One dictionary a cell: its figures over all finished seeds."""
    measure, rows = sweep.file.measure, []
    first = found[next(iter(found))]
    for number, (name, runs) in enumerate(found.items()):
        done = [run for run in runs if run.done]
        scores = dict.fromkeys([measure, *REVIEW])
        rows.append(
            {
                "cell": name,
                "seeds": len(done),
                "pairs": sum(run.pairs for run in done),
                "tokens": sum(run.tokens[-1] for run in done),
                "scores": {key: asdict(pooled([r.points(key) for r in done])) for key in scores},
                "difference": asdict(paired(first, done, measure)) if number else None,
            }
        )
    return rows


def sweep_table(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a cell; the review's scores where a cell has any."""
    measure, seeds = sweep.file.measure, len(sweep.file.seeds)
    review = [k for k in REVIEW if k != measure and any(r["scores"][k]["n"] for r in rows)]
    columns = ("cell", "seeds done", "pairs", "tokens", label(measure), "against the first")
    table = make_table(
        f"{sweep.folder.name}: held-out prompts at the end [95 % interval]",
        *columns,
        *map(label, review),
        caption="Pairs trained on and generated tokens learnt from, of all seeds. Intervals are "
        "over prompts, for these seeds; n counts prompts.",
    )
    for row in rows:
        difference = row["difference"]
        table.add_row(
            escape(row["cell"]),
            f"{row['seeds']} of {seeds}",
            cell(row["pairs"]),
            cell(row["tokens"]),
            cell(row["scores"][measure], measure),
            cell(difference, measure) if difference else "",
            *(cell(row["scores"][key], key) for key in review),
        )
    return table


# --- The figure -----------------------------------------------------------------------------------


def _draw(sweep: Sweep, found: Outcomes, screen: Screen) -> list[str]:
    """The figure's files; none where matplotlib is not there, which is said."""
    measure, seeds = sweep.file.measure, ", ".join(map(str, sweep.file.seeds))
    n = max((len(run.points(measure)) for runs in found.values() for run in runs), default=0)
    caption = (
        f"{sweep.folder.name}: {n} held-out prompts, seeds {seeds}. "
        "Bands are 95 % intervals over prompts, for these seeds. At 0 stands the warm-up; later, "
        "what the run goes on with. Tokens: generated and learnt from, a run's mean."
    )
    panels = over_values(sweep, found) or over_iterations(sweep, found)
    try:
        return [str(path) for path in draw(sweep.folder / "figure", panels, caption)]
    except SparError as error:
        screen.say(str(error))
        return []


def over_iterations(sweep: Sweep, found: Outcomes) -> list[Panel]:
    """The measure over iterations and over tokens, and the search's nodes."""
    measure = sweep.file.measure
    scores, spent, nodes = [], [], []
    for name, runs in found.items():
        upto = range(min((len(run.held) for run in runs), default=0))
        scores.append(
            _line(name, upto, [[r.points(measure, n) for r in runs] for n in upto], measure)
        )
        spent.append(scores[-1]._replace(x=[mean([run.tokens[n] for run in runs]) for n in upto]))
        known = [n for n in upto if any(n in run.trees for run in runs)]
        grown = [
            sum(r.nodes.get(n, 0) for r in runs) / sum(r.trees.get(n, 0) for r in runs)
            for n in known
        ]
        nodes.append(Line(name, known, grown))
    title = label(measure)
    return [
        Panel("Over iterations", "iteration", title, scores),
        Panel("Over tokens", "generated tokens", title, spent),
        Panel("Search", "iteration", "nodes per tree", nodes),
    ]


def over_values(sweep: Sweep, found: Outcomes) -> list[Panel]:
    """Of warm-ups alone that differ in a number: the scores over it, a line for each other key."""
    key, values = next(iter(sweep.file.grid.items()), ("", ()))
    numbers = not isinstance(values, dict) and {type(value) for value in values} <= {int, float}
    if not key or not numbers or any(r.recipe.iterations for runs in found.values() for r in runs):
        return []
    panels = []
    for measure in dict.fromkeys([sweep.file.measure, *REVIEW]):
        points: dict[str, dict[float, Any]] = {}
        for name, runs in found.items():  # such as "examples=50,kinds=seen"
            first, _, others = name.partition(",")
            x = float(first.rpartition("=")[2])
            points.setdefault(others, {})[x] = [run.points(measure) for run in runs]
        lines = [
            _line(name, sorted(of), [of[x] for x in sorted(of)], measure)
            for name, of in points.items()
        ]
        panels.append(Panel(label(measure), key, "", lines))
    return panels


def _line(name: str, x: Sequence[float], every: Sequence[Any], measure: str) -> Line:
    scale = 1 if measure in PLAIN else 100
    found = [pooled(points) for points in every]
    y, low, high = ([scale * getattr(i, key) for i in found] for key in ("value", "low", "high"))
    return Line(name, x, y, low, high)


# --- The plan -------------------------------------------------------------------------------------


def plan_table(sweep: Sweep) -> Table:
    """What each cell takes that no cell before it has done already, for all seeds."""
    seeds = sweep.file.seeds
    recipes = {name: by_seed[seeds[0]] for name, by_seed in sweep.recipes.items()}
    shared, every = shared_steps(sweep, recipes), [Range(0, 0)] * 3
    columns = ("cell", "shared steps", "requests", "tokens", "time")
    table = make_table(f"{sweep.folder.name} on this processor", *columns)
    for name, recipe in recipes.items():
        stages = planned(recipe, plan_machine(recipe, "cpu"))
        left = [stage for stage in stages if stage.label not in shared[name]]
        sums = [
            reduce(Range.plus, (getattr(stage, what) for stage in left), Range(0, 0))
            for what in ("requests", "tokens", "seconds")
        ]
        sums = [total.times(len(seeds)) for total in sums]
        every = [a.plus(b) for a, b in zip(every, sums, strict=True)]
        table.add_row(escape(name), str(len(shared[name])), *_cells(sums))
    table.add_section()
    table.add_row(f"all, for {len(seeds)} seed{'s' * (len(seeds) > 1)}", "", *_cells(every))
    return table


def _cells(sums: Sequence[Range]) -> list[str]:
    return [*(f"{low:,.0f} to {high:,.0f}" for low, high in sums[:2]), in_time(sums[2])]


def shared_steps(sweep: Sweep, recipes: Mapping[str, Recipe]) -> dict[str, set[str]]:
    """By cell, the steps that a cell before it does alike, as far as recipes tell."""
    known: set[int] = set()
    shared: dict[str, set[str]] = {}
    for name, recipe in recipes.items():
        run = Run(recipe, sweep.place(name, recipe.seed), Screen())
        made: dict[str, int] = {}
        for step in run.steps(spar, lenient=True):
            files = [
                name.removesuffix("/adapter_model.safetensors").removesuffix(".jsonl")
                for name in input_files(run.folder, step.inputs)
            ]
            values = json_text(recipe_slice(recipe, step.keys))
            made[step.label] = hash((step.label, values, *(made.get(f, f) for f in files)))
        shared[name] = {label for label, identity in made.items() if identity in known}
        known |= set(made.values())
    return shared
