"""The loop as a table of stages: order, iteration, resume, ledger.

Each stage reads records of earlier ones and writes its own; a finished stage is never done again,
and a recipe that changed under it is an error. The stages' work is in the files they call.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spar_lite import bootstrap as warmup
from spar_lite.errors import StoreError
from spar_lite.evaluate import (
    HeldoutResult,
    answer_heldout,
    paired_difference,
    review_heldout,
    summarise,
)
from spar_lite.instructions import builtin_prompts, iteration_prompts
from spar_lite.judge import judge_answer
from spar_lite.metrics import iteration_metrics
from spar_lite.pairs import choose_negatives, preference_pairs, refiner_examples
from spar_lite.recipe import Decoding, Recipe, Training, dump_recipe, recipe_slice
from spar_lite.records import (
    Judgement,
    PreferencePair,
    Prompt,
    Response,
    Role,
    TrainingExample,
    Tree,
    stable_seed,
)
from spar_lite.run import Run, by_id
from spar_lite.sample import sample_answer
from spar_lite.search import search_tree
from spar_lite.store import Marker, StageFile, append_line, write_text

Summary = dict[str, Any]

MODEL = ("seed", "model", "prompts.source")
ROLLOUT = (*MODEL, "bootstrap")
TASKS = ("seed", "model", "prompts.kinds", "prompts.per_prompt")


@dataclass(frozen=True)
class Stage:
    """One step of a run: where it writes, which recipe keys it depends on, and its work."""

    folder: str
    name: str
    keys: tuple[str, ...]
    work: Callable[[Run], Summary]

    @property
    def label(self) -> str:
        """Name on the screen and in the ledger, such as "iteration-1/trees"."""
        return f"{self.folder}/{self.name}"


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a run, in order."""
    found = [*_heldout(recipe, "base", 0, fresh=True)]
    if recipe.bootstrap.source != "none":
        found += _bootstrap(recipe)
        found += _heldout(recipe, "bootstrap", 0)
    for number in range(1, recipe.iterations + 1):
        found += _iteration(recipe, number)
        found += _heldout(recipe, f"iteration-{number}", number)
    return found


def execute(run: Run) -> dict[str, Summary]:
    """Do what is left of a run; return every stage's summary by label.

    Raises:
        StoreError: the folder holds stages that were done with other recipe values.
    """
    saved = run.folder / "recipe.yaml"
    todo = [s for s in stages(run.recipe) if not _finished(run, s)]
    if not saved.exists() or todo:
        write_text(saved, dump_recipe(run.recipe))
    for stage in todo:
        _do(run, stage)
    return summaries(run.recipe, run.folder)


def summaries(recipe: Recipe, folder: Path) -> dict[str, Summary]:
    """What every finished stage noted when it ended, by label, in order."""
    found = {s.label: Marker(folder / s.folder, s.name).read() for s in stages(recipe)}
    return {label: summary for label, summary in found.items() if summary is not None}


def differences(recipe: Recipe, folder: Path) -> dict[str, Summary]:
    """Held-out score of each checkpoint against the one before, paired over the same prompts."""
    names = [s.folder for s in stages(recipe) if s.name == "heldout"]
    found: dict[str, list[HeldoutResult]] = {}
    for name in names:
        if Marker(folder / name, "heldout").read() is not None:
            found[name] = StageFile(folder / name, "heldout", HeldoutResult).load()
    done = list(found)
    pairs = list(itertools.pairwise(done))
    if len(done) > 2:
        pairs.append((done[0], done[-1]))
    return {
        f"{a} → {b}": asdict(paired_difference(found[a], found[b], recipe.seed)) for a, b in pairs
    }


def unfinished(run: Run) -> list[Stage]:
    """The stages still to do."""
    return [s for s in stages(run.recipe) if not _finished(run, s)]


def checkpoint(recipe: Recipe, folder: Path, role: Role, iteration: int) -> Path | None:
    """The adapter that ``role`` has after ``iteration`` (0: after the warm-up); None: fresh."""
    if iteration > 0:
        return folder / f"iteration-{iteration}" / role
    warmed = recipe.bootstrap.source != "none" and (role != "actor" or recipe.bootstrap.actor)
    return folder / "bootstrap" / role if warmed else None


