"""The protocol between the method and whatever generates text.

The method sends requests and awaits completions; it never sees tokens, adapters, devices or
batches. The transformers engine lives in ``model``; the scripted one for tests lives in ``tests``;
an OpenAI-compatible one would stand beside them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from spar_lite.records import Cost, Message, Role


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. ``temperature`` 0 is greedy. ``top_k`` 0 keeps the whole vocabulary."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One completion wanted. ``id`` comes from coordinates and is unique within a stage."""

    id: str
    messages: tuple[Message, ...]
    max_new_tokens: int
    sampling: Sampling


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """One completion. ``finished`` is False if it hit ``max_new_tokens``.

    ``text`` is the reply without special tokens. Token counts are the model's.
    """

    id: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    finished: bool

    @property
    def cost(self) -> Cost:
        """This one call's cost."""
        return Cost(1, self.prompt_tokens, self.completion_tokens)


class Engine(Protocol):
    """Anything that completes chats."""

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request as ``role``, in the order given.

        Callers may have many calls in flight at once; the engine batches across them. All calls in
        flight use one role, because one adapter is active at a time.

        Raises:
            EngineError: a request could not be completed.
        """
        ...


class LazyEngine:
    """An engine that is opened when it is first asked."""

    def __init__(self, open: Callable[[], Engine]) -> None:
        self.open = open

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """See the protocol."""
        return await self.open().generate(role, requests)


OPEN, CLOSE = "<think>", "</think>"
"""What begins and ends a thought in a reply, or in the prompt of a template that opens it."""

_THINK = re.compile(f"{OPEN}.*?{CLOSE}", re.DOTALL)


def strip_thinking(text: str) -> str:
    """Drop ``<think>…</think>`` blocks; one left open (cut off) drops all that follows it.

    A closing tag alone (templates that open the block themselves) drops all before it.
    """
    text = _THINK.sub("", text)
    if CLOSE in text:
        text = text.rpartition(CLOSE)[2]
    return text.partition(OPEN)[0].strip()
