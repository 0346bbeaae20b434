"""A run's checkpoints, and runs side by side: scores, costs, differences on the same prompts.

Reads finished files alone. Differences are paired by prompt id: bootstrap over prompts for the
mean, McNemar's exact test where every score is 0 or 1; prompts that only one side has are left out
and counted. What got worse is said in words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spar_lite.errors import StoreError, did_you_mean
from spar_lite.evaluation.answer import scores
from spar_lite.evaluation.heldout import HELDOUT_POINTS, HeldoutResult, alarms, counts
from spar_lite.evaluation.runner import points, scorecards
from spar_lite.evaluation.scoring import IFEVAL_FILES
from spar_lite.evaluation.stats import Points, clustered_mean, paired_change
from spar_lite.loop import summaries
from spar_lite.recipe import Recipe, recipe_slice
from spar_lite.run import Summary, last_checkpoint, saved_recipe, standing, start_folder
from spar_lite.store import Marker, StageFile, json_text

COUNTS, IFEVAL, HELDOUT = "answers that count", "IFEval prompts met", "held-out answers"
SAME = ("prompts.kinds", "prompts.per_prompt")
"""Recipe keys that decide the held-out prompts, whatever the seed."""

IDENTITY: dict[str, tuple[str, ...]] = {
    "ifeval": ("texts",),
    "ifbench": ("texts", "verifiers"),
    "constraints": ("texts",),
    "judge": ("texts",),
    "refine": ("texts", "model", "quantization", "answer_tokens"),
}
"""Settings of an evaluation that decide its cases; those of ``refine`` are the base's answers."""


def difference(task: str, a: str, b: str, before: Points, after: Points, seed: int) -> Summary:
    """The change from ``a`` to ``b`` over the prompts that both have.

    ``left_out``: how many only one of them has.
    """
    change = paired_change(before, after, seed)
    return {
        "task": task,
        "from": a,
        "to": b,
        "difference": asdict(change.difference),
        "mcnemar_p": change.p,
        "distinguishable": change.clear,
        "left_out": len(before.keys() ^ after.keys()),
    }


# --- The checkpoints of one run -------------------------------------------------------------------


def differences(recipe: Recipe, folder: Path) -> list[Summary]:
    """How the scores of record changed, as ``difference`` says it.

    Held-out answers that count: of each checkpoint against the one it started from, of what the run
    ends with against the warm-up and the base. IFEval prompts met: of all that were scored.
    """
    seed, held = recipe.seed, heldout_results(recipe, folder)
    met = {name: counts(results) for name, results in held.items()}
    steps = _steps(recipe, folder, list(held), [start_folder(recipe), "base"])
    ifeval = {
        place: points(folder / "eval" / place, card)
        for place, task, card in scorecards(folder / "eval")
        if task == IFEVAL_FILES
    }
    found = [difference(COUNTS, a, b, met[a], met[b], seed) for a, b in steps]
    for a, b in itertools.combinations(ifeval, 2):
        found.append(difference(IFEVAL, a, b, ifeval[a], ifeval[b], seed))
    return found


def run_alarms(recipe: Recipe, folder: Path) -> dict[str, list[str]]:
    """What got worse, by "FROM → TO", where anything did.

    Each checkpoint against the one it started from, and what the run ends with against the warm-up.
    """
    held = heldout_results(recipe, folder)
    steps = _steps(recipe, folder, list(held), [start_folder(recipe)])
    found = {f"{a} → {b}": alarms(held[a], held[b], recipe.seed) for a, b in steps}
    return {step: said for step, said in found.items() if said}


def heldout_results(recipe: Recipe, folder: Path) -> dict[str, list[HeldoutResult]]:
    """The finished held-out results by checkpoint, in the order of the run."""
    names = ["base", "bootstrap", *(f"iteration-{n}" for n in range(1, recipe.iterations + 1))]
    found = {name: _heldout(folder / name) for name in names}
    return {name: results for name, results in found.items() if results is not None}


def _heldout(place: Path) -> list[HeldoutResult] | None:
    done = Marker(place, "heldout").read() is not None
    return StageFile(place, "heldout", HeldoutResult).load() if done else None


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


# --- Runs side by side ----------------------------------------------------------------------------


Case = tuple[str, str]
"""An evaluation, and what decides which prompt an id stands for in it, as JSON."""


@dataclass(frozen=True)
class Side:
    """One checkpoint of one run.

    ``points``: score by prompt id; where two sides have the same case, they are compared prompt by
    prompt. ``heldout``: the held-out results themselves, for what else they say.
    """

    run: str
    checkpoint: str
    recipe: Recipe
    stages: Mapping[str, Mapping[str, Any]]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    points: dict[Case, Points] = field(default_factory=dict)
    heldout: dict[Case, list[HeldoutResult]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.run}:{self.checkpoint}"


