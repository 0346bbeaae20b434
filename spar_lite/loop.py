"""SPaR's loop in the paper's order (arXiv 2412.11605, section 2.3): one resumable step a line.

A step makes its records, or finds them made: stop a run anywhere, and the same command goes on.
What is done for one prompt stands in the file of that name: ``sample``, ``judge``, ``search``,
``pairs``. What all steps have in common is in ``steps``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spar_lite.ablations import Others, Played, other_answers, pairs_of
from spar_lite.data.evolve import EVOLVE, check_prompts, loop_prompts
from spar_lite.evaluation.audit import audit_summary, iteration_metrics
from spar_lite.evaluation.scoring import ifeval_prompts, keep_better, score, score_ifeval
from spar_lite.judge import judge_answer
from spar_lite.pairs import (
    choose_negatives,
    passed_answers,
    refiner_examples,
)
from spar_lite.recipe import Recipe, Rft
from spar_lite.records import (
    Judgement,
    PreferencePair,
    Prompt,
    Response,
    TrainingExample,
    Tree,
    stable_seed,
)
from spar_lite.run import Adapters, Run, Screen, Summary, adapters_after, start_folder
from spar_lite.sample import sample_answer
from spar_lite.search import search_tree
from spar_lite.steps import Records, StepFolder
from spar_lite.tracking import check_tracker
from spar_lite.warmup import ALONE, fit, fit_pairs, kinds, warm_up


def spar(run: Run) -> None:
    """The whole run: the base's score, the warm-up, the iterations; each checkpoint is scored."""
    prepare(run)
    for number in range(1, run.recipe.iterations + 1):
        train(run, number, self_play(run, number))
        score(run, f"iteration-{number}", number)
        keep_better(run, number)
    if last := run.recipe.iterations:
        score_ifeval(run, f"iteration-{last}", last)


def explore(run: Run) -> None:
    """The run until iteration 1 has played and nothing has learnt from it yet."""
    prepare(run)
    self_play(run, 1)


def prepare(run: Run) -> None:
    """All that comes before iteration 1."""
    score(run, "base", None)
    score_ifeval(run, "base", None)
    if start_folder(run.recipe) == "bootstrap":
        warm_up(run)
        score(run, "bootstrap", 0)
        score_ifeval(run, "bootstrap", 0)


def execute(run: Run) -> dict[str, Summary]:
    """Do what is left of a run; return every step's summary by label.

    Raises:
        StoreError: the folder holds steps that were made with other recipe values.
        SparError: IFEval is asked for, and its verifiers or prompts are not there; or the prompts
            of the iterations are not, or the tracker of ``log.to``.
    """
    left = run.unfinished(spar)  # what is missing is said before the first step
    if any(label.endswith("/ifeval") for label in left):
        ifeval_prompts(run.recipe)
    if left:
        check_tracker(run.recipe.log)
        check_prompts(run)
    run.work(spar)
    return summaries(run.recipe, run.folder)


def summaries(recipe: Recipe, folder: Path) -> dict[str, Summary]:
    """What every finished step of a run noted when it ended, by label, in order."""
    return Run(recipe, folder, Screen()).summaries(spar)


class Found(NamedTuple):
    """What an iteration's self-play finds out: answers, judgements, refinements."""

    prompts: Records[Prompt]
    responses: Records[Response]
    judgements: Records[Judgement]
    trees: Records[Tree]
    others: Others | None

    def within(self, limit: int) -> Played:
        """The part to learn from: that of the first prompts, up to ``iterate.tokens``."""
        return Played(*self[:4]).within(limit, self.others)


def self_play(run: Run, number: int) -> Found:
    """Self-play: actor and refiner, as they are, make the data by which both become better."""
    recipe, engine, at = run.recipe, run.engine, StepFolder(run, f"iteration-{number}")
    start = adapters_after(recipe, run.folder, number - 1)
    seed, judge, search = stable_seed(recipe.seed, at.name), recipe.judge, recipe.search
    prompts = loop_prompts(at, number)

    # 1. The actor answers every prompt K times (2.3.1).
    responses = at.each(
        "responses",
        Response,
        lambda: {
            f"{p.id}/{k}": partial(sample_answer, engine, p, f"{p.id}/{k}", recipe.sample)
            for p in prompts
            for k in range(recipe.sample.k)
        },
        keys=["bootstrap", *EVOLVE, "sample", *(["iterate.keep"] if number > 1 else [])],
        inputs=[prompts],
        adapters=start,
        summary=partial(_answered, run),
    )
    # 2. The refiner judges every answer by N votes (2.3.1).
    judgements = at.each(
        "judgements",
        Judgement,
        lambda: {
            r.id: partial(judge_answer, engine, prompts.by_id[r.prompt_id], r.text, r.id, judge)
            for r in responses
        },
        keys=["judge"],
        inputs=[prompts, responses],
        adapters=start,
        summary=_judged,
    )
    # 3. and 4. A failed answer of each prompt becomes the root of a tree of refinements (2.3.2).
    trees = at.each(
        "trees",
        Tree,
        lambda: {
            p.id: partial(search_tree, engine, p, root, judgements.by_id[root.id], search, judge)
            for p, root in choose_negatives(prompts, responses, judgements.by_id, seed)
            if search.strategy != "none"
        },
        keys=["judge", "search"],
        inputs=[prompts, responses, judgements],
        adapters=start,
        unit="trees",
        summary=_searched,
    )
    return Found(prompts, responses, judgements, trees, other_answers(at, number, prompts))