def _finished(run: Run, stage: Stage) -> bool:
    """Whether a stage is done; an error if it was done under another recipe."""
    marker = Marker(run.folder / stage.folder, stage.name).read()
    if marker is None:
        return False
    now, then = recipe_slice(run.recipe, stage.keys), marker["recipe"]
    for key in sorted(set(now) | set(then)):
        if now.get(key) != then.get(key):
            raise StoreError(
                f"{run.folder}: {stage.label} was finished with {key}: {then.get(key)!r}, the "
                f"recipe now says {now.get(key)!r}. To go on with this run: "
                f"-o '{key}={_yaml(then.get(key))}'. For the new value: another --run folder."
            )
    return True


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if value is True else str(value)


def _do(run: Run, stage: Stage) -> None:
    """Work one stage, then mark it finished, last of all."""
    begin = time.perf_counter()
    run.take_usage()
    run.ledger(stage=stage.label, event="start")
    summary = stage.work(run)
    cost = {"seconds": round(time.perf_counter() - begin, 2), **run.take_usage()}
    cost["peak_memory_bytes"] = run.peak_memory()
    kept = {"recipe": recipe_slice(run.recipe, stage.keys), **summary, **cost}
    Marker(run.folder / stage.folder, stage.name).write(kept)
    run.ledger(stage=stage.label, event="done", **summary, **cost)
    run.screen.end(describe(summary))


def describe(summary: Summary) -> str:
    """A summary in a few words, for the screen."""
    words = []
    for key, value in summary.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = f"{value:.3g}" if isinstance(value, float) else str(value)
            words.append(f"{number} {key.replace('_', ' ')}")
    return ", ".join(words)


# --- warm-up ---------------------------------------------------------------------------------


def _bootstrap(recipe: Recipe) -> Iterator[Stage]:
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
    _file(run, "bootstrap", "prompts", Prompt).finish(prompts)
    return {"prompts": len(prompts)}


def _warmup_answers(run: Run) -> Summary:
    run.use_adapters(None, None)
    prompts = _file(run, "bootstrap", "prompts", Prompt).load()
    limit = run.recipe.bootstrap.max_new_tokens
    decoding = Decoding(temperature=0.8, top_p=0.95, max_new_tokens=limit)
    items = [
        (f"{p.id}/0", lambda p=p: sample_answer(run.engine, p, f"{p.id}/0", decoding, "base"))
        for p in prompts
    ]
    answers = run.collect(
        "bootstrap/answers", _file(run, "bootstrap", "answers", Response), items, "answers"
    )
    return {"answers": len(answers)}


def _warmup_examples(run: Run) -> Summary:
    settings = run.recipe.bootstrap
    if settings.source == "constraints":
        prompts = _file(run, "bootstrap", "prompts", Prompt).load()
        answers = _file(run, "bootstrap", "answers", Response).load()
        rows = warmup.lessons(prompts, answers, run.recipe.seed)
    else:
        rows = warmup.released_rows(Path(settings.source))
    rows = rows[: settings.examples or None]
    run.screen.start("bootstrap/examples", len(rows), "examples")
    _file(run, "bootstrap", "examples", TrainingExample).finish(rows)
    return _kinds(rows)


def _warm_up(run: Run, role: Role) -> Summary:
    rows = _file(run, "bootstrap", "examples", TrainingExample).load()
    own = warmup.actor_rows(rows) if role == "actor" else warmup.refiner_rows(rows)
    start: dict[Role, Path | None] = {"actor": None, "refiner": None}
    if role == "actor":
        start["refiner"] = checkpoint(run.recipe, run.folder, "refiner", 0)
    run.use_adapters(start["actor"], start["refiner"])
    return _fit(run, "bootstrap", role, own, run.recipe.bootstrap)


# --- one iteration ---------------------------------------------------------------------------


def _iteration(recipe: Recipe, number: int) -> Iterator[Stage]:
    folder = f"iteration-{number}"

    def stage(name: str, keys: tuple[str, ...], work: Callable[[Run, int], Summary]) -> Stage:
        return Stage(folder, name, keys, lambda run: work(run, number))

    prompts = ("seed", "prompts")
    responses = (*ROLLOUT, "prompts", "sample")
    judgements = (*responses, "judge")
    trees = (*judgements, "search")
    yield stage("prompts", prompts, _prompts)
    yield stage("responses", responses, _responses)
    yield stage("judgements", judgements, _judgements)
    yield stage("trees", trees, _trees)
    yield stage("pairs", trees, _pairs)
    yield stage("refiner_examples", (*trees, "rft"), _refiner_examples)
    yield stage("actor", (*trees, "dpo"), _train_actor)
    yield stage("refiner", (*trees, "rft"), _train_refiner)


