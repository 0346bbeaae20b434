"""The held-out score's two stages: the actor answers, the refiner reviews."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from spar_lite.evaluate import HeldoutResult, answer_heldout, review_heldout, summarise
from spar_lite.instructions import builtin_prompts
from spar_lite.pipeline.common import TASKS, Stage, Summary, checkpoint, file_of, write_metrics
from spar_lite.recipe import Recipe
from spar_lite.records import Prompt, Response
from spar_lite.run import Run, by_id


def heldout_stages(
    recipe: Recipe, folder: str, iteration: int, fresh: bool = False
) -> Iterator[Stage]:
    """Score a checkpoint: "base" (fresh adapters), the warm-up (iteration 0) or an iteration."""
    if not recipe.evaluate.prompts:
        return
    keys: tuple[str, ...] = (*TASKS, "evaluate")
    if not fresh:
        keys = (*keys, "bootstrap")
    if iteration:
        keys = (*keys, "prompts", "sample", "judge", "search", "dpo", "rft")
    place = (folder, None if fresh else iteration)
    yield Stage(folder, "heldout_answers", keys, lambda run: _heldout_answers(run, *place))
    yield Stage(folder, "heldout", keys, lambda run: _heldout_review(run, *place))


def _heldout_adapters(run: Run, iteration: int | None) -> list[Prompt]:
    if iteration is None:
        run.use_adapters(None, None)
    else:
        run.use_adapters(
            checkpoint(run.recipe, run.folder, "actor", iteration),
            checkpoint(run.recipe, run.folder, "refiner", iteration),
        )
    recipe = run.recipe
    return builtin_prompts(recipe.prompts, recipe.seed, "heldout", recipe.evaluate.prompts)


def _heldout_answers(run: Run, folder: str, iteration: int | None) -> Summary:
    prompts = _heldout_adapters(run, iteration)
    settings = run.recipe.evaluate
    items = [(p.id, lambda p=p: answer_heldout(run.engine, p, settings)) for p in prompts]
    file = file_of(run, folder, "heldout_answers", Response)
    answers = run.collect(f"{folder}/heldout_answers", file, items, "answers")
    return {"answers": len(answers)}


def _heldout_review(run: Run, folder: str, iteration: int | None) -> Summary:
    prompts = _heldout_adapters(run, iteration)
    answers = by_id(file_of(run, folder, "heldout_answers", Response).load())
    settings = run.recipe.evaluate
    items = [
        (
            p.id,
            lambda p=p, review=n < settings.review: review_heldout(
                run.engine, p, answers[p.id], settings, review
            ),
        )
        for n, p in enumerate(prompts)
    ]
    file = file_of(run, folder, "heldout", HeldoutResult)
    results = run.collect(f"{folder}/heldout", file, items, "answers")
    scores = {name: asdict(score) for name, score in summarise(results, run.recipe.seed).items()}
    write_metrics(run.folder / folder, "heldout", scores)
    return {"constraints_met": scores["constraints_met"]["value"], "scores": scores}
