"""Plain instructions become constraint-bearing ones (paper, section 2.2 and appendix).

A program adds constraints that it can check, or a model rewrites the instruction by the paper's
kinds of constraints: a main one and one to three others. What carries constraints already is left
alone; what is given none, because the model says None or writes nothing readable, or because none
fits, is left out of the loop, which is about constraints.

Knows the engine protocol, the template and the constraints; nothing of files or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from spar_lite import constraints
from spar_lite.engine import Engine, strip_thinking
from spar_lite.errors import RecipeError
from spar_lite.prompts import TAXONOMY, evolve_messages, parse_evolved
from spar_lite.recipe import Decoding, Evolve
from spar_lite.records import Cost, Prompt, stable_seed
from spar_lite.sample import complete


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


async def evolve(engine: Engine | None, prompt: Prompt, settings: Evolve, seed: int) -> Evolution:
    """Evolve one prompt as the recipe says; ``engine`` answers as the bare base model.

    Raises:
        RecipeError: ``evolve.kinds`` names an unknown kind, or none that goes with a request.
    """
    if prompt.constraints:
        return Evolution(prompt.id, None, (), "", False, (), Cost())
    if settings.way == "constraints" or engine is None:
        return _by_program(prompt, settings, seed)
    kind, *others = draw_kinds(seed, prompt.id, settings.others)
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


def draw_kinds(seed: int, id: str, others: tuple[int, int]) -> list[str]:
    """The kinds of the main constraint and of the others, drawn by seed and prompt id.

    Length may be the main one only: the paper's prompt prefers other kinds beside it.
    """
    rng = random.Random(stable_seed(seed, "evolve", id))
    main = rng.choice(list(TAXONOMY))
    rest = [kind for kind in TAXONOMY if kind not in (main, "length")]
    return [main, *rng.sample(rest, rng.randint(*others))]


def _by_program(prompt: Prompt, settings: Evolve, seed: int) -> Evolution:
    kinds = settings.kinds or tuple(constraints.KINDS)
    try:
        text, added = constraints.enrich(seed, prompt.id, prompt.text, kinds, settings.per_prompt)
    except ValueError as error:
        raise RecipeError(f"evolve.kinds: {error}") from None
    known = tuple(rule.to_json() for rule in added)
    return Evolution(prompt.id, text if added else None, known, "", False, (), Cost())
