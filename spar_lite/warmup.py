"""The warm-up before iteration 1, without a teacher: its steps, as the recipe says.

The base model answers short prompts several times, a program writes lessons from its answers
(``lessons.py``), and both adapters learn the formats and as much of the task as they can take.

Or, with ``bootstrap.source``, the rows of a file are taught; or, with ``bootstrap.start_from``,
another run's adapters are copied and started from. Last, with ``bootstrap.pairs``, the actor learns
released pairs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from spar_lite.data.files import local_files
from spar_lite.data.prompts import USED, builtin_prompts, dealt_prompts
from spar_lite.data.released import released_pairs, released_rows
from spar_lite.data.sources import in_words
from spar_lite.errors import StoreError
from spar_lite.lessons import actor_rows, judgements_first, lessons, refiner_rows
from spar_lite.pairs import interference
from spar_lite.recipe import Decoding, Prompts, Recipe, Training
from spar_lite.records import (
    Cost,
    PreferencePair,
    Prompt,
    Response,
    Role,
    TrainingExample,
    stable_seed,
)
from spar_lite.run import (
    FRESH,
    ROLES,
    Adapters,
    Run,
    Summary,
    checkpoints,
    last_checkpoint,
    saved_recipe,
)
from spar_lite.sample import sample_answer
from spar_lite.steps import Records, StepFolder, training_progress, training_summary
from spar_lite.store import copy_whole
from spar_lite.tracking import tracked

TASKS = ("prompts.kinds", "prompts.per_prompt")
"""Recipe keys that decide the built-in prompts, beside the seed."""

BEFORE_PAIRS = "actor_before_pairs"
"""Name of the actor's training, and its folder, where released pairs come after it."""


ALONE = "actor_alone"
"""Name of the actor's training, and its folder, where the same adapter learns to refine next."""


def warm_up(run: Run) -> None:
    """Warm both adapters up, as far as the recipe says; then the actor learns released pairs."""
    recipe, at = run.recipe, StepFolder(run, "bootstrap")
    warm, before = recipe.bootstrap, FRESH
    if warm.start_from:
        before = _started(at)
    elif warm.source != "none":
        before = _taught(at)
    if not warm.pairs:
        return
    left_out: Counter[str] = Counter()

    def read() -> list[PreferencePair]:
        pairs, found = released_pairs(warm.pairs)
        left_out.update(found)
        _say_left_out(run, "bootstrap.pairs", left_out)
        return [_with_interference(pair) for pair in pairs]

    pairs = at.once(
        "pairs",
        PreferencePair,
        read,
        keys=["bootstrap.pairs"],
        inputs=local_files(warm.pairs),
        summary=lambda found: {
            "pairs": len(found),
            "interfering": sum(bool(pair.interferes) for pair in found),
            "left_out": left_out.total(),
        },
    )
    at.train(
        "actor",
        lambda: fit_pairs(at, list(pairs)),
        keys=["bootstrap.pairs", "dpo"],
        inputs=[pairs],
        adapters=before,
    )


def _with_interference(pair: PreferencePair) -> PreferencePair:
    """A released pair with what its sides differ in besides, as far as a program sees it."""
    prompt = Prompt(pair.id, pair.prompt[-1].content)
    rejected = Response(pair.id, pair.id, pair.rejected, True, Cost())
    return replace(pair, interferes=interference(prompt, rejected, pair.chosen))


def _say_left_out(run: Run, key: str, left_out: Counter[str], advice: str = "") -> None:
    if left_out:
        run.screen.say(f"{key}: rows left out: {in_words(left_out)}.{advice}")


def _started(at: StepFolder) -> Adapters:
    """The adapters of ``bootstrap.start_from``, copied, and a list of what was dealt there."""
    run, warm = at.run, at.run.recipe.bootstrap
    if (own := at.folder / "refiner.done.json").exists() and not run.lenient:
        raise StoreError(
            f"bootstrap.start_from: {own} says that this run has a warm-up of its own, which "
            "would be lost. Take another --run folder."
        )
    if not warm.reuse_prompts:
        # Noted now: the other run may deal more later.
        at.once(
            USED,
            Prompt,
            lambda: dealt_prompts(Path(warm.start_from)),
            keys=["bootstrap.start_from"],
        )
    # Pairs decide which folder the actor is copied to, and so what is trained on from there.
    keys = ["model.lora", "bootstrap.start_from", "bootstrap.pairs"]
    at.report("start", lambda: _start_from(at), keys=keys, unit="copy")
    places = (at.folder / _first(at.run.recipe, role) for role in ROLES)
    return Adapters(*(place if place.exists() else None for place in places))


