"""What a run's scores say of its checkpoints: each against the one that it started from.

Reads finished files alone; the same prompts are compared, and what got worse is said in words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from spar_lite.evaluation.alarms import alarms
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.scorecard import points
from spar_lite.evaluation.scoring import IFEVAL_FILES
from spar_lite.evaluation.stats import paired_change
from spar_lite.recipe import Recipe
from spar_lite.run import Summary, standing, start_folder
from spar_lite.store import Marker, StageFile

COUNTS, IFEVAL = "answers that count", "IFEval prompts met"

Points = Mapping[str, float]
"""Score by prompt id."""


def differences(recipe: Recipe, folder: Path) -> list[Summary]:
    """How the scores of record changed; each has task, from, to, and what ``difference`` gives.

    Held-out answers that count: of each checkpoint against the one it started from, of what the run
    ends with against the warm-up and the base. IFEval prompts met: of all that were scored.
    """
    held = heldout_results(recipe, folder)
    found: dict[str, dict[str, Points]] = {
        COUNTS: {name: counts(results) for name, results in held.items()},
        IFEVAL: _ifeval(recipe, folder),
    }
    steps = {
        COUNTS: _steps(recipe, folder, list(held), [start_folder(recipe), "base"]),
        IFEVAL: list(itertools.combinations(found[IFEVAL], 2)),
    }
    return [
        {"task": task, "from": a, "to": b, **difference(scored[a], scored[b], recipe.seed)}
        for task, scored in found.items()
        for a, b in steps[task]
    ]


def run_alarms(recipe: Recipe, folder: Path) -> dict[str, list[str]]:
    """What got worse, by "FROM → TO", where anything did.

    Each checkpoint against the one it started from, and what the run ends with against the warm-up.
    """
    held = heldout_results(recipe, folder)
    steps = _steps(recipe, folder, list(held), [start_folder(recipe)])
    found = {f"{a} → {b}": alarms(held[a], held[b], recipe.seed) for a, b in steps}
    return {step: said for step, said in found.items() if said}


def counts(results: Sequence[HeldoutResult]) -> Points:
    """1 for an answer that counts, else 0."""
    return {r.id: float(r.counts) for r in results}


def difference(before: Points, after: Points, seed: int) -> Summary:
    """The change over the prompts that both have; ``left_out``: how many only one of them has."""
    ids = [id for id in before if id in after]
    change = paired_change([before[id] for id in ids], [after[id] for id in ids], seed)
    return {
        "difference": asdict(change.difference),
        "mcnemar_p": change.p,
        "distinguishable": change.clear,
        "left_out": len(before.keys() ^ after.keys()),
    }


def _names(recipe: Recipe) -> list[str]:
    """All checkpoints that a run may have, in order."""
    return ["base", "bootstrap", *(f"iteration-{n}" for n in range(1, recipe.iterations + 1))]


def heldout_results(recipe: Recipe, folder: Path) -> dict[str, list[HeldoutResult]]:
    """The finished held-out results by checkpoint."""
    done = [name for name in _names(recipe) if Marker(folder / name, "heldout").read() is not None]
    return {name: StageFile(folder / name, "heldout", HeldoutResult).load() for name in done}


def _ifeval(recipe: Recipe, folder: Path) -> dict[str, Points]:
    """Prompts met, strictly, by checkpoint that the run scored."""
    found: dict[str, Points] = {}
    for name in _names(recipe):
        mark = Marker(folder / name, "ifeval").read()
        place = mark["checkpoint"] if mark else ""
        card = Marker(folder / "eval" / place, IFEVAL_FILES).read() if place else None
        if card is not None:
            found[place] = points(folder / "eval", place, card)
    return found


def _steps(
    recipe: Recipe, folder: Path, done: list[str], starts: list[str]
) -> list[tuple[str, str]]:
    """From where each checkpoint started to it, and from ``starts`` to what the run ends with."""
    steps = []
    for name in done:
        number = int(name[10:]) if name.startswith("iteration-") else 0
        steps.append((standing(recipe, folder, number - 1) if number else "base", name))
        end = standing(recipe, folder, number) if number else name
    steps += [(start, end) for start in starts if done]
    return [(a, b) for a, b in dict.fromkeys(steps) if a in done and b in done and a != b]
