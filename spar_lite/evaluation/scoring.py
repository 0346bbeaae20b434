"""A checkpoint's score within a run: held-out answers, their review, IFEval, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from spar_lite.data.prompts import builtin_prompts
from spar_lite.errors import RecipeError
from spar_lite.evaluation.answer import scores
from spar_lite.evaluation.heldout import (
    ANSWERS,
    HELDOUT_POINTS,
    HeldoutResult,
    alarms,
    counts,
    review_heldout,
)
from spar_lite.evaluation.runner import Job, evaluate
from spar_lite.evaluation.stats import paired_change
from spar_lite.evaluation.target import Target
from spar_lite.evaluation.tasks.ifeval import Ifeval
from spar_lite.evaluation.verified import VerifiedPrompt, read_prompts
from spar_lite.recipe import Decoding, Recipe
from spar_lite.records import Prompt, Response
from spar_lite.run import (
    ROLES,
    Adapters,
    Run,
    Summary,
    adapters_after,
    kept_after,
    standing,
    start_folder,
)
from spar_lite.sample import sample_answer
from spar_lite.steps import MODEL, Items, StepFolder
from spar_lite.store import StageFile
from spar_lite.templates import answer_messages
from spar_lite.warmup import TASKS

IFEVAL_FILES = "ifeval-run"
"""Name of IFEval's files, which are not those of ``spar-lite eval ifeval``: settings may differ."""