def _first(recipe: Recipe, role: Role) -> str:
    """The folder of a role's adapter as it is before the released pairs."""
    return BEFORE_PAIRS if role == "actor" and recipe.bootstrap.pairs else role


def _taught(at: StepFolder) -> Adapters:
    """Both adapters, or the refiner's alone, trained on the warm-up's rows."""
    run, warm = at.run, at.run.recipe.bootstrap
    rows = warmup_rows(run)

    def teach(role: Role, before: Adapters, name: str = "") -> Path:
        settings = warm
        if role == "actor":
            settings = warm.model_copy(update={"lr": warm.actor_lr or warm.lr})
        return at.train(
            role,
            lambda: fit(at, role, in_order(run, own_rows[role](rows)), settings),
            keys=["bootstrap"],
            inputs=[rows],
            adapters=before,
            name=name,
        )

    own_rows = {"actor": actor_rows, "refiner": refiner_rows}
    if run.recipe.refiner == "shared":
        alone = teach("actor", FRESH, ALONE) if warm.actor else None
        both = teach("refiner", Adapters(alone, alone))
        return Adapters(at.copy("actor", both), both)
    refiner, actor = teach("refiner", FRESH), None
    if warm.actor:
        actor = teach("actor", Adapters(None, refiner), _first(run.recipe, "actor"))
    return Adapters(actor, refiner)


def warmup_rows(run: Run) -> Records[TrainingExample]:
    """The rows that are taught: lessons of the base model's own answers, or a file's."""
    recipe, at = run.recipe, StepFolder(run, "bootstrap")
    warm, asked = recipe.bootstrap, warmup_tasks(recipe)
    # The loop's tasks decide nothing of a warm-up that has its own.
    loops = [key for key, own in zip(TASKS, (warm.kinds, warm.per_prompt), strict=True) if not own]
    if warm.source != "constraints":
        return _released(at)
    prompts = at.once(
        "prompts",
        Prompt,
        lambda: builtin_prompts(asked, recipe.seed, "warmup", warm.prompts),
        keys=[
            "seed", *loops, "bootstrap.source", "bootstrap.prompts", "bootstrap.kinds",
            "bootstrap.per_prompt",
        ],
    )  # fmt: skip
    decoding = Decoding(temperature=0.8, top_p=0.95, max_new_tokens=warm.max_new_tokens)
    answers = at.each(
        "answers",
        Response,
        lambda: {
            f"{p.id}/{k}": partial(sample_answer, run.engine, p, f"{p.id}/{k}", decoding, "base")
            for p in prompts
            for k in range(warm.k)
        },
        keys=["bootstrap.k", "bootstrap.max_new_tokens"],
        inputs=[prompts],
        adapters=FRESH,
        summary=lambda found: {"answers": len(found)},
    )
    return at.once(
        "examples",
        TrainingExample,
        lambda: _limited(lessons(prompts, answers, recipe.seed, warm.minimal), warm.examples),
        keys=["bootstrap.minimal", "bootstrap.examples"],
        inputs=[prompts, answers],
        summary=kinds,
    )


def _released(at: StepFolder) -> Records[TrainingExample]:
    run, warm = at.run, at.run.recipe.bootstrap
    left_out: Counter[str] = Counter()

    def read() -> list[TrainingExample]:
        rows, found = released_rows(warm.source, warm.templates)
        left_out.update(found)
        paper = " bootstrap.templates: paper takes rows as they are."
        _say_left_out(run, "bootstrap.source", left_out, paper if warm.templates == "loop" else "")
        # A file may hold all judgements first: of its beginning alone no refinement is learnt.
        random.Random(stable_seed(run.recipe.seed, "released")).shuffle(rows)
        return _limited(rows, warm.examples)

    return at.once(
        "examples",
        TrainingExample,
        read,
        keys=["seed", "bootstrap.source", "bootstrap.templates", "bootstrap.examples"],
        inputs=local_files(warm.source),
        summary=lambda rows: kinds(rows) | {"left_out": left_out.total()},
    )


