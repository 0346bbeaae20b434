"""Runs side by side: scores with intervals, costs, and differences on the same prompts.

Reads finished files alone. Differences are paired by prompt id: bootstrap over prompts for the
mean, McNemar's exact test where every score is 0 or 1; prompts that only one side has are left out
and counted. Knows files of runs; no model, no screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spar_lite.errors import StoreError, did_you_mean
from spar_lite.evaluate import HeldoutResult, scorecards, share, summarise
from spar_lite.pipeline import summaries
from spar_lite.recipe import Recipe, load_recipe, recipe_slice
from spar_lite.statistics import distinguishable, mcnemar, paired_difference
from spar_lite.store import Marker, StageFile, read_lines

HELDOUT = "held-out constraints"
SAME = ("seed", "prompts.kinds", "prompts.per_prompt")
"""Recipe keys that decide the held-out prompts; their ids are the same in every run."""

IDENTITY: dict[str, tuple[str, ...]] = {
    "ifeval": ("texts",),
    "constraints": ("seed", "kinds"),
    "judge": ("texts",),
    "refine": ("seed", "kinds", "model"),
}
"""Settings of an evaluation that decide its cases; those of ``refine`` are the base's answers."""

Points = Mapping[str, float]


@dataclass(frozen=True)
class Side:
    """One checkpoint of one run.

    ``points``: score by prompt id, for every evaluation it has. ``prompts``: what decides which
    prompt an id stands for; only where two sides agree in it are they compared prompt by prompt.
    """

    name: str
    recipe: Recipe
    stages: Mapping[str, Mapping[str, Any]]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    points: dict[str, Points] = field(default_factory=dict)
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_side(word: str) -> Side:
    """Read RUN (its last finished checkpoint) or RUN:CHECKPOINT.

    Raises:
        StoreError: no run there, or no such checkpoint.
    """
    folder, checkpoint = Path(word), ""
    if not folder.is_dir() and ":" in word:
        before, _, checkpoint = word.rpartition(":")
        folder = Path(before)
    if not (folder / "recipe.yaml").is_file():
        raise StoreError(f"{folder} holds no recipe.yaml, so it is not a run folder.")
    recipe = load_recipe(folder / "recipe.yaml")
    stages = summaries(recipe, folder)
    known = _checkpoints(folder, stages)
    if not known:
        raise StoreError(f"{folder} has no scores yet. See: spar-lite status {folder}")
    checkpoint = checkpoint or known[-1]
    if checkpoint not in known:
        hint = did_you_mean(checkpoint, known)
        raise StoreError(
            f"{folder} has no scores of {checkpoint}, but of {', '.join(known)}.{hint}"
        )
    side = Side(f"{folder.name}:{checkpoint}", recipe, _until(stages, checkpoint))
    if Marker(folder / checkpoint, "heldout").read() is not None:
        results = StageFile(folder / checkpoint, "heldout", HeldoutResult).load()
        found = summarise(results, recipe.seed)
        side.scores[HELDOUT] = {name: asdict(score) for name, score in found.items()}
        side.points[HELDOUT] = {r.id: share(r.checks) for r in results}
        side.prompts[HELDOUT] = recipe_slice(recipe, SAME)
    for name, card in scorecards(folder / "eval"):
        place, _, task = name.partition("/")
        if place == checkpoint:
            side.scores[task] = card["scores"]
            lines = read_lines(folder / "eval" / place / card["results_file"])
            side.points[task] = {line["id"]: line["score"] for line in lines}
            settings = card["settings"]
            keys = IDENTITY.get(card["task"], ())
            side.prompts[task] = {key: settings[key] for key in keys if key in settings}
    return side


def compare(sides: Sequence[Side]) -> dict[str, Any]:
    """Every side's figures, and each later side's difference to the first."""
    return {
        "runs": [_figures(side) for side in sides],
        "differences": [found for side in sides[1:] for found in _differences(sides[0], side)],
    }


def _checkpoints(folder: Path, stages: Mapping[str, Any]) -> list[str]:
    """Names that have a finished held-out score or evaluation, in the order of the run."""
    names = [label.partition("/")[0] for label in stages if label.endswith("/heldout")]
    evaluated = {name.partition("/")[0] for name, _ in scorecards(folder / "eval")}
    order = ["base", "bootstrap", *(label.partition("/")[0] for label in stages)]
    return [n for n in dict.fromkeys(order) if n in names or n in evaluated]


def _until(stages: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """The stages up to a checkpoint's last one."""
    own = [n for n, label in enumerate(stages) if label.startswith(f"{checkpoint}/")]
    return dict(list(stages.items())[: max(own, default=-1) + 1])


def _figures(side: Side) -> dict[str, Any]:
    def total(key: str) -> int:
        return sum(stage.get(key, 0) for stage in side.stages.values())

    def count(name: str, key: str) -> int:
        return sum(s.get(key, 0) for label, s in side.stages.items() if label.endswith(f"/{name}"))

    on_gpu = any(stage.get("device") == "cuda" for stage in side.stages.values())
    return {
        "name": side.name,
        "scores": side.scores,
        "prompts": count("prompts", "prompts"),
        "trees": count("trees", "trees"),
        "preference_pairs": count("pairs", "pairs"),
        "tokens_in": total("prompt_tokens"),
        "tokens_out": total("completion_tokens"),
        "gpu_seconds" if on_gpu else "seconds": round(sum(_seconds(side)), 1),
        "peak_memory_bytes": max(
            (stage.get("peak_memory_bytes", 0) for stage in side.stages.values()), default=0
        ),
        "judged_by": "itself" if side.recipe.judge.mode == "llm" else side.recipe.judge.mode,
    }


def _seconds(side: Side) -> list[float]:
    return [float(stage.get("seconds", 0)) for stage in side.stages.values()]


def _differences(first: Side, other: Side) -> list[dict[str, Any]]:
    found = []
    for task, before in first.points.items():
        after = other.points.get(task)
        if after is None or first.prompts[task] != other.prompts[task]:
            continue
        ids = [id for id in before if id in after]
        difference = paired_difference(
            [before[id] for id in ids], [after[id] for id in ids], first.recipe.seed
        )
        pairs = [(before[id], after[id]) for id in ids]
        # Few 0/1 pairs that differ make a bootstrap interval too narrow; the exact test decides.
        binary = all(value in (0, 1) for pair in pairs for value in pair)
        p = mcnemar([(a == 1, b == 1) for a, b in pairs]) if binary else None
        clear = distinguishable(difference) if p is None else p < 0.05
        found.append(
            {
                "task": task,
                "from": first.name,
                "to": other.name,
                "difference": asdict(difference),
                "mcnemar_p": p,
                "distinguishable": clear,
                "left_out": len(before.keys() ^ after.keys()),
            }
        )
    return found
