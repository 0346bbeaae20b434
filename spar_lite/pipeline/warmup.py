"""The warm-up's stages: prompts, the base model's answers, lessons, two trainings.

Or, with ``bootstrap.start_from``, one: another run's adapters are copied and started from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spar_lite import bootstrap
from spar_lite.errors import StoreError
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
from spar_lite.recipe import Decoding, Prompts, Recipe, load_recipe
from spar_lite.records import Prompt, Response, Role, TrainingExample
from spar_lite.run import Run
from spar_lite.sample import sample_answer
from spar_lite.target import checkpoints, last_checkpoint


def warmup_stages(recipe: Recipe) -> Iterator[Stage]:
    """Warm both adapters up, as far as the recipe says."""
    if recipe.bootstrap.start_from:
        yield Stage("bootstrap", "start", ("model.lora", "bootstrap.start_from"), _start_from)
        return
    names = ("source", "prompts", "kinds", "per_prompt", "k", "max_new_tokens")
    keys = (*TASKS, *(f"bootstrap.{name}" for name in names))
    if recipe.bootstrap.source == "constraints":
        yield Stage("bootstrap", "prompts", keys, _warmup_prompts)
        yield Stage("bootstrap", "answers", keys, _warmup_answers)
    rows = (*keys, "bootstrap.minimal", "bootstrap.examples")
    yield Stage("bootstrap", "examples", rows, _warmup_examples)
    trained = (*TASKS, "bootstrap")
    yield Stage("bootstrap", "refiner", trained, lambda run: _warm_up(run, "refiner"))
    if recipe.bootstrap.actor:
        yield Stage("bootstrap", "actor", trained, lambda run: _warm_up(run, "actor"))


def _warmup_prompts(run: Run) -> Summary:
    recipe = run.recipe
    settings = warmup_tasks(recipe)
    prompts = builtin_prompts(settings, recipe.seed, "warmup", recipe.bootstrap.prompts)
    run.screen.start("bootstrap/prompts", len(prompts), "prompts")
    file_of(run, "bootstrap", "prompts", Prompt).finish(prompts)
    return {"prompts": len(prompts)}


def _warmup_answers(run: Run) -> Summary:
    run.use_adapters(None, None)
    prompts = file_of(run, "bootstrap", "prompts", Prompt).load()
    settings = run.recipe.bootstrap
    decoding = Decoding(temperature=0.8, top_p=0.95, max_new_tokens=settings.max_new_tokens)
    ids = [(p, f"{p.id}/{k}") for p in prompts for k in range(settings.k)]
    items = [(id, partial(sample_answer, run.engine, p, id, decoding, "base")) for p, id in ids]
    answers = run.collect(
        "bootstrap/answers", file_of(run, "bootstrap", "answers", Response), items, "answers"
    )
    return {"answers": len(answers)}


def _warmup_examples(run: Run) -> Summary:
    settings = run.recipe.bootstrap
    if settings.source == "constraints":
        prompts = file_of(run, "bootstrap", "prompts", Prompt).load()
        answers = file_of(run, "bootstrap", "answers", Response).load()
        rows = bootstrap.lessons(prompts, answers, run.recipe.seed, settings.minimal)
    else:
        rows = bootstrap.released_rows(Path(settings.source))
    judged = bootstrap.refiner_rows(rows)[: settings.examples or None]
    rows = [*bootstrap.actor_rows(rows), *judged]
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
    return fit(run, "bootstrap", role, *in_order(run, own), settings=settings)


def in_order(run: Run, rows: list[TrainingExample]) -> list[list[TrainingExample]]:
    """Rows in the parts that the recipe's curriculum teaches one after the other."""
    curriculum = run.recipe.bootstrap.curriculum
    if curriculum == "judgements":
        return bootstrap.judgements_first(rows)
    if curriculum == "constraints":
        prompts = file_of(run, "bootstrap", "prompts", Prompt).load()
        return bootstrap.by_hardness(rows, {p.id: len(p.constraints) for p in prompts})
    return [rows]


def warmup_tasks(recipe: Recipe) -> Prompts:
    """The builtin prompts of the warm-up: the loop's, unless the recipe says otherwise."""
    changes = {
        "kinds": recipe.bootstrap.kinds or recipe.prompts.kinds,
        "per_prompt": recipe.bootstrap.per_prompt or recipe.prompts.per_prompt,
    }
    return recipe.prompts.model_copy(update=changes)


def _start_from(run: Run) -> Summary:
    """Copy the last adapters of another run, so that this one is whole by itself."""
    source = Path(run.recipe.bootstrap.start_from)
    known = checkpoints(source)
    made = (source / "recipe.yaml").is_file()
    settings = load_recipe(source / "recipe.yaml") if made else run.recipe
    name = last_checkpoint(settings, source, list(known))
    adapters = known[name]
    if not adapters:
        raise StoreError(
            f"bootstrap.start_from: {source} ends with no adapters; wanted the folder of a run "
            "whose warm-up is finished, or an iteration that was kept."
        )
    run.screen.start("bootstrap/start", len(adapters), "adapters")
    for role, folder in adapters.items():
        _same_scale(run.recipe, folder)
        target = run.folder / "bootstrap" / role
        shutil.rmtree(target, ignore_errors=True)  # ours, from a start that was cut off
        shutil.copytree(folder, target)
    return {"adapters": len(adapters), "from": f"{source} {name}"}


def _same_scale(recipe: Recipe, folder: Path) -> None:
    """Say before it is copied that an adapter does not fit the recipe, rather than at loading."""
    from spar_lite.model.adapters import read_adapter

    found, lora = read_adapter(folder), recipe.model.lora
    for key, wanted in (("r", lora.r), ("alpha", lora.alpha)):
        if found[key] != wanted:
            raise StoreError(
                f"bootstrap.start_from: {folder} has {key} {found[key]}, the recipe {wanted}. Set "
                "model.lora as it was there."
            )