def _prompts(run: Run, number: int) -> Summary:
    prompts = iteration_prompts(run.recipe.prompts, run.recipe.seed, number)
    run.screen.start(f"iteration-{number}/prompts", len(prompts), "prompts")
    _file(run, f"iteration-{number}", "prompts", Prompt).finish(prompts)
    return {"prompts": len(prompts)}


def _responses(run: Run, number: int) -> Summary:
    _start_of(run, number)
    folder = f"iteration-{number}"
    prompts = _file(run, folder, "prompts", Prompt).load()
    settings = run.recipe.sample
    items = [
        (
            f"{p.id}/{k}",
            lambda p=p, k=k: sample_answer(run.engine, p, f"{p.id}/{k}", settings),
        )
        for p in prompts
        for k in range(settings.k)
    ]
    file = _file(run, folder, "responses", Response)
    responses = run.collect(f"{folder}/responses", file, items, "answers")
    return {"answers": len(responses), "cut_off": sum(not r.finished for r in responses)}


def _judgements(run: Run, number: int) -> Summary:
    _start_of(run, number)
    folder = f"iteration-{number}"
    prompts = by_id(_file(run, folder, "prompts", Prompt).load())
    responses = _file(run, folder, "responses", Response).load()
    settings = run.recipe.judge
    items = [
        (
            r.id,
            lambda r=r: judge_answer(run.engine, prompts[r.prompt_id], r.text, r.id, settings),
        )
        for r in responses
    ]
    file = _file(run, folder, "judgements", Judgement)
    judged = run.collect(f"{folder}/judgements", file, items, "answers")
    return {
        "passed": sum(j.verdict is True for j in judged),
        "failed": sum(j.verdict is False for j in judged),
        "without_judgement": sum(j.verdict is None for j in judged),
    }


def _trees(run: Run, number: int) -> Summary:
    _start_of(run, number)
    folder = f"iteration-{number}"
    prompts = _file(run, folder, "prompts", Prompt).load()
    responses = _file(run, folder, "responses", Response).load()
    judgements = by_id(_file(run, folder, "judgements", Judgement).load())
    seed = stable_seed(run.recipe.seed, folder)
    negatives = choose_negatives(prompts, responses, judgements, seed)
    recipe = run.recipe
    items = [
        (
            p.id,
            lambda p=p, n=n: search_tree(
                run.engine, p, n, judgements[n.id], recipe.search, recipe.judge
            ),
        )
        for p, n in negatives
    ]
    trees = run.collect(f"{folder}/trees", _file(run, folder, "trees", Tree), items, "trees")
    return {
        "trees": len(trees),
        "solved": sum(t.accepted is not None for t in trees),
        "nodes": sum(len(t.nodes) - 1 for t in trees),
        "deepest": max((t.depth for t in trees), default=0),
    }


def _pairs(run: Run, number: int) -> Summary:
    folder = f"iteration-{number}"
    prompts = by_id(_file(run, folder, "prompts", Prompt).load())
    pairs = preference_pairs(prompts, _file(run, folder, "trees", Tree).load())
    run.screen.start(f"{folder}/pairs", len(pairs), "pairs")
    _file(run, folder, "pairs", PreferencePair).finish(pairs)
    return {"pairs": len(pairs)}


def _refiner_examples(run: Run, number: int) -> Summary:
    folder = f"iteration-{number}"
    rows = refiner_examples(
        by_id(_file(run, folder, "prompts", Prompt).load()),
        _file(run, folder, "responses", Response).load(),
        by_id(_file(run, folder, "judgements", Judgement).load()),
        _file(run, folder, "trees", Tree).load(),
        run.recipe.rft,
        stable_seed(run.recipe.seed, folder),
    )
    run.screen.start(f"{folder}/refiner_examples", len(rows), "examples")
    _file(run, folder, "refiner_examples", TrainingExample).finish(rows)
    return _kinds(rows)


