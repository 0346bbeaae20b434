"""One iteration's stages, in the paper's order; each reads earlier records and writes its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from spar_lite.engine import Engine
from spar_lite.errors import RecipeError
from spar_lite.evolve import Evolution, evolve
from spar_lite.instructions import iteration_prompts
from spar_lite.judge import judge_answer
from spar_lite.metrics import iteration_metrics
from spar_lite.pairs import (
    choose_negatives,
    passed_answers,
    preference_pairs,
    refiner_examples,
)
from spar_lite.pipeline.common import (
    MODEL,
    Stage,
    Summary,
    checkpoint,
    file_of,
    fit,
    keep,
    kinds,
    report,
    step_counter,
    write_metrics,
)
from spar_lite.recipe import Recipe
from spar_lite.records import (
    Judgement,
    PreferencePair,
    Prompt,
    Response,
    TrainingExample,
    Tree,
    stable_seed,
)
from spar_lite.remote import open_remote
from spar_lite.run import Run, by_id
from spar_lite.sample import sample_answer
from spar_lite.search import search_tree


def iteration_stages(recipe: Recipe, number: int) -> Iterator[Stage]:
    """Sample, judge, search, pair, train both."""
    folder = f"iteration-{number}"

    def stage(name: str, keys: tuple[str, ...], work: Callable[[Run, int], Summary]) -> Stage:
        return Stage(folder, name, keys, lambda run: work(run, number))

    prompts: tuple[str, ...] = ("seed", "prompts")
    responses: tuple[str, ...] = (*MODEL, "bootstrap", "prompts", "evolve", "sample")
    if number > 1:
        responses = (*responses, "iterate")
    judgements = (*responses, "judge")
    trees = (*judgements, "search")
    if recipe.evolve.way != "none":
        yield stage("plain_prompts", prompts, _plain_prompts)
        keys = (*MODEL, "prompts", "evolve")
        yield stage("evolutions", keys, _evolutions)
        prompts = keys
    yield stage("prompts", prompts, _prompts)
    yield stage("responses", responses, _responses)
    yield stage("judgements", judgements, _judgements)
    yield stage("trees", trees, _trees)
    yield stage("pairs", trees, _pairs)
    yield stage("audit", trees, _audit)
    yield stage("refiner_examples", (*trees, "rft"), _refiner_examples)
    yield stage("actor", (*trees, "dpo"), _train_actor)
    yield stage("refiner", (*trees, "rft"), _train_refiner)


def _plain_prompts(run: Run, number: int, name: str = "plain_prompts") -> Summary:
    prompts, dropped = iteration_prompts(run.recipe.prompts, run.recipe.seed, number)
    run.screen.start(f"iteration-{number}/{name}", len(prompts), "prompts")
    file_of(run, f"iteration-{number}", name, Prompt).finish(prompts)
    found: Summary = {"prompts": len(prompts)}
    return found | ({"too_close_to_benchmark": dropped} if run.recipe.prompts.decontaminate else {})


def _evolutions(run: Run, number: int) -> Summary:
    folder, recipe = f"iteration-{number}", run.recipe
    prompts = file_of(run, folder, "plain_prompts", Prompt).load()
    engine: Engine | None = None
    if recipe.evolve.way == "model":
        run.use_adapters(None, None)
        engine = run.engine
    elif recipe.evolve.way == "openai":
        engine = open_remote(recipe.evolve)
    items = [(p.id, partial(evolve, engine, p, recipe.evolve, recipe.seed)) for p in prompts]
    file = file_of(run, folder, "evolutions", Evolution)
    found = run.collect(f"{folder}/evolutions", file, items, "prompts")
    return {
        "evolved": sum(e.text is not None for e in found),
        "said_none": sum(e.said_none for e in found),
        "unreadable": sum(e.unreadable for e in found),
        "left_out": sum(e.apply(p) is None for p, e in zip(prompts, found, strict=True)),
    }


def _prompts(run: Run, number: int) -> Summary:
    if run.recipe.evolve.way == "none":
        return _plain_prompts(run, number, "prompts")
    folder = f"iteration-{number}"
    plain = file_of(run, folder, "plain_prompts", Prompt).load()
    found = by_id(file_of(run, folder, "evolutions", Evolution).load())
    prompts = [new for p in plain if (new := found[p.id].apply(p)) is not None]
    run.screen.start(f"{folder}/prompts", len(prompts), "prompts")
    kept = {p.id for p in prompts}
    _mind_left_out(run, number, [found[p.id] for p in plain if p.id not in kept], len(plain))
    file_of(run, folder, "prompts", Prompt).finish(prompts)
    return {"prompts": len(prompts)}


def _mind_left_out(run: Run, number: int, out: list[Evolution], plain: int) -> None:
    """Say it where most of the plain prompts are left out; stop where all are."""
    if len(out) <= plain / 2:
        return
    counts = {
        "said None": sum(e.said_none for e in out),
        "had no readable reply": sum(e.unreadable for e in out),
        "that no constraint fits": sum(not e.replies for e in out),
    }
    why = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    advice = "Raise evolve.tries, lower evolve.others or choose another model or other prompts"
    if run.recipe.evolve.way == "constraints":
        advice = "Allow more evolve.kinds or choose other prompts"
    if len(out) < plain:
        share = f"{len(out)} of {plain} prompts are left out of iteration {number}"
        run.screen.say(f"{share}: {why}. {advice} to keep more")
        return
    made = checkpoint(run.recipe, run.folder, "refiner", number - 1)
    keep_it = f" -o bootstrap.start_from={run.folder} there keeps what is trained." if made else ""
    raise RecipeError(
        f"evolve: iteration {number} wants prompts with constraints, found none of {plain}: {why}. "
        f"The replies are in {run.folder}/iteration-{number}/evolutions.jsonl. {advice}, "
        f"with another --run folder.{keep_it}"
    )


def _responses(run: Run, number: int) -> Summary:
    _start_of(run, number)
    folder = f"iteration-{number}"
    prompts = file_of(run, folder, "prompts", Prompt).load()
    settings = run.recipe.sample
    items = [
        (
            f"{p.id}/{k}",
            lambda p=p, k=k: sample_answer(run.engine, p, f"{p.id}/{k}", settings),
        )
        for p in prompts
        for k in range(settings.k)
    ]
    file = file_of(run, folder, "responses", Response)
    responses = run.collect(f"{folder}/responses", file, items, "answers")
    blank = sum(not r.text.strip() for r in responses)
    if blank > len(responses) / 2:
        run.screen.say(
            f"{blank} of {len(responses)} answers are blank. Does the model think, and is cut off? "
            "Raise sample.max_new_tokens, or set model.chat_template.enable_thinking=false"
        )
    cut_off = sum(not r.finished for r in responses)
    return {"answers": len(responses), "cut_off": cut_off, "blank": blank}


def _judgements(run: Run, number: int) -> Summary:
    _start_of(run, number)
    folder = f"iteration-{number}"
    prompts = by_id(file_of(run, folder, "prompts", Prompt).load())
    responses = file_of(run, folder, "responses", Response).load()
    settings = run.recipe.judge
    items = [
        (
            r.id,
            lambda r=r: judge_answer(run.engine, prompts[r.prompt_id], r.text, r.id, settings),
        )
        for r in responses
    ]
    file = file_of(run, folder, "judgements", Judgement)
    judged = run.collect(f"{folder}/judgements", file, items, "answers")
    return {
        "passed": sum(j.verdict is True for j in judged),
        "failed": sum(j.verdict is False for j in judged),
        "without_judgement": sum(j.verdict is None for j in judged),
    }


def _trees(run: Run, number: int) -> Summary:
    _start_of(run, number)
    folder = f"iteration-{number}"
    prompts = file_of(run, folder, "prompts", Prompt).load()
    responses = file_of(run, folder, "responses", Response).load()
    judgements = by_id(file_of(run, folder, "judgements", Judgement).load())
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
    trees = run.collect(f"{folder}/trees", file_of(run, folder, "trees", Tree), items, "trees")
    return {
        "trees": len(trees),
        "solved": sum(t.accepted is not None for t in trees),
        "nodes": sum(len(t.nodes) - 1 for t in trees),
        "deepest": max((t.depth for t in trees), default=0),
    }


def _pairs(run: Run, number: int) -> Summary:
    folder = f"iteration-{number}"
    prompts = by_id(file_of(run, folder, "prompts", Prompt).load())
    responses = by_id(file_of(run, folder, "responses", Response).load())
    pairs = preference_pairs(prompts, responses, file_of(run, folder, "trees", Tree).load())
    run.screen.start(f"{folder}/pairs", len(pairs), "pairs")
    file_of(run, folder, "pairs", PreferencePair).finish(pairs)
    counts = Counter(name for pair in pairs for name in pair.interferes)
    return {
        "pairs": len(pairs),
        "interfering": sum(bool(pair.interferes) for pair in pairs),
        "interference": dict(sorted(counts.items())),
    }


def _audit(run: Run, number: int) -> Summary:
    folder = f"iteration-{number}"
    run.screen.start(f"{folder}/audit", 1, "report")
    found = iteration_metrics(run.folder / folder)
    write_metrics(run.folder / folder, "loop", found)
    program, trees, pairs = found["judge_against_program"], found["trees"], found["pairs"]
    return {
        "readable_votes": found["votes"]["readable_share"],
        "judge_agreement": program["accuracy"],
        "always_no": program["always_no_accuracy"],
        "false_pass": program["false_pass"],
        "false_fail": program["false_fail"],
        "by_kind": {kind: part["accuracy"] for kind, part in found["judge_by_kind"].items()},
        "readable_refinements": trees["readable_refinements"],
        "accepted_refinements": trees["accepted_refinements"],
        "nodes_per_tree": trees["nodes_per_tree"],
        "solved_by_depth": trees["solved_by_depth"],
        "refined_truly": found["accepted"]["refined"],
        "others_truly": found["accepted"]["others"],
        "accepted_truly": found["accepted"]["truly"],
        "truly_by_votes": found["accepted"]["truly_by_votes"],
        "failed_by": found["failed_by"],
        "accepted_by": found["accepted_by"],
        "truly_better": pairs["truly_better"],
        "chosen_truly": pairs["chosen_truly"],
        "refined_likeness": pairs["refined_likeness"],
        "sampled_likeness": pairs["sampled_likeness"],
    }


def _refiner_examples(run: Run, number: int) -> Summary:
    folder = f"iteration-{number}"
    rows = refiner_examples(
        by_id(file_of(run, folder, "prompts", Prompt).load()),
        file_of(run, folder, "responses", Response).load(),
        by_id(file_of(run, folder, "judgements", Judgement).load()),
        file_of(run, folder, "trees", Tree).load(),
        run.recipe.rft,
        stable_seed(run.recipe.seed, folder),
    )
    run.screen.start(f"{folder}/refiner_examples", len(rows), "examples")
    file_of(run, folder, "refiner_examples", TrainingExample).finish(rows)
    return kinds(rows)


def _train_actor(run: Run, number: int) -> Summary:
    from spar_lite.train import train_actor

    _start_of(run, number)
    folder = f"iteration-{number}"
    found = file_of(run, folder, "pairs", PreferencePair).load()
    pairs = [p for p in found if run.recipe.dpo.interfering or not p.interferes]
    seed = stable_seed(run.recipe.seed, folder, "dpo")
    passed = passed_answers(
        by_id(file_of(run, folder, "prompts", Prompt).load()),
        file_of(run, folder, "responses", Response).load(),
        by_id(file_of(run, folder, "judgements", Judgement).load()),
        run.recipe.dpo.passed,
        seed,
    )
    step = step_counter(run, f"{folder}/actor", [len(pairs) + len(passed)], run.recipe.dpo)
    summary: Summary = {"examples": 0}
    if pairs:
        training = train_actor(run.policy, pairs, run.recipe.dpo, seed, step, passed)
        summary = {"passed": len(passed)} | report(training)
    else:
        run.screen.say("no preference pairs: the actor stays as it is")
    return summary | keep(run, folder, "actor")


def _train_refiner(run: Run, number: int) -> Summary:
    _start_of(run, number, actor=number)
    folder = f"iteration-{number}"
    rows = file_of(run, folder, "refiner_examples", TrainingExample).load()
    return fit(run, folder, "refiner", rows, settings=run.recipe.rft)


def _start_of(run: Run, number: int, actor: int | None = None) -> None:
    """Put in place the adapters with which an iteration begins."""
    last = number - 1
    run.use_adapters(
        checkpoint(run.recipe, run.folder, "actor", last if actor is None else actor),
        checkpoint(run.recipe, run.folder, "refiner", last),
    )
