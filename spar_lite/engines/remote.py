"""An OpenAI-compatible server behind the engine protocol: vLLM, llama.cpp, a paid endpoint.

A few requests at a time, each asked again while the server is busy or away. The key comes from the
environment and is never written anywhere. A role is a served model's name; what a server must do
for a whole run, load adapters above all, stands in ``served``.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from spar_lite.engines.base import Completion, Request
from spar_lite.engines.transport import Busy, Filtered, Refused, Transport
from spar_lite.errors import EngineError
from spar_lite.recipe import Endpoint
from spar_lite.records import Cost, Role, stable_seed

TRIES = 5
PATIENCE = 600.0
"""Seconds that a server which has answered before may be away, or ask for patience."""

LONGEST_PAUSE = 30.0

OPTIONAL = (
    "seed", "top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "logprobs",
    "return_token_ids", "stop_token_ids",
)  # fmt: skip
"""Fields that not every server takes: one that names them in its refusal is asked without them."""

Found = TypeVar("Found")


@dataclass
class RemoteEngine:
    """Engine over HTTP.

    ``models``: the name of the served model that answers as each role. ``models_key``: where the
    recipe says so, for messages. ``pause``: seconds before the second try, doubled each time.
    ``extra``: further fields of every request. Sampling follows from ``seed`` and each request's
    id, as far as the server's own seeds go.
    """

    url: str = field(repr=False)
    models: Mapping[Role, str]
    key: str | None = field(repr=False)
    parallel: int
    models_key: str = "engine.models"
    pause: float = 1.0
    patience: float = PATIENCE
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)
    on_tokens: Callable[[int], None] = field(default=lambda _: None, repr=False)
    _usage: Cost = field(default_factory=Cost, repr=False)
    _unknown: set[str] = field(default_factory=set, repr=False)
    _answered: bool = field(default=False, repr=False)
    _waiting: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        section = self.models_key.partition(".")[0]
        self.wire = Transport(self.url, self.key, self.parallel, section)

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request; see the protocol.

        A prompt that the server's filter refuses has a blank reply, which is no answer.

        Raises:
            EngineError: the server cannot be reached or refuses; what it said is quoted.
        """
        return list(await asyncio.gather(*(self._complete(role, each) for each in requests)))

    def take_usage(self) -> Cost:
        """Return the usage counted so far and start anew."""
        usage, self._usage = self._usage, Cost()
        return usage

    async def _complete(self, role: Role, request: Request) -> Completion:
        async with (await self.wire.here()).places:
            try:
                found = await self._insist(lambda: self._try(role, request))
            except Filtered as fault:
                self.say(f"{request.id} is left without a reply: {fault}")
                found = Completion(request.id, "", 0, 0, True)
        self._usage += found.cost
        self.on_tokens(found.completion_tokens)
        return found

    async def _insist(self, call: Callable[[], Awaitable[Found]]) -> Found:
        """What ``call`` returns, asked again while the server is busy or away.

        A few times; for minutes where it has answered before, and what it says may pass.
        """
        begin, tries = time.monotonic(), 0
        while True:
            try:
                found = await call()
            except Busy as busy:
                begin, tries = begin if tries else time.monotonic(), tries + 1
                # Jitter: those that were refused together do not come back together.
                pause = min(LONGEST_PAUSE, self.pause * 2 ** min(tries - 1, 9))
                pause = max(busy.wait, pause * random.uniform(0.5, 1.0))
                patience = self.patience if busy.passes and self._answered else 0.0
                waited = time.monotonic() - begin
                if busy.wait > self.patience or (tries >= TRIES and waited + pause > patience):
                    asks = f" and asks for {busy.wait:.0f} s" if busy.wait > self.patience else ""
                    raise EngineError(
                        f"{busy}{asks}, {tries} times. The same command goes on from here."
                    ) from None
                if tries == TRIES - 1 and not self._waiting:
                    self._waiting = True
                    self.say(f"{busy}; asking again for up to {self.patience / 60:.0f} minutes")
                await asyncio.sleep(pause)
            else:
                if self._waiting:
                    self._waiting = False
                    self.say(f"{self.wire.shown} answers again")
                self._answered = True
                return found

    async def _try(self, role: Role, request: Request) -> Completion:
        body = {
            "model": self.models[role],
            "messages": _plain(request),
            **self._drawing(role, request),
            **self.extra,
        }
        return self._read(request, await self._send("/chat/completions", body))

    def _drawing(self, role: Role, request: Request) -> dict[str, Any]:
        """How tokens are drawn, in full: servers fill in what a model ships, or what they like."""
        sampling = request.sampling
        found = {
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        if sampling.temperature > 0:
            found["seed"] = stable_seed(self.seed, role, request.id)
        return found

    async def _send(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers, without those fields that it has said it does not take."""
        while True:
            sent = {name: value for name, value in body.items() if name not in self._unknown}
            if "max_tokens" in self._unknown and "max_tokens" in body:
                sent["max_completion_tokens"] = body["max_tokens"]
            try:
                return await self.wire.send(path, sent)
            except Refused as fault:
                fields = (
                    (*OPTIONAL, "max_tokens")
                    if "max_completion_tokens" in fault.said
                    else (OPTIONAL)
                )
                named = {f for f in fields if f in sent and re.search(rf"\b{f}\b", fault.said)}
                if fault.code not in (400, 422) or not named:
                    raise
                if lost := sorted(named - self._unknown - {"max_tokens"}):
                    self.say(f"{self.wire.shown} does not take {', '.join(lost)}: left out")
                self._unknown |= named

    def _read(self, request: Request, found: Any) -> Completion:
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            text, reason = self._text(choice), str(choice.get("finish_reason"))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self.wire.foreign(error) from None
        if reason.startswith("content_filter"):
            raise Filtered(f"{self.wire.shown} cut the reply off by its filter")
        asked, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(asked, int) and isinstance(made, int)):
            asked, made = self._count(request, text)
        return Completion(request.id, text, asked, made, finished=reason != "length")

    def _text(self, choice: Mapping[str, Any]) -> str:
        """A reply's text; of a list of chunks those of text, without thoughts and pictures."""
        content = choice["message"]["content"]
        if isinstance(content, list):
            chunks = (c if isinstance(c, str) else c.get("text") for c in content)
            content = "".join(chunk for chunk in chunks if isinstance(chunk, str))
        return whole_text(str(content or ""))

    def _count(self, request: Request, text: str) -> tuple[int, int]:
        """Tokens of prompt and reply where the server does not say: not known here."""
        return 0, 0


def whole_text(text: str) -> str:
    """Text that every file and server takes: half a pair of UTF-16 is replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(request: Request) -> list[dict[str, str]]:
    return [{"role": m.role, "content": whole_text(m.content)} for m in request.messages]


def read_key(settings: Endpoint, section: str) -> str | None:
    """The key of a server whose address is looked at first; None where there is none.

    Raises:
        EngineError: an address that is none, or a key that no request can carry.
    """
    try:
        parts = urllib.parse.urlsplit(settings.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char.isspace() for char in settings.url):
        raise EngineError(
            f"{section}.url wants http:// or https:// and a host, found "
            f"{settings.url.rpartition('@')[2]}."
        )
    key = os.environ.get(settings.key_env, "").strip()  # secret files end with a line break
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"the key in the environment variable {settings.key_env} holds characters that no "
            "request can carry, such as a line break or a typographic dash. Copy it anew."
        )
    return key or None


def open_endpoint(
    settings: Endpoint, models: Mapping[Role, str], models_key: str, seed: int = 0
) -> RemoteEngine:
    """The server that a section of a recipe names; ``models_key``: where its models are named.

    Raises:
        EngineError: no model name, an address that is none, or a key that no request can carry.
    """
    if not all(models.values()):
        raise EngineError(f"{models_key} wants the model's name at the endpoint, found none.")
    key = read_key(settings, models_key.partition(".")[0])
    return RemoteEngine(
        settings.url,
        models,
        key,
        settings.parallel,
        models_key,
        seed=seed,
        extra=settings.extra,
    )
