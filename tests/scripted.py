"""A scripted engine and a silent screen: what a run is given in tests that need no model.

It promises what `spar_lite.engines.base.Engine` promises, is as asynchronous as a real one, and is
stricter: a stage that mixes roles in flight fails loudly. It knows nothing of prompts or parsers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from spar_lite.engines.base import Completion, Request
from spar_lite.records import Role
from spar_lite.run import Screen

Reply = Callable[[Role, Request], str | Completion]
MOST_TURNS = 4


class ScriptedEngine:
    """Answers each request with ``reply(role, request)``.

    A reply given as text is a finished completion whose tokens are its words; give a `Completion`
    for anything else. With ``shuffle_seed`` every call waits a random number of turns of the event
    loop, so that calls in flight together finish in a random (but repeatable) order.
    """

    def __init__(self, reply: Reply, *, shuffle_seed: int | None = None) -> None:
        self.calls: list[tuple[Role, Request]] = []
        self.finished: list[str] = []
        self._reply = reply
        self._shuffle = None if shuffle_seed is None else random.Random(shuffle_seed)
        self._role: Role | None = None
        self._in_flight = 0

    @property
    def requests(self) -> list[Request]:
        """Every request seen, in the order they were made."""
        return [request for _, request in self.calls]

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request as ``role``, in the order given.

        Raises:
            AssertionError: a call with another role is still in flight.
        """
        if self._in_flight and role != self._role:
            raise AssertionError(f'"{role}" was called while "{self._role}" is in flight')
        self._role = role
        self._in_flight += 1
        self.calls.extend((role, request) for request in requests)
        try:
            for _ in range(1 + (self._shuffle.randrange(MOST_TURNS) if self._shuffle else 0)):
                await asyncio.sleep(0)
            return [self._complete(role, request) for request in requests]
        finally:
            self._in_flight -= 1

    def _complete(self, role: Role, request: Request) -> Completion:
        self.finished.append(request.id)
        reply = self._reply(role, request)
        if isinstance(reply, Completion):
            return reply
        asked = sum(len(message.content.split()) for message in request.messages)
        return Completion(request.id, reply, asked, len(reply.split()), finished=True)


class Silence(Screen):
    """A screen that keeps what it was told, and which stages began."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append(stage)

    def advance(self, items: int) -> None: ...

    def tokens(self, count: int) -> None: ...

    def end(self, note: str) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)
