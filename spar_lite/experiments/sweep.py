"""A sweep: one recipe in cells that differ in a few keys, each run once for every seed.

A cell's runs are ordinary ones, in FOLDER/CELL/seed-N. What two of them have in common is done once
and copied (``Run.siblings``). With ``match`` the cells of a seed first play, then all learn from as
many pairs, or from as many generated tokens, as the poorest of them has.
"""

from __future__ import annotations

import gc
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationError

from spar_lite.ablations import Played, pairs_of
from spar_lite.data.evolve import check_prompts
from spar_lite.errors import RecipeError, SparError, did_you_mean
from spar_lite.evaluation.answer import by_id
from spar_lite.evaluation.compare import SAME, heldout_results
from spar_lite.evaluation.heldout import HELDOUT_POINTS, HeldoutResult
from spar_lite.evaluation.stats import Interval, Points, clustered_mean, share
from spar_lite.loop import execute, explore, self_play, summaries
from spar_lite.recipe import Recipe, Section, explain, load_recipe, read_yaml, recipe_slice
from spar_lite.records import stable_seed
from spar_lite.run import EngineFactory, Run, Screen, saved_recipe, standing

Changes = dict[str, Any]
SAFE = re.compile(r"[\w.=,+-]+")
UNLEARNT = ("heldout_answers", "heldout", "ifeval")
"""Steps whose tokens nobody learns from."""


class SweepFile(Section):
    """What a sweep file may say; the recipes themselves are strict."""

    model_config = ConfigDict(strict=False)

    base: str = Field(..., description="the recipe, a path beside this file")
    set: Changes = Field({}, description="recipe keys of every cell")
    grid: dict[str, Changes | tuple[Any, ...]] = Field(
        {}, description="keys and their values, with names or without; every combination is a cell"
    )
    cells: dict[str, Changes] = Field({}, description="or cells by name, each with its keys")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="a run of each cell for each")
    match: Literal["none", "pairs", "tokens"] = Field(
        "none", description="what all cells of a seed learn from as much of as the poorest has"
    )
    measure: str = Field("answers_that_count", description="a score of held-out answers")


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every recipe is valid: by cell, then by seed."""

    file: SweepFile
    recipes: Mapping[str, Mapping[int, Recipe]]
    folder: Path

    def place(self, cell: str, seed: int) -> Path:
        """The run folder of a cell for a seed."""
        return self.folder / cell / f"seed-{seed}"


def load_sweep(path: Path, folder: Path) -> Sweep:
    """Read a sweep file and the recipe of each cell.

    Raises:
        RecipeError: one line with the file, the cell and the key.
    """
    try:
        file = SweepFile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error, SweepFile)}") from None
    recipes: dict[str, dict[int, Recipe]] = {}
    for cell, own in _cells(file, path).items():
        keys = {**file.set, **own}
        if "seed" in keys:
            raise RecipeError(f"{path}: seeds says which; seed cannot be a key of a cell.")
        words = [f"{key}={json.dumps(value, default=str)}" for key, value in keys.items()]
        try:
            recipe = load_recipe(path.parent / Path(file.base).expanduser(), words)
        except RecipeError as error:
            raise RecipeError(f"{path}: cell {cell}: {error}") from None
        if not recipe.evaluate.prompts:
            raise RecipeError(f"{path}: cell {cell}: wanted evaluate.prompts above 0, found 0.")
        if file.match != "none" and not recipe.iterations:
            raise RecipeError(f"{path}: cell {cell}: match wants iterations, found 0.")
        recipes[cell] = {seed: recipe.model_copy(update={"seed": seed}) for seed in file.seeds}
    return Sweep(file, recipes, folder)


def _cells(file: SweepFile, path: Path) -> dict[str, Changes]:
    """Each cell's own keys by its name, which is a folder's."""
    if bool(file.grid) == bool(file.cells):
        raise RecipeError(f"{path}: wanted grid or cells, found {'both' if file.grid else 'none'}.")
    if file.measure not in HELDOUT_POINTS:
        near = did_you_mean(file.measure, HELDOUT_POINTS)
        known = ", ".join(HELDOUT_POINTS)
        raise RecipeError(f"{path}: measure: wanted {known}; found {file.measure}.{near}")
    cells, grid = file.cells, {}
    for key, values in file.grid.items():
        grid[key] = values if isinstance(values, dict) else {_word(v): v for v in values}
        if not values or len(grid[key]) < len(values):
            raise RecipeError(f"{path}: grid.{key}: wanted values that differ, found {values}.")
    if grid:
        last = [key.rpartition(".")[2] for key in grid]
        short = last if len(set(last)) == len(last) else list(grid)
        cells = {}
        for names in itertools.product(*grid.values()):
            cell = ",".join(f"{key}={name}" for key, name in zip(short, names, strict=True))
            cells[cell] = {key: grid[key][name] for key, name in zip(grid, names, strict=True)}
    if len(set(file.seeds)) < len(file.seeds):
        raise RecipeError(f"{path}: seeds: wanted each once, found {list(file.seeds)}.")
    for cell in cells:
        if not SAFE.fullmatch(cell) or not cell.strip("."):
            raise RecipeError(
                f"{path}: cells: wanted a name of letters and digits, found {cell!r}."
            )
    return cells


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    parts = value if isinstance(value, list | tuple) else [value]
    return re.sub(r"[^\w.+-]", "-", "+".join(str(part) for part in parts))


# --- Running --------------------------------------------------------------------------------------


Fault = dict[tuple[str, int], str]
"""Why a cell's run of a seed stopped, in one line."""


