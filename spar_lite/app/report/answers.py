"""Held-out answers side by side over a run's checkpoints: what to read before believing a score.

Which prompts are shown is a rule and no choice: the first of each kind of constraint in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from spar_lite.errors import StoreError
from spar_lite.evaluation.changes import heldout_results
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.scoring import heldout
from spar_lite.recipe import Recipe
from spar_lite.records import Prompt


def first_of_each_kind(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """``count`` prompts: the first of each kind of (first) constraint, then the second, ..."""
    kinds: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.constraints[0]["kind"], []).append(prompt)
    rounds = itertools.zip_longest(*kinds.values())
    return [p for turn in rounds for p in turn if p is not None][:count]


def answer_lines(recipe: Recipe, folder: Path, count: int) -> Iterator[str]:
    """Each prompt, then what every scored checkpoint answers and whether it counts.

    Raises:
        StoreError: the run has no held-out score yet.
    """
    scored = heldout_results(recipe, folder)
    if not scored:
        raise StoreError(f"{folder} has no held-out answers yet. See: spar-lite status {folder}")
    found = {name: {r.id: r for r in results} for name, results in scored.items()}
    for prompt in first_of_each_kind(heldout(recipe), count):
        yield f"{prompt.id}: {prompt.text}"
        for name, results in found.items():
            result = results[prompt.id]
            shown = {"bootstrap": "warm-up"}.get(name, name)
            yield f"  {shown} ({verdict(result)}): {' '.join(result.answer.split())}"
        yield ""


def verdict(result: HeldoutResult) -> str:
    """Whether an answer counts, in words."""
    faults = [*result.faults, *([] if result.finished else ["cut off"])]
    if result.counts:
        return "counts"
    met = "met, but " if all(result.checks) else "not met" + (", " if faults else "")
    return met + ", ".join(dict.fromkeys(faults))
