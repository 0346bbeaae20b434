"""The warm-up before iteration 1, without a teacher: its steps, and the lessons a program writes.

The base model answers short prompts several times; a program knows which answers meet everything,
breaks those minimally, critiques both with quoted evidence, and so writes what a teacher would have
written: judgements ending in a verdict, refinements, and answers that meet their constraints. It
teaches both adapters the formats and as much of the task as they can take.

Or, with ``bootstrap.source``, the rows of a file are taught; or, with ``bootstrap.start_from``,
another run's adapters are copied and started from. Last, with ``bootstrap.pairs``, the actor learns
released pairs.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from spar_lite import constraints
from spar_lite.constraints import Answer, Requirement
from spar_lite.constraints.text import sentence_spans, words
from spar_lite.data.files import local_files
from spar_lite.data.prompts import USED, builtin_prompts, dealt_prompts, requirements
from spar_lite.data.released import released_pairs, released_rows
from spar_lite.data.sources import in_words
from spar_lite.errors import StoreError
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
from spar_lite.templates import (
    answer_messages,
    judge_messages,
    judge_reply,
    refine_messages,
    refine_reply,
)
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

    def lessons_for(role: Role) -> list[list[TrainingExample]]:
        return in_order(run, actor_rows(rows) if role == "actor" else refiner_rows(rows))

    shared, before = run.recipe.refiner == "shared", FRESH
    settings = warm.model_copy(update={"lr": warm.actor_lr or warm.lr})
    if shared and warm.actor:
        alone = at.train(
            "actor",
            lambda: fit(at, "actor", lessons_for("actor"), settings),
            keys=["bootstrap"],
            inputs=[rows],
            adapters=FRESH,
            name=ALONE,
        )
        before = Adapters(alone, alone)
    refiner = at.train(
        "refiner",
        lambda: fit(at, "refiner", lessons_for("refiner"), warm),
        keys=["bootstrap"],
        inputs=[rows],
        adapters=before,
    )
    actor = None
    if shared:
        actor = at.copy("actor", refiner)
    elif warm.actor:
        actor = at.train(
            "actor",
            lambda: fit(at, "actor", lessons_for("actor"), settings),
            keys=["bootstrap"],
            inputs=[rows],
            adapters=Adapters(None, refiner),
            name=_first(run.recipe, "actor"),
        )
    return Adapters(actor, refiner)


def warmup_rows(run: Run) -> Records[TrainingExample]:
    """The rows that are taught: lessons of the base model's own answers, or a file's."""
    recipe, at = run.recipe, StepFolder(run, "bootstrap")
    warm, asked = recipe.bootstrap, warmup_tasks(recipe)
    if warm.source != "constraints":
        return _released(at)
    prompts = at.once(
        "prompts",
        Prompt,
        lambda: builtin_prompts(asked, recipe.seed, "warmup", warm.prompts),
        keys=[
            "seed", *TASKS, "bootstrap.source", "bootstrap.prompts", "bootstrap.kinds",
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
    pairs = [pair for pair in pairs if settings.interfering or not pair.interferes]
    seed = stable_seed(run.recipe.seed, at.name, "dpo")
    step = training_progress(run.screen, f"{at.name}/actor", [len(pairs) + len(passed)], settings)
    if not pairs:
        run.screen.say("no preference pairs: the actor stays as it is")
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
        target = at.folder / _first(run.recipe, role)
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


# --- Lessons --------------------------------------------------------------------------------------

OWN_ANSWERS = 2
"""Good answers of its own per prompt that the actor is taught, at most."""

REFINABLE = 0.5
"""Share of a bad text's words that a good one must keep for a refinement to be taught."""

PHRASE_ALONE = 0.4
"""Share of the texts without an answer that are a required phrase alone: what models say first."""


