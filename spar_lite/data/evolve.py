"""Plain instructions become constraint-bearing ones (paper, section 2.2 and appendix).

A program adds constraints that it can check, or a model rewrites the instruction by the paper's
kinds of constraints: a main one and one to three others. What carries constraints already is left
alone; what is given none, because the model says None or writes nothing readable, or because none
fits, is left out of the loop, which is about constraints.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.data.decontaminate import read_benchmark
from spar_lite.data.prompts import DEALT, TOO_CLOSE, USED, dealt_prompts, iteration_prompts
from spar_lite.data.sources import in_words
from spar_lite.engines.base import Engine, strip_thinking
from spar_lite.engines.remote import open_endpoint
from spar_lite.errors import RecipeError
from spar_lite.recipe import Decoding, Evolve
from spar_lite.records import Cost, Prompt, stable_seed
from spar_lite.run import FRESH, Run, Summary, adapters_after
from spar_lite.sample import complete
from spar_lite.steps import Items, Records, StepFolder
from spar_lite.store import Marker
from spar_lite.templates import TAXONOMY, evolve_messages, parse_evolved

EVOLVE = tuple(
    f"evolve.{field.alias or name}"
    for name, field in Evolve.model_fields.items()
    if name not in ("key_env", "parallel")  # they decide nothing of what comes back
)
"""Recipe keys that decide what an instruction becomes."""


@dataclass(frozen=True, slots=True)
class Evolution:
    """What became of one prompt; ``id`` is the prompt's.

    ``text``: the new instruction, None where there is none. ``kind``: of the main constraint asked
    for; ``others``: of those beside it. ``replies``: all of the model's, unreadable ones included.
    """

    id: str
    text: str | None
    constraints: tuple[dict[str, Any], ...]
    kind: str
    said_none: bool
    replies: tuple[str, ...]
    cost: Cost
    others: tuple[str, ...] = ()

    @property
    def unreadable(self) -> bool:
        """Whether the model replied, and nothing of it could be used."""
        return bool(self.replies) and self.text is None and not self.said_none

    def apply(self, prompt: Prompt) -> Prompt | None:
        """The prompt as it goes into the loop, None where it is left out.

        Of an evolved one a judge must still look at the plain part.
        """
        if prompt.constraints:
            return prompt
        if self.text is None:
            return None
        return replace(prompt, text=self.text, constraints=self.constraints, complete=False)


def check_prompts(run: Run) -> None:
    """Have a source that cannot be read, or has too few prompts, said before the first step.

    Raises:
        RecipeError: as it would be raised hours later.
    """
    recipe, warm, settings = run.recipe, run.recipe.bootstrap, run.recipe.prompts

    def drawn(number: int) -> bool:
        place = run.folder / f"iteration-{number}"
        return any(Marker(place, name).read() for name in ("prompts", "plain_prompts"))

    left = [number for number in range(1, recipe.iterations + 1) if not drawn(number)]
    if not left:
        return
    dealt = dealt_prompts(run.folder, left[0], warm.reuse_prompts)
    noted = (run.folder / "bootstrap" / f"{USED}.jsonl").exists()
    if warm.start_from and not (warm.reuse_prompts or noted):
        dealt += dealt_prompts(Path(warm.start_from))
    if settings.decontaminate:  # read, but not compared with: that takes long
        read_benchmark(Path(settings.decontaminate))
    count = len(left) * settings.count
    wanted = settings.model_copy(update={"count": count, "decontaminate": ""})
    places = str(left[0]) if len(left) == 1 else f"{left[0]} to {left[-1]}"
    iteration_prompts(wanted, recipe.seed, places, dealt)


def loop_prompts(at: StepFolder, number: int) -> Records[Prompt]:
    """The steps that make an iteration's prompts: drawn, and evolved where the recipe says so."""
    run, way = at.run, at.run.recipe.evolve.way
    settings, seed = run.recipe.prompts, run.recipe.seed
    passed: Counter[str] = Counter()

    def draw() -> list[Prompt]:
        dealt = dealt_prompts(run.folder, number, run.recipe.bootstrap.reuse_prompts)
        prompts, found = iteration_prompts(settings, seed, number, dealt)
        passed.update(found)
        left_out = Counter({why: n for why, n in found.items() if why not in (DEALT, TOO_CLOSE)})
        if left_out:
            run.screen.say(f"prompts.source: left out: {in_words(left_out)}")
        return prompts

    def drawn(prompts: Sequence[Prompt]) -> Summary:
        counts: Summary = {"too_close_to_benchmark": passed[TOO_CLOSE]}
        left_out = sum(passed.values()) - passed[DEALT] - passed[TOO_CLOSE]
        return (
            {"prompts": len(prompts)}
            | (counts if settings.decontaminate else {})
            | ({"left_out": left_out} if left_out else {})
        )

    name = "prompts" if way == "none" else "plain_prompts"
    keys = ["seed", "prompts", "bootstrap.start_from", "bootstrap.reuse_prompts"]
    plain = at.once(name, Prompt, draw, keys=keys, unit="prompts", summary=drawn)
    if way == "none":
        return plain

    def evolutions() -> Items[Evolution]:
        engine: Engine | None = None
        settings = run.recipe.evolve
        if way == "model":
            engine = run.engine
        elif way == "openai":
            engine = open_endpoint(settings, {"base": settings.model}, "evolve.model", seed)
            engine.say = run.screen.say
        return {p.id: partial(evolve, engine, p, settings, seed) for p in plain}

    found = at.each(
        "evolutions",
        Evolution,
        evolutions,
        keys=["seed", *EVOLVE],
        inputs=[plain],
        adapters=FRESH if way == "model" else None,
        unit="prompts",
        summary=lambda found: {
            "evolved": sum(e.text is not None for e in found),
            "said_none": sum(e.said_none for e in found),
            "unreadable": sum(e.unreadable for e in found),
            "left_out": sum(e.apply(p) is None for p, e in zip(plain, found, strict=True)),
        },
    )

    def apply() -> list[Prompt]:
        evolved = found.by_id
        prompts = [new for p in plain if (new := evolved[p.id].apply(p)) is not None]
        kept = {p.id for p in prompts}
        out = [evolved[p.id] for p in plain if p.id not in kept]
        _mind_left_out(at, number, out, len(plain))
        return prompts

    return at.once("prompts", Prompt, apply, inputs=[plain, found])