def train(run: Run, number: int, found: Found) -> None:
    """Both adapters learn from what self-play found."""
    recipe, at = run.recipe, StepFolder(run, f"iteration-{number}")
    start = adapters_after(recipe, run.folder, number - 1)
    seed, limit = stable_seed(recipe.seed, at.name), recipe.iterate.tokens
    made: list[Records[Any]] = [*found[:4]]
    every = [*made, *(found.others or ())]  # all of it decides who is within a limit of tokens
    # 5. An accepted refinement is preferred to the answer at its root (2.3.3).
    pairs = at.once(
        "pairs",
        PreferencePair,
        lambda: pairs_of(recipe, seed, _learnt_from(at, found), found.others),
        keys=[
            *("pairs", "iterate.tokens", "iterate.pairs"),
            *(["dpo.interfering"] if recipe.iterate.pairs else []),  # which ones are counted
        ],
        inputs=every,
        summary=_paired,
    )
    at.report("audit", lambda: _audit(at, made), inputs=[*made, pairs], unit="report")
    # The refiner learns accepted refinements, and critiques on which the votes disagreed (2.3.4).
    examples = at.once(
        "refiner_examples",
        TrainingExample,
        lambda: _refiner_examples(found.within(limit), recipe.rft, seed),
        keys=["rft", "iterate.tokens"],
        inputs=made,
        summary=kinds,
    )
    # 6. DPO for the actor (2.3.3).
    shared, passed = recipe.refiner == "shared", bool(recipe.dpo.passed)
    answers = every if limit else [found.responses, found.judgements]
    actor = at.train(
        "actor",
        lambda: _train_actor(at, found, pairs),
        keys=["dpo", "actor", *(["iterate.tokens"] if passed else [])],
        inputs=[pairs, *answers] if passed else [pairs],
        adapters=start,
        name=ALONE if shared else "",
    )
    # 7. Supervised fine-tuning for the refiner (2.3.4).
    if recipe.refiner == "frozen":
        at.copy("refiner", start.refiner)
        return
    refiner = at.train(
        "refiner",
        lambda: fit(at, "refiner", [list(examples)], recipe.rft),
        keys=["rft"],
        inputs=[examples],
        adapters=Adapters(actor, actor if shared else start.refiner),
    )
    if shared:
        at.copy("actor", refiner)


def _learnt_from(at: StepFolder, found: Found) -> Played:
    """The prompts within ``iterate.tokens``; that they are none is said."""
    limit = at.run.recipe.iterate.tokens
    played = found.within(limit)
    if limit and not played.prompts:
        at.run.screen.say(
            f"{at.name}: iterate.tokens: {limit} is less than its first prompt took, so nothing is "
            "learnt from it; it wants more, or 0 for all"
        )
    return played


def _refiner_examples(played: Played, settings: Rft, seed: int) -> list[TrainingExample]:
    return refiner_examples(
        played.asked, played.responses, played.judged, played.trees, settings, seed
    )


def _train_actor(at: StepFolder, found: Found, made: Records[PreferencePair]) -> Summary:
    recipe, pairs = at.run.recipe, list(made)
    passed: list[TrainingExample] = []
    if recipe.dpo.passed:
        played = found.within(recipe.iterate.tokens)
        seed = stable_seed(recipe.seed, at.name, "dpo")
        passed = passed_answers(
            played.asked, played.responses, played.judged, recipe.dpo.passed, seed
        )
    for records in (*found[:4], *(found.others or ()), made):
        records.release()
    if recipe.actor.method == "rft":
        chosen = [
            TrainingExample(p.id, "chosen answer", p.prompt, p.chosen)
            for p in pairs
            if recipe.dpo.interfering or not p.interferes
        ]
        return fit(at, "actor", [chosen + passed], recipe.dpo)
    return fit_pairs(at, pairs, passed)


# --- What is said of a step when it ends ----------------------------------------------------------


def _answered(run: Run, responses: Sequence[Response]) -> Summary:
    blank = sum(not r.text.strip() for r in responses)
    if blank > len(responses) / 2:
        run.screen.say(
            f"{blank} of {len(responses)} answers are blank. Does the model think, and is cut off? "
            "Raise sample.max_new_tokens, or set model.chat_template.enable_thinking=false"
        )
    cut_off = sum(not r.finished for r in responses)
    return {"answers": len(responses), "cut_off": cut_off, "blank": blank}


def _judged(judgements: Sequence[Judgement]) -> Summary:
    verdicts = Counter(j.verdict for j in judgements)
    return {
        "passed": verdicts[True],
        "failed": verdicts[False],
        "without_judgement": verdicts[None],
    }


def _searched(trees: Sequence[Tree]) -> Summary:
    return {
        "trees": len(trees),
        "solved": sum(t.accepted is not None for t in trees),
        "nodes": sum(len(t.nodes) - 1 for t in trees),
        "deepest": max((t.depth for t in trees), default=0),
    }


def _paired(pairs: Sequence[PreferencePair]) -> Summary:
    counts = Counter(name for pair in pairs for name in pair.interferes)
    return {
        "pairs": len(pairs),
        "interfering": sum(bool(pair.interferes) for pair in pairs),
        "interference": dict(sorted(counts.items())),
    }


def _audit(at: StepFolder, seen: Sequence[Records[Any]]) -> Summary:
    for records in seen:  # it reads them by itself
        records.release()
    found = iteration_metrics(at.folder)
    at.write_metrics("loop", found)
    return audit_summary(found)