def score(run: Run, name: str, iteration: int | None) -> None:
    """Score a checkpoint on held-out prompts: the base (None), the warm-up (0) or an iteration.

    The actor answers greedily; the refiner judges and mends some of the answers.
    """
    settings = run.recipe.evaluate
    if not settings.prompts:
        return
    at = StepFolder(run, name)
    adapters = adapters_after(run.recipe, run.folder, iteration)
    if iteration:  # its own, whether it will be kept or not
        adapters = Adapters(at.folder / "actor", at.folder / "refiner")
    own = ("prompts", "review", "max_new_tokens", "reply_tokens")  # IFEval may be asked for later
    keys = [*TASKS, *(f"evaluate.{key}" for key in own)]
    if iteration is not None:
        keys.append("bootstrap")
    greedy = Decoding(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    answers = at.each(
        "heldout_answers",
        Response,
        lambda: {
            p.id: partial(sample_answer, run.engine, p, p.id, greedy) for p in heldout(run.recipe)
        },
        keys=keys,
        inputs=[],
        adapters=adapters,
        summary=lambda found: {"answers": len(found)},
    )

    def reviews() -> Items[HeldoutResult]:
        prompts = heldout(run.recipe)
        logps = cache(lambda: _base_logps(run, prompts, answers.by_id))

        async def review(number: int, p: Prompt) -> HeldoutResult:
            answer, wanted = answers.by_id[p.id], number < settings.review
            logp = logps().get(p.id)
            return await review_heldout(run.engine, p, answer, settings, wanted, logp)

        return {p.id: partial(review, number, p) for number, p in enumerate(prompts)}

    def summary(results: Sequence[HeldoutResult]) -> Summary:
        found = scores(results, HELDOUT_POINTS, run.recipe.seed)
        plain = {name: asdict(score) for name, score in found.items()}
        at.write_metrics("heldout", plain)
        return {"answers_that_count": plain["answers_that_count"]["value"], "scores": plain}

    at.each(
        "heldout",
        HeldoutResult,
        reviews,
        keys=keys,
        inputs=[answers],
        adapters=adapters,
        summary=summary,
    )


def heldout(recipe: Recipe) -> list[Prompt]:
    """The prompts that are scored, the same for every checkpoint and every seed."""
    return builtin_prompts(recipe.prompts, recipe.seed, "heldout", recipe.evaluate.prompts)


def _base_logps(
    run: Run, prompts: Sequence[Prompt], answers: Mapping[str, Response]
) -> dict[str, float | None]:
    """Mean log p per token of each answer under the bare base: how far the model has moved."""
    if run.make_engine is not None:  # a scripted engine has no model
        return {}
    from spar_lite.train.logps import score_replies

    chats = [(answer_messages(p.text), answers[p.id].text, answers[p.id].finished) for p in prompts]
    found = score_replies(run.policy, "base", chats)
    return {p.id: total / n if n else None for p, (total, n) in zip(prompts, found, strict=True)}


def keep_better(run: Run, number: int) -> None:
    """Decide whose adapters the next iteration starts from (``iterate.keep``)."""
    recipe, at = run.recipe, StepFolder(run, f"iteration-{number}")
    if recipe.iterate.keep == "always" or not recipe.evaluate.prompts:
        return
    start = standing(recipe, run.folder, number - 1)
    names = list(dict.fromkeys((start, start_folder(recipe), at.name)))

    def decide() -> Summary:
        results = {n: StageFile(run.folder / n, "heldout", HeldoutResult).load() for n in names}
        before, after = results[start], results[at.name]
        change = paired_change(counts(before), counts(after), recipe.seed).difference
        why = []
        if change.value < 0:
            why.append(f"answers that count changed by {100 * change.value:+.1f} points")
        # Each step may be within the noise of the one before, and the sum of them is not.
        for name in names[:-1]:
            said = alarms(results[name], after, recipe.seed)
            why += [f"{what} since {name}" for what in said if what.startswith(ANSWERS)]
        # A run that is scored only afterwards has gone on from this one already.
        worse = bool(why) and not any(run.folder.glob(f"iteration-{number + 1}/responses.*"))
        if worse:
            run.screen.say(
                f"{at.name}: {'; '.join(why)}, so "
                f"the adapters of {start} stay (iterate.keep: always goes on with the new ones)"
            )
        last = kept_after(recipe, run.folder, number - 1)
        return {"kept": last if worse else number, "change": asdict(change), "why": why}

    files = [run.folder / name / "heldout.jsonl" for name in names]
    at.report("keep", decide, keys=["iterate"], inputs=files, unit="decision")


# --- IFEval ---------------------------------------------------------------------------------------


def score_ifeval(run: Run, name: str, iteration: int | None) -> None:
    """Score the base (None), the warm-up (0) or what stands after an iteration, if asked for.

    Prompts, files and scores are those of ``spar-lite eval ifeval``, in RUN/eval; greedy decoding.
    """
    recipe, settings = run.recipe, run.recipe.evaluate
    if not settings.ifeval:
        return
    adapters = adapters_after(recipe, run.folder, iteration)
    place = "base" if iteration is None else standing(recipe, run.folder, iteration)

    def work() -> Summary:
        run.use_adapters(adapters)
        loaded = {role: path for role, path in zip(ROLES, adapters, strict=True) if path}
        target = Target(f"{run.folder} {place}", recipe, run.folder / "eval" / place, loaded)
        job = Job(target, target.home, run.screen, run.open_engine, bar=f"{name}/ifeval")
        plan = job.plan("greedy", 1, settings.ifeval_tokens)
        card = evaluate(job, Ifeval(ifeval_prompts(recipe), plan, IFEVAL_FILES))
        found, strict = card["scores"], "prompt_level_strict_acc"
        return {"checkpoint": place, strict: found[strict]["value"], "scores": found}

    keys = [*MODEL, "evaluate.ifeval", "evaluate.ifeval_data", "evaluate.ifeval_tokens"]
    if iteration is not None:
        keys.append("bootstrap")
    files = [run.folder / "eval" / place / f"{IFEVAL_FILES}*"]
    StepFolder(run, name).report("ifeval", work, keys=keys, inputs=[adapters], leaves=files)


def ifeval_prompts(recipe: Recipe) -> Sequence[VerifiedPrompt]:
    """The prompts that the recipe asks for; the verifiers take every one of them.

    Raises:
        SparError: the extra, NLTK's data or the prompts are not there.
        RecipeError: there are fewer prompts than asked for.
    """
    count, path = recipe.evaluate.ifeval, recipe.evaluate.ifeval_data
    found = read_prompts(Ifeval, Path(path) if path else None, "evaluate.ifeval_data: FILE")
    if len(found) < count:
        raise RecipeError(f"evaluate.ifeval wants {count} prompts, found {len(found)}.")
    return found[:count]