def lessons(
    prompts: Sequence[Prompt], answers: Iterable[Response], seed: int, minimal: int = 0
) -> list[TrainingExample]:
    """Write the warm-up rows from a model's own answers, several a prompt.

    What teaches well is what the model can say itself: answers that meet everything are taught as
    they are, and the bad text beside each is a small corruption of it. Where a prompt has no such
    answer, one that fails is repaired, if that leaves an answer. Of each prompt with a good text:

    1. the good answers themselves, for the actor;
    2. a pair (good, bad) whose bad text misses a constraint;
    3. one whose bad text meets the constraints and is no answer: said twice, the phrase alone, the
       request read back, cut off, or about another topic;
    4. ``minimal`` more pairs of sort 2: first an own answer that failed and can be repaired, then
       texts that miss another constraint, or the same in another way.

    Each pair gives a judgement of the good text, a Yes, and a chat that judges the bad one, a No,
    and refines it, the loss falling on both replies. Where the good text keeps little of the bad
    one there is nothing to refine, and the No stands alone.
    """
    prompts, own = list(prompts), dict[str, list[str]]()
    for response in answers:
        own.setdefault(response.prompt_id, []).extend(shorter(whole_sentences(response.text)))
    # The shorter first: easier to say, to judge and to copy.
    own = {id: sorted(texts, key=lambda text: len(text.split())) for id, texts in own.items()}
    good = {p.id: good_texts(requirements(p), own.get(p.id, [])) for p in prompts}
    rows: list[TrainingExample] = []
    for place, prompt in enumerate(prompts):
        if not (texts := good[prompt.id]):
            continue
        asked = answer_messages(prompt.text)
        rows += [
            TrainingExample(f"{prompt.id}/{n}/answer", "answer", asked, text)
            for n, text in enumerate(texts[:OWN_ANSWERS])
        ]
        others = [text for p in prompts[place + 1 :] + prompts[:place] for text in good[p.id][:1]]
        pairs = list(_pairs(requirements(prompt), texts, own[prompt.id], others, seed, minimal))
        for n, (fine, bad) in enumerate(pairs):
            rows += _rows(prompt, fine, bad, f"{prompt.id}/{n}")
    return rows


def good_texts(known: Sequence[Requirement], texts: Sequence[str]) -> list[str]:
    """The texts that meet everything; if there is none, the first that a repair makes meet it."""
    found = [text for text in dict.fromkeys(texts) if all(constraints.check_all(known, text))]
    if found:
        return found
    failing = sorted(filter(None, texts), key=lambda t: -sum(constraints.check_all(known, t)))
    mended = (constraints.mend_all(known, text) for text in failing)
    return [text for text in mended if text][:1]


def _pairs(
    known: Sequence[Requirement],
    good: Sequence[str],
    own: Sequence[str],
    others: Sequence[str],
    seed: int,
    minimal: int,
) -> Iterator[tuple[str, str]]:
    """(good, bad) texts of one prompt, as ``lessons`` says; each good text in turn."""
    turns = itertools.cycle(good)
    asked = [rule for rule in known if not isinstance(rule, Answer)]
    order = random.Random(stable_seed(seed, "spoil", good[0])).sample(asked, len(asked))
    failed = ((constraints.mend_all(known, text), text) for text in own if text not in good)
    repaired = [(mended, text) for mended, text in failed if mended]
    spoilt = [
        (fine, bad)
        for fine, rule in zip(turns, [*order, *order], strict=False)
        if (bad := rule.spoil(fine))
    ]
    # A good text that was made by a repair has its bad one already.
    missing = repaired + spoilt if good[0] not in own else spoilt[:1] + repaired + spoilt[1:]
    missing = list({bad: (fine, bad) for fine, bad in reversed(missing)}.values())[::-1]
    yield from missing[:1]
    if len(asked) < len(known) and (bad := thin_text(known, fine := next(turns), others, seed)):
        yield fine, bad
    yield from missing[1 : 1 + minimal]