def _limited(rows: list[TrainingExample], limit: int) -> list[TrainingExample]:
    """All of the actor's rows, and so many of the refiner's, which learns slowly (0: all)."""
    return [*actor_rows(rows), *refiner_rows(rows)[: limit or None]]


def kinds(rows: Sequence[TrainingExample]) -> Summary:
    """Examples in all and by kind."""
    counts: Summary = {"examples": len(rows)}
    for kind in sorted({row.kind for row in rows}):
        counts[kind.replace(" ", "_") + "s"] = sum(row.kind == kind for row in rows)
    return counts


def fit(
    at: StepFolder, role: Role, parts: Sequence[list[TrainingExample]], settings: Training
) -> Summary:
    """Supervised training of one adapter on each part in turn."""
    from spar_lite.train import train_on_examples

    run, summary = at.run, Summary(examples=0)
    step = training_progress(
        run.screen, f"{at.name}/{role}", [len(rows) for rows in parts], settings
    )
    for number, rows in enumerate(filter(None, parts)):
        seed = stable_seed(run.recipe.seed, at.name, role, *([number] if number else []))
        curve = f"{at.name}/{role}" + (f"-{number + 1}" if number else "")
        with tracked(run.recipe.log, run.folder, curve) as to:
            done = train_on_examples(
                run.policy, role, rows, settings, seed, step, run.screen.say, to
            )
        found = training_summary(done)
        for key in ("examples", "dropped", "steps", "tokens"):
            found[key] += summary.get(key, 0)
        found["loss_first"] = summary.get("loss_first", found["loss_first"])
        summary = found
    if not any(parts):
        run.screen.say(f"no examples: the {role} stays as it is")
    return summary


def fit_pairs(
    at: StepFolder, pairs: Sequence[PreferencePair], passed: Sequence[TrainingExample] = ()
) -> Summary:
    """Preference training of the actor, on those pairs that the recipe takes in.

    ``passed``: answers that are learnt beside them.
    """
    from spar_lite.train import train_actor

    run, settings = at.run, at.run.recipe.dpo
    made = len(pairs)
    pairs = [pair for pair in pairs if settings.interfering or not pair.interferes]
    seed = stable_seed(run.recipe.seed, at.name, "dpo")
    step = training_progress(run.screen, f"{at.name}/actor", [len(pairs) + len(passed)], settings)
    if not pairs:
        why = f": the sides of all {made} differ in more than was mended; dpo.interfering: true"
        why = why + " takes them. The" if made else ": the"
        run.screen.say(f"no preference pairs{why} actor stays as it is")
        return {"examples": 0}
    with tracked(run.recipe.log, run.folder, f"{at.name}/actor") as to:
        done = train_actor(run.policy, pairs, settings, seed, step, passed, run.screen.say, to)
    return {"passed": len(passed)} | training_summary(done)


def in_order(run: Run, rows: list[TrainingExample]) -> list[list[TrainingExample]]:
    """Rows in the parts that the recipe's curriculum teaches one after the other."""
    return judgements_first(rows) if run.recipe.bootstrap.curriculum == "judgements" else [rows]


def warmup_tasks(recipe: Recipe) -> Prompts:
    """The builtin prompts of the warm-up: the loop's, unless the recipe says otherwise."""
    changes = {
        "kinds": recipe.bootstrap.kinds or recipe.prompts.kinds,
        "per_prompt": recipe.bootstrap.per_prompt or recipe.prompts.per_prompt,
    }
    return recipe.prompts.model_copy(update=changes)


def _start_from(at: StepFolder) -> Summary:
    """Copy the last adapters of another run, so that this one is whole by itself."""
    run = at.run
    source = Path(run.recipe.bootstrap.start_from)
    known = checkpoints(source)
    made = (source / "recipe.yaml").is_file()
    settings = saved_recipe(source) if made else run.recipe
    name = last_checkpoint(settings, source, list(known))
    adapters = known[name]
    if not adapters:
        raise StoreError(
            f"bootstrap.start_from: {source} ends with no adapters; wanted the folder of a run "
            "whose warm-up is finished, or an iteration that was kept."
        )
    for role, folder in adapters.items():
        _same_scale(run.recipe, folder)
        copy_whole(folder, at.folder / _first(run.recipe, role))
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
