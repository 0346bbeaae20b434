"""Step 1: the actor answers each prompt K times (paper, section 2.3.1)."""

from __future__ import annotations

from spar_lite.engines.base import Completion, Engine, Request, Sampling, strip_thinking
from spar_lite.recipe import Decoding
from spar_lite.records import Message, Prompt, Response, Role
from spar_lite.templates import answer_messages


def sampling(decoding: Decoding) -> Sampling:
    """The engine's view of a recipe's decoding keys."""
    return Sampling(decoding.temperature, decoding.top_p, decoding.top_k)


async def complete(
    engine: Engine, role: Role, id: str, messages: tuple[Message, ...], decoding: Decoding
) -> Completion:
    """Ask for one completion; the engine batches the calls that are in flight together."""
    request = Request(id, messages, decoding.max_new_tokens, sampling(decoding))
    return (await engine.generate(role, [request]))[0]


async def sample_answer(
    engine: Engine, prompt: Prompt, id: str, decoding: Decoding, role: Role = "actor"
) -> Response:
    """Draw one answer; ``<think>`` blocks are dropped before anyone judges or scores it."""
    done = await complete(engine, role, id, answer_messages(prompt.text), decoding)
    return Response(id, prompt.id, strip_thinking(done.text), done.finished, done.cost)