def thin_text(
    known: Sequence[Requirement], good: str, others: Sequence[str], seed: int
) -> str | None:
    """A text that is no answer and, where that can be, meets every constraint, drawn by seed.

    It is made of a good one; in one of five cases of another prompt's, so that the topic is wrong.
    Often it is the required phrase alone, which is what models say first.
    """
    asked, rule = known[:-1], known[-1]
    assert isinstance(rule, Answer)
    rng = random.Random(stable_seed(seed, "thin", good))
    if others and rng.random() < 0.2:
        foreign = constraints.mend_all(asked, rng.choice(others))
        if foreign and not rule.check(foreign):
            return foreign
    thin = [bad for bad in rule.spoilt(good) if all(constraints.check_all(asked, bad))]
    alone = [bad for bad in thin if rule.is_phrase(bad)]
    if alone and rng.random() < PHRASE_ALONE:
        return alone[0]
    return rng.choice(thin) if thin else rule.spoil(good)


def good_and_bad(known: Sequence[Requirement], text: str, seed: int) -> tuple[str, str] | None:
    """Turn one text into (meets all, misses at least one), by minimal edits.

    A text that fails by itself is the bad one; a text that passes is broken in one constraint,
    drawn by seed. None where the program finds no edit.
    """
    good = constraints.mend_all(known, text) if text else None
    if good is None:
        return None
    if good != text and not all(constraints.check_all(known, text)):
        return good, text
    order = random.Random(stable_seed(seed, "spoil", text)).sample(list(known), len(known))
    bad = next((spoiled for rule in order if (spoiled := rule.spoil(good))), None)
    return (good, bad) if bad else None


def whole_sentences(text: str) -> str:
    """Drop a last sentence or list item that was cut off, unless it is all there is."""
    text = re.sub(r"\n\s*(?:\d+[.)]|[-*])\s*$", "", text.strip()).strip()
    end = max(text.rfind(mark) for mark in ".!?")
    return text if end <= 0 or text[-1] in ".!?\"')]}" else text[: end + 1]


def shorter(text: str) -> list[str]:
    """A text and what is left of it after its first sentence, and after its second."""
    ends = [end for _, end in sentence_spans(text)[:2]]
    return list(dict.fromkeys([*(text[:end] for end in ends), text]))


def reflection(known: Sequence[Requirement], text: str) -> str:
    """What a refinement must change: the names of the constraints that the text misses."""
    missed = [rule.label() for rule in known if not rule.check(text)]
    return "To change: " + "; ".join(missed) + "."


def _rows(prompt: Prompt, good: str, bad: str, id: str) -> list[TrainingExample]:
    """A Yes, and a No with its refinement if the bad text is near enough to the good one."""
    known = requirements(prompt)
    passed = judge_reply(constraints.critique(known, good), True)
    failed = judge_reply(constraints.critique(known, bad), False)
    judged = TrainingExample(f"{id}/judge", "judgement", judge_messages(prompt.text, good), passed)
    if kept_share(bad, good) < REFINABLE:
        asked = judge_messages(prompt.text, bad)
        return [judged, TrainingExample(f"{id}/refuse", "judgement", asked, failed)]
    chat = refine_messages(prompt.text, bad, failed)
    mended = refine_reply(reflection(known, bad), good)
    return [judged, TrainingExample(f"{id}/refine", "refinement", chat, mended, every_reply=True)]


def kept_share(bad: str, good: str) -> float:
    """Share of the bad text's words that stand in the good one, in the same order."""
    before, after = ([w.lower() for w in words(text)] for text in (bad, good))
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(before) if before else 0.0


def judgements_first(rows: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
    """First every judgement alone, the chats' ones too; then all rows as they are.

    A refinement is mostly copying, and its many easy tokens drown the few on which a judgement
    turns: taught together from the start, a small model learns to copy and not to judge.
    """
    alone = [
        TrainingExample(f"{row.id}/judgement", "judgement", row.prompt[:1], row.prompt[1].content)
        if row.kind == "refinement" and row.every_reply
        else row
        for row in rows
    ]
    return [[row for row in alone if row.kind == "judgement"], list(rows)]


def actor_rows(rows: Iterable[TrainingExample]) -> list[TrainingExample]:
    """The rows that teach the actor."""
    return [row for row in rows if row.kind == "answer"]


def refiner_rows(rows: Iterable[TrainingExample]) -> list[TrainingExample]:
    """The rows that teach the refiner."""
    return [row for row in rows if row.kind != "answer"]
