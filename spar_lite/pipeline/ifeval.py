"""IFEval as part of a run's evidence: the base, the warm-up and what the run ends with answer it.

Prompts, files and scores are those of ``spar-lite eval ifeval``, in RUN/eval; greedy decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spar_lite.decode import make_plan
from spar_lite.errors import RecipeError
from spar_lite.evaluate.ifeval import (
    IfevalPrompt,
    check_prompts,
    hub_ifeval,
    read_ifeval,
    verifiers,
)
from spar_lite.evaluation import Job, eval_ifeval
from spar_lite.pipeline.common import MODEL, Stage, Summary, checkpoint, standing
from spar_lite.recipe import Recipe
from spar_lite.records import Role
from spar_lite.run import Run
from spar_lite.target import ROLES, Target

RESULTS = "ifeval-run"
"""Name of the files, which are not those of ``spar-lite eval ifeval``: its settings may differ."""

STRICT = "prompt_level_strict_acc"


def ifeval_stages(recipe: Recipe, folder: str, iteration: int | None) -> Iterator[Stage]:
    """The stage that scores the base (None), the warm-up (0) or what stands after an iteration."""
    if not recipe.evaluate.ifeval:
        return
    own = ("ifeval", "ifeval_data", "ifeval_tokens")
    keys: tuple[str, ...] = (*MODEL, *(f"evaluate.{name}" for name in own))
    if iteration is not None:
        keys = (*keys, "bootstrap")
    if iteration:
        keys = (*keys, "prompts", "evolve", "sample", "judge", "search", "dpo", "rft", "iterate")
    yield Stage(folder, "ifeval", keys, lambda run: _ifeval(run, folder, iteration))


def ifeval_prompts(recipe: Recipe) -> list[IfevalPrompt]:
    """The prompts that the recipe asks for; the verifiers take every one of them.

    Raises:
        SparError: the extra, NLTK's data or the prompts are not there.
        RecipeError: there are fewer prompts than asked for.
    """
    settings, utils = recipe.evaluate, verifiers()
    path = settings.ifeval_data
    found = read_ifeval(Path(path)) if path else hub_ifeval("evaluate.ifeval_data: FILE")
    if len(found) < settings.ifeval:
        raise RecipeError(f"evaluate.ifeval wants {settings.ifeval} prompts, found {len(found)}.")
    prompts = found[: settings.ifeval]
    check_prompts(utils, prompts)
    return prompts


def _ifeval(run: Run, folder: str, iteration: int | None) -> Summary:
    recipe, name, adapters = run.recipe, "base", dict[Role, Path]()
    if iteration is not None:
        name = standing(recipe, run.folder, iteration)
        found = {role: checkpoint(recipe, run.folder, role, iteration) for role in ROLES}
        adapters = {role: path for role, path in found.items() if path is not None}
    run.use_adapters(adapters.get("actor"), adapters.get("refiner"))
    target = Target(f"{run.folder} {name}", recipe, run.folder / "eval" / name, adapters)
    job = Job(
        target,
        target.home,
        run.screen,
        lambda *_: run.engine,  # type: ignore[arg-type]
        bar=f"{folder}/ifeval",
    )
    plan = make_plan(recipe, "greedy", 1, job.role, recipe.evaluate.ifeval_tokens)
    card = eval_ifeval(job, ifeval_prompts(recipe), plan, RESULTS)
    scores = card["scores"]
    return {"checkpoint": name, STRICT: scores[STRICT]["value"], "scores": scores}
