"""The interference experiment: do pairs that differ in more than what was mended teach less?

The paper's central claim (arXiv 2412.11605, section 3.5, figure 4), on its two synthetic tasks. A
program checks every answer, so no judge is in play. An actor is warmed up until it does the task
now and then; its own failed answers are the rejected side of three sets of pairs (``synthetic``).
From the same start each set trains an actor by DPO, with as many pairs and steps; checkpoints on
the way are scored on held-out prompts, greedily.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from spar_lite.errors import SparError
from spar_lite.evaluation.stats import Interval, clustered_mean, mean
from spar_lite.experiments.figures import Line, Panel
from spar_lite.experiments.synthetic import ARMS, TASKS, Ask, asks, pair_sets
from spar_lite.recipe import Count, Decoding, Dpo, Natural, Recipe, Training
from spar_lite.records import PreferencePair, Prompt, Response, TrainingExample, stable_seed
from spar_lite.run import FRESH, Adapters, Run, Summary
from spar_lite.sample import sample_answer
from spar_lite.steps import MODEL, Records, StepFolder, training_progress, training_summary
from spar_lite.store import StageFile
from spar_lite.templates import answer_messages
from spar_lite.warmup import fit

TRIED = 3
"""Prompts that the start is asked for each pair that is wanted: not every answer fails."""


class Warmup(Training):
    """The actor's warm-up, right answers alone: so long that 20 to 60 % of its own are right."""

    rows: Count = Field(96, description="prompts with a right answer")


