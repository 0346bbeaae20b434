"""The interference experiment: do pairs that differ in more than what was mended teach less?

The paper's central claim (arXiv 2412.11605, section 3.5, figure 4), on its two synthetic tasks. A
program checks every answer, so no judge is in play. An actor is warmed up until it does the task
now and then; its own failed answers are the rejected side of three sets of pairs (``synthetic``).
From the same start each set trains an actor by DPO, with as many pairs and steps; checkpoints on
the way are scored on held-out prompts, greedily. ``outcome`` says what came of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from spar_lite.errors import SparError
from spar_lite.evaluation.stats import mean
from spar_lite.experiments.synthetic import ARMS, Ask, asks, pair_set
from spar_lite.recipe import Count, Decoding, Dpo, Natural, Recipe, Training
from spar_lite.records import PreferencePair, Prompt, Response, Role, TrainingExample, stable_seed
from spar_lite.run import FRESH, Adapters, Run, Summary
from spar_lite.sample import sample_answer
from spar_lite.steps import MODEL, Records, StepFolder, training_progress, training_summary
from spar_lite.templates import answer_messages
from spar_lite.warmup import fit

TRIED = 4
"""Prompts that the start is asked for each pair that is wanted: not every answer fails, nor in
each of the ways that are wanted."""


class Warmup(Training):
    """The actor's warm-up, right answers alone: so long that 20 to 60 % of its own are right."""

    rows: Count = Field(96, description="prompts with a right answer")


class Interference(Recipe):
    """The experiment's recipe: a loop's sections model, engine and dpo, and keys of its own."""

    task: Literal["character_sequence", "start_end_story"] = Field(
        ..., description="what is asked for: so many of one letter; a story between two sentences"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), description="the experiment is made once for each")
    set_size: Count = Field(64, description="pairs in each set")
    steps: tuple[Natural, ...] = Field(
        (0, 4, 8, 16), description="when it is scored: from 0 to the last step of dpo"
    )
    heldout: Count = Field(60, description="prompts that are scored, the same for every seed")
    answer_tokens: Count = Field(48, description="longest answer, in tokens")
    warmup: Warmup = Field(Warmup(), description="the actor's training before the pairs")
    dpo: Dpo = Field(Dpo(), description="the training on pairs")

    @model_validator(mode="after")
    def _points_and_sections(self) -> Interference:
        own = {*Interference.__annotations__, "seed", "model", "engine"}
        for name, field in Recipe.model_fields.items():
            if name not in own and getattr(self, name) != field.get_default():
                raise ValueError(f"this experiment has no {name}; wanted one of {sorted(own)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds wants different numbers, found {list(self.seeds)}")
        last = self.dpo.epochs * -(-self.set_size // self.dpo.batch_size)
        rising = sorted({0, *self.steps, last})
        if list(self.steps) != rising or rising[-1] != last:
            raise ValueError(
                f"steps wants rising numbers from 0 to {last} ({self.set_size} pairs, "
                f"dpo.batch_size {self.dpo.batch_size}, dpo.epochs {self.dpo.epochs}), found "
                f"{list(self.steps)}"
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
        rows, tried = recipe.warmup.rows, TRIED * recipe.set_size
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
                partial(pair_set, arm, dict(asked), drawn, recipe.set_size, seed),
                keys=["task", "set_size"],
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
        keys=["task", "heldout", "set_size", "answer_tokens"],
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
        keys=["dpo", "set_size", "steps"],
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
    roles: tuple[Role, Role] = ("actor", "refiner")
    for role, chats in zip(roles, (sides, own), strict=True):
        found = score_replies(run.policy, role, list(chats.values()))
        for id, (total, tokens) in zip(chats, found, strict=True):
            if tokens:  # a cut-off answer may be empty
                yield LogP(id, total / tokens)
