"""Runs side by side: scores with intervals, costs, and differences on the same prompts.

Reads finished files alone. Differences are paired by prompt id: bootstrap over prompts for the
mean, McNemar's exact test where every score is 0 or 1; prompts that only one side has are left out
and counted. What got worse is said in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spar_lite.errors import StoreError, did_you_mean
from spar_lite.evaluation.alarms import alarms
from spar_lite.evaluation.changes import Points, counts, difference
from spar_lite.evaluation.heldout import HeldoutResult, summarise
from spar_lite.evaluation.scorecard import points, scorecards
from spar_lite.evaluation.stats import clustered_mean, distinguishable
from spar_lite.loop import summaries
from spar_lite.recipe import Recipe, load_recipe, recipe_slice
from spar_lite.run import last_checkpoint
from spar_lite.store import Marker, StageFile

HELDOUT = "held-out answers"
SAME = ("prompts.kinds", "prompts.per_prompt")
"""Recipe keys that decide the held-out prompts, whatever the seed."""

IDENTITY: dict[str, tuple[str, ...]] = {
    "ifeval": ("texts",),
    "constraints": ("texts",),
    "judge": ("texts",),
    "refine": ("texts", "model", "quantization", "answer_tokens"),
}
"""Settings of an evaluation that decide its cases; those of ``refine`` are the base's answers."""


@dataclass(frozen=True)
class Side:
    """One checkpoint of one run.

    ``points``: score by prompt id, for every evaluation it has. ``prompts``: what decides which
    prompt an id stands for; only where two sides agree in it are they compared prompt by prompt.
    ``heldout``: the held-out results themselves, for what else they say.
    """

    name: str
    recipe: Recipe
    stages: Mapping[str, Mapping[str, Any]]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    points: dict[str, Points] = field(default_factory=dict)
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    heldout: list[HeldoutResult] = field(default_factory=list)


def read_side(word: str) -> Side:
    """Read RUN (the checkpoint that it ends with, as far as it is) or RUN:CHECKPOINT.

    Raises:
        StoreError: no run there, no such checkpoint, or files of another version.
    """
    return _read_side(*_split(word))


def read_from(word: str, start: str) -> tuple[Side, Side]:
    """Read a run's checkpoint ``start``, then what ``read_side`` reads."""
    folder, checkpoint = _split(word)
    return _read_side(folder, start), _read_side(folder, checkpoint)


def _split(word: str) -> tuple[Path, str]:
    if not Path(word).is_dir() and ":" in word:
        before, _, checkpoint = word.rpartition(":")
        return Path(before), checkpoint
    return Path(word), ""


def _read_side(folder: Path, checkpoint: str) -> Side:
    if not (folder / "recipe.yaml").is_file():
        raise StoreError(f"{folder} holds no recipe.yaml, so it is not a run folder.")
    recipe = load_recipe(folder / "recipe.yaml")
    stages = summaries(recipe, folder)
    known = _checkpoints(folder, stages)
    if not known:
        raise StoreError(f"{folder} has no scores yet. See: spar-lite status {folder}")
    checkpoint = checkpoint or last_checkpoint(recipe, folder, known)
    if checkpoint not in known:
        hint = did_you_mean(checkpoint, known)
        raise StoreError(
            f"{folder} has no scores of {checkpoint}, but of {', '.join(known)}.{hint}"
        )
    side = Side(f"{folder.name}:{checkpoint}", recipe, _until(stages, checkpoint))
    if Marker(folder / checkpoint, "heldout").read() is not None:
        results = StageFile(folder / checkpoint, "heldout", HeldoutResult).load()
        found = summarise(results, recipe.seed)
        side.heldout.extend(results)
        side.scores[HELDOUT] = {name: asdict(score) for name, score in found.items()}
        side.points[HELDOUT] = counts(results)
        side.prompts[HELDOUT] = recipe_slice(recipe, SAME)
    for name, card in scorecards(folder / "eval"):
        place, _, task = name.partition("/")
        if place == checkpoint:
            side.scores[task] = card["scores"]
            settings, keys = card["settings"], IDENTITY.get(card["task"], ())
            if all(key in settings for key in keys):  # else another version made it
                side.points[task] = points(folder / "eval", place, card)
                side.prompts[task] = {key: settings[key] for key in keys}
    return side


def compare(sides: Sequence[Side]) -> dict[str, Any]:
    """Every side's figures, each later side's differences to the first, and what got worse."""
    return _found(sides, [(sides[0], side) for side in sides[1:]])


def pool(pairs: Sequence[tuple[Side, Side]]) -> dict[str, Any]:
    """Runs of several seeds, each from one of its checkpoints to another, and all of them as one.

    Pooled is the mean over runs and prompts. A prompt that all runs answered is one case, so its
    differences are drawn together; the interval is over prompts, for these runs.
    """
    sides = [side for pair in pairs for side in pair]
    pooled = []
    for task in sides[0].points:
        if not all(_same(sides[0], side, task) for side in sides):
            continue
        ids = [id for id in sides[0].points[task] if all(id in s.points[task] for s in sides)]
        changes = [[b.points[task][id] - a.points[task][id] for a, b in pairs] for id in ids]
        interval = clustered_mean(changes, sides[0].recipe.seed)
        pooled.append(
            {
                "task": task,
                "from": _places(a for a, _ in pairs),
                "to": _places(b for _, b in pairs),
                "runs": len(pairs),
                "difference": asdict(interval),
                "distinguishable": interval.n > 1 and distinguishable(interval),
                "left_out": len({id for s in sides for id in s.points[task]}) - len(ids),
            }
        )
    return {**_found(sides, pairs), "pooled": pooled}


def _found(sides: Sequence[Side], pairs: Sequence[tuple[Side, Side]]) -> dict[str, Any]:
    return {
        "runs": [_figures(side) for side in sides],
        "differences": [found for a, b in pairs for found in _differences(a, b)],
        "alarms": [
            {"from": a.name, "to": b.name, "said": said}
            for a, b in pairs
            if _same(a, b, HELDOUT) and (said := alarms(a.heldout, b.heldout, a.recipe.seed))
        ],
    }


def _places(sides: Iterable[Side]) -> str:
    """The checkpoints' names, "iteration-2 or iteration-3" where they differ."""
    return " or ".join(dict.fromkeys(side.name.rpartition(":")[2] for side in sides))


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


def _same(one: Side, other: Side, task: str) -> bool:
    """Whether both have this evaluation, of the same prompts."""
    both = task in one.points and task in other.points
    return both and one.prompts[task] == other.prompts[task]


def _differences(first: Side, other: Side) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "from": first.name,
            "to": other.name,
            **difference(before, other.points[task], first.recipe.seed),
        }
        for task, before in first.points.items()
        if _same(first, other, task)
    ]