def compare(words: Sequence[str], start: str | None = None) -> dict[str, Any]:
    """Every side's figures, differences between them, and what got worse.

    Each word is RUN (the checkpoint that it ends with, as far as it is) or RUN:CHECKPOINT. Every
    later one is compared with the first; with ``start`` each with that checkpoint of its own run,
    and then all of them together.

    Raises:
        StoreError: no run there, no such checkpoint, or files of another version.
    """
    places = []
    for word in words:
        folder, _, checkpoint = word.rpartition(":")
        whole = Path(word).is_dir() or ":" not in word
        places.append((Path(word), "") if whole else (Path(folder), checkpoint))
    if start:
        pairs = [(_read(folder, start), _read(folder, name)) for folder, name in places]
        sides = [side for pair in pairs for side in pair]
    else:
        sides = [_read(folder, name) for folder, name in places]
        pairs = [(sides[0], side) for side in sides[1:]]
    found = {
        "runs": [_figures(side) for side in sides],
        "differences": [
            difference(case[0], a.name, b.name, before, b.points[case], a.recipe.seed)
            for a, b in pairs
            for case, before in a.points.items()
            if case in b.points
        ],
        "alarms": [
            {"from": a.name, "to": b.name, "said": said}
            for a, b in pairs
            for case, before in a.heldout.items()
            if case in b.heldout and (said := alarms(before, b.heldout[case], a.recipe.seed))
        ],
    }
    return {**found, "pooled": _pool(pairs)} if start else found


def _read(folder: Path, checkpoint: str) -> Side:
    recipe = saved_recipe(folder)
    stages = summaries(recipe, folder)
    cards = list(scorecards(folder / "eval"))
    # Checkpoints that have a finished held-out score or evaluation, in the order of the run.
    scored = {label.partition("/")[0] for label in stages if label.endswith("/heldout")}
    scored |= {place for place, _, _ in cards}
    order = ["base", "bootstrap", *(label.partition("/")[0] for label in stages)]
    known = [name for name in dict.fromkeys(order) if name in scored]
    if not known:
        raise StoreError(f"{folder} has no scores yet. See: spar-lite status {folder}")
    checkpoint = checkpoint or last_checkpoint(recipe, folder, known)
    if checkpoint not in known:
        hint = did_you_mean(checkpoint, known)
        raise StoreError(
            f"{folder} has no scores of {checkpoint}, but of {', '.join(known)}.{hint}"
        )
    own = [n for n, label in enumerate(stages) if label.startswith(f"{checkpoint}/")]
    until = dict(itertools.islice(stages.items(), max(own, default=-1) + 1))
    side = Side(folder.name, checkpoint, recipe, until)
    if (results := _heldout(folder / checkpoint)) is not None:
        found = scores(results, HELDOUT_POINTS, recipe.seed)
        case = HELDOUT, json_text(recipe_slice(recipe, SAME))
        side.scores[HELDOUT] = {name: asdict(score) for name, score in found.items()}
        side.points[case], side.heldout[case] = counts(results), results
    for place, task, card in cards:
        if place == checkpoint:
            side.scores[task] = card["scores"]
            settings, keys = card["settings"], IDENTITY.get(card["task"], ())
            if all(key in settings for key in keys):  # else another version made it
                case = task, json_text([settings[key] for key in keys])
                side.points[case] = points(folder / "eval" / place, card)
    return side


def _pool(pairs: Sequence[tuple[Side, Side]]) -> list[dict[str, Any]]:
    """Runs of several seeds, each from one of its checkpoints to another, all of them as one.

    Pooled is the mean over runs and prompts. A prompt that all runs answered is one case, so its
    differences are drawn together; the interval is over prompts, for these runs.
    """
    sides = [side for pair in pairs for side in pair]
    # "iteration-2 or iteration-3" where they differ.
    begin, end = (" or ".join(dict.fromkeys(pair[n].checkpoint for pair in pairs)) for n in (0, 1))
    pooled = []
    for case in sides[0].points:
        if not all(case in side.points for side in sides):
            continue
        ids = [id for id in sides[0].points[case] if all(id in s.points[case] for s in sides)]
        changes = [[b.points[case][id] - a.points[case][id] for a, b in pairs] for id in ids]
        interval = clustered_mean(changes, sides[0].recipe.seed)
        pooled.append(
            {
                "task": case[0],
                "from": begin,
                "to": end,
                "runs": len(pairs),
                "difference": asdict(interval),
                "distinguishable": interval.clear,
                "left_out": len({id for s in sides for id in s.points[case]}) - len(ids),
            }
        )
    return pooled


def _figures(side: Side) -> dict[str, Any]:
    """Scores and costs; the costs are those of all stages up to the checkpoint's last one."""
    stages = side.stages.values()

    def total(key: str) -> Any:
        return sum(stage.get(key, 0) for stage in stages)

    def count(name: str, key: str) -> int:
        return sum(s.get(key, 0) for label, s in side.stages.items() if label.endswith(f"/{name}"))

    on_gpu = any(stage.get("device") == "cuda" for stage in stages)
    return {
        "name": side.name,
        "scores": side.scores,
        "prompts": count("prompts", "prompts"),
        "trees": count("trees", "trees"),
        "preference_pairs": count("pairs", "pairs"),
        "tokens_in": total("prompt_tokens"),
        "tokens_out": total("completion_tokens"),
        "gpu_seconds" if on_gpu else "seconds": round(total("seconds"), 1),
        "peak_memory_bytes": max((s.get("peak_memory_bytes", 0) for s in stages), default=0),
        "judged_by": "itself" if side.recipe.judge.mode == "llm" else side.recipe.judge.mode,
    }