def run_sweep(sweep: Sweep, screen: Screen, make_engine: EngineFactory | None = None) -> Fault:
    """Do what is left of every run; one that fails stops no other.

    Raises:
        RecipeError: a cell's prompts are not there; said before the first run.
    """
    faults: Fault = {}

    def attempt(cell: str, seed: int, recipe: Recipe, work: Callable[[Run], Any]) -> Any:
        siblings = [sweep.place(other, seed) for other in sweep.recipes if other != cell]
        place = sweep.place(cell, seed)
        run = Run(recipe, place, screen, make_engine, siblings=siblings)
        screen.say(f"cell {cell}, seed {seed}")
        try:
            return work(run)
        except SparError as fault:
            faults[cell, seed] = str(fault)
            screen.say(f"cell {cell}, seed {seed} failed: {fault}")
        finally:
            gc.collect()  # its model, before the next one's is loaded

    seeds, match = sweep.file.seeds, sweep.file.match
    for cell, by_seed in sweep.recipes.items():
        try:
            check_prompts(Run(by_seed[seeds[0]], sweep.place(cell, seeds[0]), screen))
        except RecipeError as error:
            raise RecipeError(f"cell {cell}: {error}") from None
    for seed in seeds:
        recipes = {cell: by_seed[seed] for cell, by_seed in sweep.recipes.items()}
        if match != "none":
            count = partial(played, match=match)
            made = {cell: attempt(cell, seed, recipe, count) for cell, recipe in recipes.items()}
            least = min((n for n in made.values() if n), default=0)
            screen.say(f"seed {seed}: all learn from at most {least:,} {match} an iteration")
            recipes = {cell: _limited(recipes[cell], match, least) for cell, n in made.items() if n}
        for cell, recipe in recipes.items():
            attempt(cell, seed, recipe, execute)
    return faults


def played(run: Run, match: str) -> int:
    """Play iteration 1, as far as pairs are made of it: how many pairs, or tokens, there are.

    Raises:
        SparError: there are none, so nothing can be matched.
    """
    run.work(explore)
    found, recipe = self_play(run, 1), run.recipe
    if match == "tokens":
        count = Played(*found[:4]).tokens(found.others).total()
    else:
        seed = stable_seed(recipe.seed, "iteration-1")
        pairs = pairs_of(recipe, seed, found.within(recipe.iterate.tokens), found.others)
        count = sum(recipe.dpo.interfering or not pair.interferes for pair in pairs)
    if not count:
        raise SparError(
            f"{run.folder} makes no {match} in iteration 1, so no other cell can be matched with "
            "it. Raise prompts.count, or leave the cell out."
        )
    return count


