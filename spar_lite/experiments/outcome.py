"""What came of an interference experiment: figures with intervals, a sentence, curves to draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spar_lite.evaluation.stats import Interval, clustered_mean, mean
from spar_lite.experiments.figures import Line, Panel
from spar_lite.experiments.interference import Interference, LogP
from spar_lite.experiments.synthetic import ARMS, TASKS, Ask, asks
from spar_lite.records import Response
from spar_lite.store import StageFile

Values = Mapping[str, Sequence[float]]
"""One score: by prompt, its value in each seed. Prompts, not values, are the independent cases."""


def results(recipe: Interference, folder: Path) -> dict[str, Any]:
    """A finished experiment in figures, each with n and 95 % interval, pooled over the seeds.

    "points": for each arm and step the scores; "differences": refined minus the other arm, met, at
    the last step; "finding": what that says, in a sentence; "examples": answers of the last step.
    """
    asked = asks(recipe.task, "heldout", recipe.heldout, recipe.seed)
    found = {(a, s): _values(recipe, folder, asked, a, s) for a in ARMS for s in recipe.steps}

    def pooled(cases: Values) -> Interval:
        return clustered_mean(list(cases.values()), recipe.seed)

    met = {arm: found[arm, recipe.steps[-1]]["met"] for arm in ARMS}
    refined = met[ARMS[0]]
    differences = {}
    for arm in ARMS[1:]:
        gap = {id: [a - b for a, b in zip(refined[id], met[arm][id], strict=True)] for id in asked}
        by_seed = [mean(values) for values in zip(*gap.values(), strict=True)]
        differences[arm] = {**asdict(pooled(gap)), "by_seed": by_seed}
    points = [
        {"arm": arm, "step": step, "scores": {n: asdict(pooled(c)) for n, c in values.items()}}
        for (arm, step), values in found.items()
    ]
    result = {
        "task": recipe.task,
        "feature": TASKS[recipe.task].feature,
        "seeds": list(recipe.seeds),
        "prompts": recipe.heldout,
        "pairs": recipe.set_size,
        "points": points,
        "differences": differences,
        "examples": _examples(recipe, folder, asked),
    }
    return result | {"finding": finding(result)}


def _values(
    recipe: Interference, folder: Path, asked: Mapping[str, Ask], arm: str, step: int
) -> dict[str, Values]:
    """Every score of one arm's checkpoint."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in recipe.seeds:
        place = folder / f"seed-{seed}"
        for response in _answered(place, arm, step):
            points = asked[response.prompt_id].points(response.text)
            for name, value in points.items():
                found[name][response.prompt_id].append(value)
        for logp in StageFile(place / arm, f"logp-{step:03d}", LogP).load():
            name, _, case = logp.id.partition("/")
            found[name][case if name == "drift" else f"{seed}/{case}"].append(logp.value)
    return {name: dict(cases) for name, cases in found.items()}


def _answered(place: Path, arm: str, step: int) -> list[Response]:
    return StageFile(place / (arm if step else "start"), f"heldout-{step:03d}", Response).load()


def _examples(recipe: Interference, folder: Path, asked: Mapping[str, Ask]) -> list[dict[str, Any]]:
    """Three held-out prompts, with the answers of the start and of each arm's end, first seed."""
    place, last = folder / f"seed-{recipe.seeds[0]}", recipe.steps[-1]
    said = {"start": _answered(place, "start", 0)}
    said |= {arm: _answered(place, arm, last) for arm in ARMS}
    texts = {who: {r.prompt_id: r.text for r in answers} for who, answers in said.items()}
    return [
        {"prompt": asked[id].text, "answers": {who: found[id] for who, found in texts.items()}}
        for id in list(asked)[:3]
    ]


def finding(found: Mapping[str, Any]) -> str:
    """Whether the paper's claim holds here: refined minus interfering, paired by prompt."""
    met = {(p["arm"], p["step"]): 100 * p["scores"]["met"]["value"] for p in found["points"]}
    last, gap = max(step for _, step in met), found["differences"]["interfering"]
    if gap["n"] > 1 and gap["low"] > 0:
        verdict = "holds at this size"
    elif gap["n"] > 1 and gap["high"] < 0:
        verdict = "is turned round at this size"
    else:
        verdict = "is not seen at this size (the difference may be chance)"
    value, low, high = (100 * gap[key] for key in ("value", "low", "high"))
    above = sum(each > 0 for each in gap["by_seed"])
    return (
        f"The paper's finding {verdict}: from {met['refined', 0]:.1f} % met at the start, {last} "
        f"steps on refined pairs lead to {met['refined', last]:.1f} % and on interfering ones to "
        f"{met['interfering', last]:.1f} %; refined minus interfering {value:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}], paired, {gap['n']} prompts in {len(gap['by_seed'])} seeds, "
        f"above 0 in {above} of them."
    )


def panels(found: Mapping[str, Any]) -> list[Panel]:
    """The figure: met and feature over the steps, log p of both sides, drift."""

    def line(arm: str, score: str, name: str = "", scale: float = 1.0) -> Line:
        points = [p for p in found["points"] if p["arm"] == arm and score in p["scores"]]
        value, low, high = (
            [scale * p["scores"][score][key] for p in points] for key in ("value", "low", "high")
        )
        return Line(name or arm, [p["step"] for p in points], value, low, high)

    def each(score: str, scale: float = 1.0) -> list[Line]:
        return [line(arm, score, scale=scale) for arm in ARMS]

    feature, x = found["feature"], "steps of DPO"
    both = [line(a, side, f"{a}, {side}") for a in ARMS for side in ("chosen", "rejected")]
    return [
        Panel("Held-out prompts met", x, "%", each("met", 100)),
        Panel(f"Interfering feature: {feature}", x, "%", each(feature, 100)),
        Panel("Log p of both sides", x, "nats per token", both),
        Panel("Drift: log p under the start", x, "nats per token", each("drift")),
    ]
