"""The warm-up's stages: prompts, the base model's answers, lessons, two trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spar_lite import bootstrap
from spar_lite.instructions import builtin_prompts
from spar_lite.pipeline.common import (
    TASKS,
    Stage,
    Summary,
    checkpoint,
    file_of,
    fit,
    kinds,
)
from spar_lite.recipe import Decoding, Recipe
from spar_lite.records import Prompt, Response, Role, TrainingExample
from spar_lite.run import Run
from spar_lite.sample import sample_answer


def warmup_stages(recipe: Recipe) -> Iterator[Stage]:
    """Warm both adapters up, as far as the recipe says."""
    sampled = ("bootstrap.source", "bootstrap.prompts", "bootstrap.max_new_tokens")
    keys = (*TASKS, *sampled)
    if recipe.bootstrap.source == "constraints":
        yield Stage("bootstrap", "prompts", keys, _warmup_prompts)
        yield Stage("bootstrap", "answers", keys, _warmup_answers)
    rows = (*keys, "bootstrap.examples")
    yield Stage("bootstrap", "examples", rows, _warmup_examples)
    trained = (*TASKS, "bootstrap")
    yield Stage("bootstrap", "refiner", trained, lambda run: _warm_up(run, "refiner"))
    if recipe.bootstrap.actor:
        yield Stage("bootstrap", "actor", trained, lambda run: _warm_up(run, "actor"))


def _warmup_prompts(run: Run) -> Summary:
    prompts = builtin_prompts(
        run.recipe.prompts, run.recipe.seed, "warmup", run.recipe.bootstrap.prompts
    )
    run.screen.start("bootstrap/prompts", len(prompts), "prompts")
    file_of(run, "bootstrap", "prompts", Prompt).finish(prompts)
    return {"prompts": len(prompts)}


def _warmup_answers(run: Run) -> Summary:
    run.use_adapters(None, None)
    prompts = file_of(run, "bootstrap", "prompts", Prompt).load()
    limit = run.recipe.bootstrap.max_new_tokens
    decoding = Decoding(temperature=0.8, top_p=0.95, max_new_tokens=limit)
    items = [
        (f"{p.id}/0", lambda p=p: sample_answer(run.engine, p, f"{p.id}/0", decoding, "base"))
        for p in prompts
    ]
    answers = run.collect(
        "bootstrap/answers", file_of(run, "bootstrap", "answers", Response), items, "answers"
    )
    return {"answers": len(answers)}


def _warmup_examples(run: Run) -> Summary:
    settings = run.recipe.bootstrap
    if settings.source == "constraints":
        prompts = file_of(run, "bootstrap", "prompts", Prompt).load()
        answers = file_of(run, "bootstrap", "answers", Response).load()
        rows = bootstrap.lessons(prompts, answers, run.recipe.seed)
    else:
        rows = bootstrap.released_rows(Path(settings.source))
    rows = rows[: settings.examples or None]
    run.screen.start("bootstrap/examples", len(rows), "examples")
    file_of(run, "bootstrap", "examples", TrainingExample).finish(rows)
    return kinds(rows)


def _warm_up(run: Run, role: Role) -> Summary:
    rows = file_of(run, "bootstrap", "examples", TrainingExample).load()
    own = bootstrap.actor_rows(rows) if role == "actor" else bootstrap.refiner_rows(rows)
    start: dict[Role, Path | None] = {"actor": None, "refiner": None}
    if role == "actor":
        start["refiner"] = checkpoint(run.recipe, run.folder, "refiner", 0)
    run.use_adapters(start["actor"], start["refiner"])
    settings = run.recipe.bootstrap
    if role == "actor" and settings.actor_lr:
        settings = settings.model_copy(update={"lr": settings.actor_lr})
    return fit(run, "bootstrap", role, own, settings)