class Interference(Recipe):
    """The experiment's recipe: a loop's sections model, engine and dpo, and keys of its own."""

    task: Literal["character_sequence", "start_end_story"] = Field(
        ..., description="what is asked for: so many of one letter; a story between two sentences"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), description="the experiment is made once for each")
    pairs: Count = Field(96, description="pairs in each set")
    steps: tuple[Natural, ...] = Field(
        (0, 8, 16, 24), description="when it is scored: from 0 to the last step of dpo"
    )
    heldout: Count = Field(60, description="prompts that are scored, the same for every seed")
    answer_tokens: Count = Field(48, description="longest answer, in tokens")
    warmup: Warmup = Field(Warmup(), description="the actor's training before the pairs")
    dpo: Dpo = Field(Dpo(), description="the training on pairs")

    @model_validator(mode="after")
    def _goes_together(self) -> Interference:
        own = {*Interference.__annotations__, "seed", "model", "engine"}
        for name, field in Recipe.model_fields.items():
            if name not in own and getattr(self, name) != field.get_default():
                raise ValueError(f"this experiment has no {name}; wanted one of {sorted(own)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds wants different numbers, found {list(self.seeds)}")
        last = self.dpo.epochs * -(-self.pairs // self.dpo.batch_size)
        rising = sorted({0, *self.steps, last})
        if len(self.steps) < 2 or list(self.steps) != rising:
            raise ValueError(
                f"steps wants rising numbers from 0 to {last} ({self.pairs} pairs, dpo.batch_size "
                f"{self.dpo.batch_size}, dpo.epochs {self.dpo.epochs}), found {list(self.steps)}"
            )
        return self


@dataclass(frozen=True, slots=True)
class LogP:
    """Mean log p per token of one reply, in nats; id is chosen/, rejected/ or drift/PROMPT."""

    id: str
    value: float


def recipe_of(run: Run) -> Interference:
    """The run's recipe, as what it is."""
    assert isinstance(run.recipe, Interference)
    return run.recipe


def experiment(run: Run) -> None:
    """All of it, a resumable step at a time: for each seed the start, then each arm."""
    recipe = recipe_of(run)
    heldout = asks(recipe.task, "heldout", recipe.heldout, recipe.seed)
    for seed in recipe.seeds:
        at = StepFolder(run, f"seed-{seed}/start")
        rows, tried = recipe.warmup.rows, TRIED * recipe.pairs
        asked = list(asks(recipe.task, "train", rows + tried, seed).items())
        lessons = [_lesson(id, ask, seed) for id, ask in asked[:rows]]
        start = at.train(
            "actor",
            partial(fit, at, "actor", [lessons], recipe.warmup),
            keys=["task", "warmup"],
            inputs=[],
            adapters=FRESH,
        )
        drawn = _answers(at, "answers", dict(asked[rows:]), Adapters(start, start), 0.9)
        first = _answers(at, "heldout-000", heldout, Adapters(start, start))
        for arm in ARMS:
            place = StepFolder(run, f"seed-{seed}/{arm}")
            pairs = place.once(
                "pairs",
                PreferencePair,
                lambda arm=arm, asked=dict(asked), drawn=drawn, seed=seed: pair_sets(
                    asked, drawn, recipe.pairs, seed
                )[arm],
                keys=["task", "pairs"],
                inputs=[drawn],
            )
            _arm(place, pairs, heldout, first, start, seed)


def _lesson(id: str, ask: Ask, seed: int) -> TrainingExample:
    right = ask.right(random.Random(stable_seed(seed, "lesson", id)))
    return TrainingExample(id, "answer", answer_messages(ask.text), right)


def _answers(
    at: StepFolder, name: str, asked: Mapping[str, Ask], adapters: Adapters, temperature: float = 0
) -> Records[Response]:
    """The actor's answer to each prompt; greedy, if not said otherwise."""
    recipe, engine = recipe_of(at.run), at.run.engine
    decoding = Decoding(temperature=temperature, top_p=0.9, max_new_tokens=recipe.answer_tokens)

    def met(found: Sequence[Response]) -> Summary:
        return {"met": mean([asked[r.prompt_id].points(r.text)["met"] for r in found])}

    return at.each(
        name,
        Response,
        lambda: {
            id: partial(
                sample_answer, engine, Prompt(id, ask.text), f"{at.name}/{name}/{id}", decoding
            )
            for id, ask in asked.items()
        },
        keys=["task", "heldout", "pairs", "answer_tokens"],
        inputs=[],
        adapters=adapters,
        summary=met,
    )


def _arm(
    at: StepFolder,
    pairs: Records[PreferencePair],
    heldout: Mapping[str, Ask],
    first: Records[Response],
    start: Path,
    seed: int,
) -> None:
    """Train one arm; its checkpoints answer, and say how likely they find both sides.

    ``first``: the start's answers, which are step 0 of every arm.
    """
    recipe = recipe_of(at.run)
    end = at.train(
        "actor",
        lambda: _learn(at, pairs, stable_seed(seed, "dpo")),
        keys=["dpo", "pairs", "steps"],
        inputs=[pairs],
        adapters=Adapters(start, start),
    )
    for step in recipe.steps:
        adapter = end if step == recipe.steps[-1] else at.folder / f"actor-{step:03d}"
        # Whose answers are scored is the actor; the start, in the refiner's place, finds them
        # as likely as they are.
        adapters = Adapters(adapter if step else start, start)
        answers = _answers(at, f"heldout-{step:03d}", heldout, adapters) if step else first
        at.once(
            f"logp-{step:03d}",
            LogP,
            partial(_log_p, at.run, heldout, answers, pairs, adapters),
            keys=MODEL,
            inputs=[pairs, answers, adapters],
        )


def _learn(at: StepFolder, pairs: Sequence[PreferencePair], seed: int) -> Summary:
    """One training from the first step to the last; the adapter is saved at each point of it."""
    from spar_lite.train import train_actor

    run, recipe = at.run, recipe_of(at.run)
    progress = training_progress(run.screen, f"{at.name}/actor", [len(pairs)], recipe.dpo)

    def on_step(step: int, total: int, tokens: int) -> None:
        progress(step, total, tokens)
        if step in recipe.steps[1:-1]:
            run.policy.save("actor", at.folder / f"actor-{step:03d}")

    report = train_actor(run.policy, pairs, recipe.dpo, seed, on_step, say=run.screen.say)
    if report.dropped:
        raise SparError(f"{at.name}: {report.dropped} pairs are too long; raise dpo.max_length.")
    return training_summary(report)


def _log_p(
    run: Run,
    heldout: Mapping[str, Ask],
    answers: Sequence[Response],
    pairs: Sequence[PreferencePair],
    adapters: Adapters,
) -> Iterator[LogP]:
    """Of both sides of the pairs as the actor answers, of its answers as the start does."""
    from spar_lite.train.logps import score_replies

    run.use_adapters(adapters)
    sides = {f"chosen/{pair.id}": (pair.prompt, pair.chosen, True) for pair in pairs}
    sides |= {f"rejected/{pair.id}": (pair.prompt, pair.rejected, True) for pair in pairs}
    own = {
        f"drift/{r.prompt_id}": (answer_messages(heldout[r.prompt_id].text), r.text, r.finished)
        for r in answers
    }
    for role, chats in (("actor", sides), ("refiner", own)):
        found = score_replies(run.policy, role, list(chats.values()))  # type: ignore[arg-type]
        for id, (total, tokens) in zip(chats, found, strict=True):
            if tokens:  # a cut-off answer may be empty
                yield LogP(id, total / tokens)


# --- What came of it ------------------------------------------------------------------------------

Values = Mapping[str, Sequence[float]]
"""One score: by prompt, its value in each seed. Prompts, not values, are the independent cases."""


def results(recipe: Interference, folder: Path) -> dict[str, Any]:
    """A finished experiment in figures, each with n and 95 % interval, pooled over the seeds.

    "points": for each arm and step the scores; "differences": refined minus the other arm, met, at
    the last step; "finding": what that says, in a sentence; "examples": answers of the last step.
    """
    asked = asks(recipe.task, "heldout", recipe.heldout, recipe.seed)
    found = {(a, s): _values(recipe, folder, asked, a, s) for a in ARMS for s in recipe.steps}
    last = recipe.steps[-1]
    met = {arm: found[arm, last]["met"] for arm in ARMS}
    start = clustered_mean(list(found[ARMS[0], 0]["met"].values()), recipe.seed)
    gaps = {
        arm: {
            id: [a - b for a, b in zip(met[ARMS[0]][id], met[arm][id], strict=True)] for id in asked
        }
        for arm in ARMS[1:]
    }
    differences = {
        arm: clustered_mean(list(gap.values()), recipe.seed) for arm, gap in gaps.items()
    }
    by_seed = {arm: list(map(mean, zip(*gap.values(), strict=True))) for arm, gap in gaps.items()}
    shares = {arm: mean([v for each in met[arm].values() for v in each]) for arm in ARMS}
    return {
        "task": recipe.task,
        "feature": TASKS[recipe.task].feature,
        "seeds": list(recipe.seeds),
        "prompts": recipe.heldout,
        "pairs": recipe.pairs,
        "points": [
            {"arm": arm, "step": step, "scores": {
                name: asdict(clustered_mean(list(cases.values()), recipe.seed))
                for name, cases in values.items()
            }}
            for (arm, step), values in found.items()
        ],
        "differences": {
            arm: {**asdict(gap), "by_seed": by_seed[arm]} for arm, gap in differences.items()
        },
        "finding": finding(last, start.value, shares, differences[ARMS[1]], by_seed[ARMS[1]]),
        "examples": _examples(recipe, folder, asked),
    }  # fmt: skip


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


def finding(
    step: int, start: float, met: Mapping[str, float], gap: Interval, by_seed: Sequence[float]
) -> str:
    """Whether the paper's claim holds here: refined minus interfering, paired by prompt."""
    if gap.n > 1 and gap.low > 0:
        verdict = "The paper's finding holds at this size"
    elif gap.n > 1 and gap.high < 0:
        verdict = "The paper's finding is turned round at this size"
    else:
        verdict = "The paper's finding is not seen at this size (it may be chance)"
    value, low, high = (100 * part for part in (gap.value, gap.low, gap.high))
    above = sum(each > 0 for each in by_seed)
    return (
        f"{verdict}: from {100 * start:.1f} % at the start, {step} steps on refined pairs lead to "
        f"{100 * met['refined']:.1f} % met and on interfering ones to "
        f"{100 * met['interfering']:.1f} %; refined minus interfering {value:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}], paired, {gap.n} prompts in {len(by_seed)} seeds, above 0 in "
        f"{above} of them."
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