def _train_actor(run: Run, number: int) -> Summary:
    from spar_lite.train import train_actor

    _start_of(run, number)
    folder = f"iteration-{number}"
    pairs = _file(run, folder, "pairs", PreferencePair).load()
    run.screen.start(f"{folder}/actor", 0, "steps")
    seed = stable_seed(run.recipe.seed, folder, "dpo")
    step = _step_counter(run, f"{folder}/actor")
    summary: Summary = {"pairs": len(pairs)}
    if pairs:
        report = train_actor(run.policy, pairs, run.recipe.dpo, seed, step)
        summary = _report(report)
    else:
        run.screen.say("no preference pairs: the actor stays as it is")
    return summary | _keep(run, folder, "actor")


def _train_refiner(run: Run, number: int) -> Summary:
    _start_of(run, number, actor=number)
    folder = f"iteration-{number}"
    rows = _file(run, folder, "refiner_examples", TrainingExample).load()
    return _fit(run, folder, "refiner", rows, run.recipe.rft)


def _start_of(run: Run, number: int, actor: int | None = None) -> None:
    """Put in place the adapters with which an iteration begins."""
    last = number - 1
    run.use_adapters(
        checkpoint(run.recipe, run.folder, "actor", last if actor is None else actor),
        checkpoint(run.recipe, run.folder, "refiner", last),
    )


# --- held-out score --------------------------------------------------------------------------


def _heldout(recipe: Recipe, folder: str, iteration: int, fresh: bool = False) -> Iterator[Stage]:
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
    file = _file(run, folder, "heldout_answers", Response)
    answers = run.collect(f"{folder}/heldout_answers", file, items, "answers")
    return {"answers": len(answers)}


def _heldout_review(run: Run, folder: str, iteration: int | None) -> Summary:
    prompts = _heldout_adapters(run, iteration)
    answers = by_id(_file(run, folder, "heldout_answers", Response).load())
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
    file = _file(run, folder, "heldout", HeldoutResult)
    results = run.collect(f"{folder}/heldout", file, items, "answers")
    scores = {name: asdict(score) for name, score in summarise(results, run.recipe.seed).items()}
    metrics: Summary = {"checkpoint": folder, "heldout": scores}
    if iteration:
        metrics |= iteration_metrics(run.folder / folder)
    write_text(run.folder / folder / "metrics.jsonl", "")
    append_line(run.folder / folder / "metrics.jsonl", metrics)
    return {"constraints_met": scores["constraints_met"]["value"], "scores": scores}


# --- shared ----------------------------------------------------------------------------------


def _file(run: Run, folder: str, name: str, kind: type[Any]) -> StageFile[Any]:
    return StageFile(run.folder / folder, name, kind)


def _kinds(rows: list[TrainingExample]) -> Summary:
    counts: Summary = {"examples": len(rows)}
    for kind in sorted({row.kind for row in rows}):
        counts[kind.replace(" ", "_") + "s"] = sum(row.kind == kind for row in rows)
    return counts


def _fit(
    run: Run, folder: str, role: Role, rows: list[TrainingExample], settings: Training
) -> Summary:
    """Supervised training of one adapter, then save it."""
    from spar_lite.train import train_on_examples

    run.screen.start(f"{folder}/{role}", 0, "steps")
    summary: Summary = {"examples": len(rows)}
    if rows:
        seed = stable_seed(run.recipe.seed, folder, role)
        step = _step_counter(run, f"{folder}/{role}")
        summary = _report(train_on_examples(run.policy, role, rows, settings, seed, step))
    else:
        run.screen.say(f"no examples: the {role} stays as it is")
    return summary | _keep(run, folder, role)


def _keep(run: Run, folder: str, role: Role) -> Summary:
    run.policy.save(role, run.folder / folder / role)
    run.trained(role, run.folder / folder / role)
    other: Role = "refiner" if role == "actor" else "actor"
    return {"fingerprints": {r: run.policy.fingerprint(r) for r in (role, other)}}


def _report(report: Any) -> Summary:
    return {**{k: v for k, v in asdict(report).items() if k != "seconds"}}


def _step_counter(run: Run, label: str) -> Callable[[int, int, int], None]:
    """Turn a trainer's (step, total, tokens so far) into progress."""
    seen = {"step": 0, "tokens": 0}

    def count(step: int, total: int, tokens: int) -> None:
        if not seen["step"]:
            run.screen.start(label, total, "steps")
        run.screen.advance(step - seen["step"])
        run.screen.tokens(tokens - seen["tokens"])
        seen.update(step=step, tokens=tokens)

    return count