def _limited(recipe: Recipe, match: str, most: int) -> Recipe:
    iterate = recipe.iterate.model_copy(update={match: most})
    return recipe.model_copy(update={"iterate": iterate})


# --- What came of it ------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """One run as far as it is; lists are by iteration, from the warm-up (or the base) on.

    ``held``: held-out results of what stands then; ``tokens``: generated so far to learn from;
    ``nodes``, ``trees``: of each iteration's search, the first one's at 1.
    """

    recipe: Recipe
    held: list[list[HeldoutResult]]
    tokens: list[int]
    nodes: dict[int, int]
    trees: dict[int, int]
    pairs: int

    @property
    def done(self) -> bool:
        return len(self.held) > self.recipe.iterations

    def points(self, measure: str, iteration: int = -1) -> Points:
        """A score by prompt, after an iteration or at the end."""
        return by_id(self.held[iteration], HELDOUT_POINTS[measure]) if self.held else {}


def outcomes(sweep: Sweep, faults: Fault) -> dict[str, list[Outcome]]:
    """Each cell's runs that have begun and did not fail."""
    return {
        cell: [
            _outcome(sweep.place(cell, seed))
            for seed in sweep.file.seeds
            if (cell, seed) not in faults and (sweep.place(cell, seed) / "recipe.yaml").exists()
        ]
        for cell in sweep.recipes
    }


def _outcome(folder: Path) -> Outcome:
    recipe = saved_recipe(folder)
    stages, results = summaries(recipe, folder), heldout_results(recipe, folder)
    found = Outcome(recipe, [], [], {}, {}, 0)
    for n in range(recipe.iterations + 1):
        own = f"iteration-{n}" if n else "bootstrap"
        stands = standing(recipe, folder, n)
        if stands not in results or (n and own not in results):
            break
        spent = sum(
            stage.get("completion_tokens", 0)
            for label, stage in stages.items()
            if label.startswith(f"{own}/") and label.rpartition("/")[2] not in UNLEARNT
        )
        spent = min(spent, recipe.iterate.tokens or spent) if n else spent
        pairs, trees = stages.get(f"{own}/pairs", {}), stages.get(f"{own}/trees", {})
        if n and trees.get("trees"):
            found.nodes[n], found.trees[n] = trees["nodes"], trees["trees"]
        left_out = 0 if recipe.dpo.interfering else pairs.get("interfering", 0)
        found.held.append(results[stands])
        found.tokens.append(spent + (found.tokens[-1] if n else 0))
        found = found._replace(pairs=found.pairs + (pairs.get("pairs", 0) - left_out if n else 0))
    return found


def pooled(every: Sequence[Points]) -> Interval:
    """The mean over runs and prompts; a prompt's values of all runs are drawn together."""
    ids = dict.fromkeys(id for points in every for id in points)
    clusters = [[points[id] for points in every if id in points] for id in ids]
    if all(len(values) == 1 and values[0] in (0, 1) for values in clusters):
        return share(bool(values[0]) for values in clusters)
    return clustered_mean(clusters, 0)


def paired(first: Sequence[Outcome], others: Sequence[Outcome], measure: str) -> Interval:
    """How much a cell gains on the first one, over the seeds and prompts that both have."""
    gains: dict[str, list[float]] = {}
    for a, b in itertools.product(first, others):
        prompts = [recipe_slice(outcome.recipe, SAME) for outcome in (a, b)]
        if a.recipe.seed == b.recipe.seed and prompts[0] == prompts[1] and a.done and b.done:
            before, after = a.points(measure), b.points(measure)
            for id in before.keys() & after.keys():
                gains.setdefault(id, []).append(after[id] - before[id])
    return clustered_mean([gains[id] for id in sorted(gains)], 0)