def _mind_left_out(at: StepFolder, number: int, out: list[Evolution], plain: int) -> None:
    """Say it where most of the plain prompts are left out; stop where all are."""
    run = at.run
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
    made = adapters_after(run.recipe, run.folder, number - 1).refiner
    keep_it = f" -o bootstrap.start_from={run.folder} there keeps what is trained." if made else ""
    raise RecipeError(
        f"evolve: iteration {number} wants prompts with constraints, found none of {plain}: {why}. "
        f"The replies are in {run.folder}/iteration-{number}/evolutions.jsonl. {advice}, "
        f"with another --run folder.{keep_it}"
    )


async def evolve(engine: Engine | None, prompt: Prompt, settings: Evolve, seed: int) -> Evolution:
    """Evolve one prompt as the recipe says; ``engine`` answers as the bare base model.

    Raises:
        RecipeError: ``evolve.kinds`` names an unknown kind, or none that goes with a request.
    """
    if prompt.constraints:
        return Evolution(prompt.id, None, (), "", False, (), Cost())
    if settings.way == "constraints" or engine is None:
        kinds = settings.kinds or tuple(constraints.KINDS)
        try:
            made, added = constraints.enrich(
                seed, prompt.id, prompt.text, kinds, settings.per_prompt
            )
        except ValueError as error:
            raise RecipeError(f"evolve.kinds: {error}") from None
        known = tuple(rule.to_json() for rule in added)
        return Evolution(prompt.id, made if added else None, known, "", False, (), Cost())
    rng = random.Random(stable_seed(seed, "evolve", prompt.id))
    kind = rng.choice(list(TAXONOMY))
    # Length may be the main one only: the paper's prompt prefers other kinds beside it.
    rest = [other for other in TAXONOMY if other not in (kind, "length")]
    others = rng.sample(rest, rng.randint(*settings.others))
    decoding = Decoding(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens)
    replies: list[str] = []
    cost = Cost()
    readable, text = False, None
    for attempt in range(settings.tries):
        id = f"{prompt.id}/evolve/{attempt}"
        messages = evolve_messages(prompt.text, [kind, *others])
        done = await complete(engine, "base", id, messages, decoding)
        cost += done.cost
        replies.append(strip_thinking(done.text))
        readable, text = parse_evolved(replies[-1], prompt.text)
        if readable:
            break
    said_none = readable and text is None
    return Evolution(prompt.id, text, (), kind, said_none, tuple(replies), cost, tuple(others))
