"""Plain instructions become constraint-bearing ones (paper, section 2.2 and appendix).

A program adds constraints that it can check, or a model rewrites the instruction by one of the
paper's kinds of constraints. A model's "None" is honoured: the instruction stays as it was. What
carries constraints already is left alone.

Knows the engine protocol, the template and the constraints; nothing of files or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from spar_lite import constraints
from spar_lite.engine import Engine, strip_thinking
from spar_lite.prompts import TAXONOMY, evolve_messages, parse_evolved
from spar_lite.recipe import Decoding, Evolve
from spar_lite.records import Cost, Prompt, stable_seed
from spar_lite.sample import complete


@dataclass(frozen=True, slots=True)
class Evolution:
    """What became of one prompt; ``id`` is the prompt's.

    ``text``: the new instruction, None where it stays plain. ``kind``: of the constraint asked for.
    ``replies``: every reply of the model, unreadable ones included.
    """

    id: str
    text: str | None
    constraints: tuple[dict[str, Any], ...]
    kind: str
    said_none: bool
    replies: tuple[str, ...]
    cost: Cost

    def apply(self, prompt: Prompt) -> Prompt:
        """The prompt as it goes into the loop; a judge must still look at the plain part."""
        if self.text is None:
            return prompt
        return replace(prompt, text=self.text, constraints=self.constraints, complete=False)


async def evolve(engine: Engine | None, prompt: Prompt, settings: Evolve, seed: int) -> Evolution:
    """Evolve one prompt as the recipe says; ``engine`` answers as the bare base model."""
    if prompt.constraints:
        return Evolution(prompt.id, None, (), "", False, (), Cost())
    if settings.way == "constraints" or engine is None:
        return _by_program(prompt, settings, seed)
    kind = random.Random(stable_seed(seed, "evolve", prompt.id)).choice(list(TAXONOMY))
    decoding = Decoding(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens)
    replies: list[str] = []
    cost = Cost()
    for attempt in range(settings.tries):
        id = f"{prompt.id}/evolve/{attempt}"
        messages = evolve_messages(prompt.text, kind)
        done = await complete(engine, "base", id, messages, decoding)
        cost += done.cost
        replies.append(strip_thinking(done.text))
        readable, text = parse_evolved(replies[-1], prompt.text)
        if readable:
            return Evolution(prompt.id, text, (), kind, text is None, tuple(replies), cost)
    return Evolution(prompt.id, None, (), kind, False, tuple(replies), cost)


def _by_program(prompt: Prompt, settings: Evolve, seed: int) -> Evolution:
    kinds = settings.kinds or tuple(constraints.KINDS)
    text, added = constraints.enrich(seed, prompt.id, prompt.text, kinds, settings.per_prompt)
    known = tuple(rule.to_json() for rule in added)
    return Evolution(prompt.id, text if added else None, known, "", False, (), Cost())
