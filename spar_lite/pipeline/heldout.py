"""The held-out score's two stages: the actor answers, the refiner reviews."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from spar_lite.evaluate import (
    HeldoutResult,
    answer_heldout,
    paired_difference,
    review_heldout,
    summarise,
)
from spar_lite.instructions import builtin_prompts
from spar_lite.pipeline.common import (
    TASKS,
    Stage,
    Summary,
    checkpoint,
    file_of,
    standing,
    write_metrics,
)
from spar_lite.prompts import answer_messages
from spar_lite.recipe import Recipe
from spar_lite.records import Prompt, Response
from spar_lite.run import Run, by_id
from spar_lite.store import Marker
from spar_lite.target import kept_after


def heldout_stages(
    recipe: Recipe, folder: str, iteration: int, fresh: bool = False
) -> Iterator[Stage]:
    """Score a checkpoint: "base" (fresh adapters), the warm-up (iteration 0) or an iteration."""
    if not recipe.evaluate.prompts:
        return
    own = ("prompts", "review", "max_new_tokens", "reply_tokens")  # IFEval may be asked for later
    keys: tuple[str, ...] = (*TASKS, *(f"evaluate.{name}" for name in own))
    if not fresh:
        keys = (*keys, "bootstrap")
    if iteration:
        keys = (*keys, "prompts", "sample", "judge", "search", "dpo", "rft")
    if iteration > 1:
        keys = (*keys, "iterate")
    place = (folder, None if fresh else iteration)
    yield Stage(folder, "heldout_answers", keys, lambda run: _heldout_answers(run, *place))
    yield Stage(folder, "heldout", keys, lambda run: _heldout_review(run, *place))
    if iteration and recipe.iterate.keep == "better":
        yield Stage(folder, "keep", (*keys, "iterate"), lambda run: _keep(run, iteration))


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
    logps = _base_logps(run, prompts, answers)
    items = [
        (
            p.id,
            lambda p=p, review=n < settings.review: review_heldout(
                run.engine, p, answers[p.id], settings, review, logps.get(p.id)
            ),
        )
        for n, p in enumerate(prompts)
    ]
    file = file_of(run, folder, "heldout", HeldoutResult)
    results = run.collect(f"{folder}/heldout", file, items, "answers")
    scores = {name: asdict(score) for name, score in summarise(results, run.recipe.seed).items()}
    write_metrics(run.folder / folder, "heldout", scores)
    return {"answers_that_count": scores["answers_that_count"]["value"], "scores": scores}


def _base_logps(
    run: Run, prompts: list[Prompt], answers: dict[str, Response]
) -> dict[str, float | None]:
    """Mean log p per token of each answer under the bare base: how far the model has moved."""
    if run.make_engine is not None:  # a scripted engine has no model
        return {}
    from spar_lite.train.logps import score_replies

    chats = [(answer_messages(p.text), answers[p.id].text, answers[p.id].finished) for p in prompts]
    found = score_replies(run.policy, "base", chats)
    return {p.id: total / n if n else None for p, (total, n) in zip(prompts, found, strict=True)}


def _keep(run: Run, number: int) -> Summary:
    """Decide whose adapters the next iteration starts from (``iterate.keep``)."""
    folder, last = f"iteration-{number}", kept_after(run.recipe, run.folder, number - 1)
    start = standing(run.recipe, run.folder, number - 1)
    run.screen.start(f"{folder}/keep", 1, "decision")
    before = file_of(run, start, "heldout", HeldoutResult).load()
    after = file_of(run, folder, "heldout", HeldoutResult).load()
    change = paired_difference(before, after, run.recipe.seed)
    # A run that is scored only afterwards has gone on from this one already.
    gone_on = Marker(run.folder / f"iteration-{number + 1}", "responses").read() is not None
    worse = change.value < 0 and not gone_on
    if worse:
        run.screen.say(
            f"{folder}: answers that count changed by {100 * change.value:+.1f} points, so the "
            f"adapters of {start} stay (iterate.keep: always goes on with the new ones)"
        )
    return {"kept": last if worse else number, "change": asdict(change)}
