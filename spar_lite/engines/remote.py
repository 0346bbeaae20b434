"""An OpenAI-compatible endpoint behind the engine protocol.

Standard library only: one POST a request, a few at a time, again after a pause where the server is
busy. The key comes from the environment and is never written anywhere: no message quotes a request,
and what a server says is shown without it. Roles mean nothing here: one model answers for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spar_lite.engines.base import Completion, Request
from spar_lite.errors import EngineError
from spar_lite.recipe import Evolve
from spar_lite.records import Role

BUSY = (408, 409, 429, 500, 502, 503, 504)
"""HTTP answers that are worth another try."""

TRIES = 5
TIMEOUT = 300.0


@dataclass
class RemoteEngine:
    """Engine over HTTP. ``pause``: seconds before the second try, doubled each time."""

    url: str = field(repr=False)
    model: str
    key: str | None = field(repr=False)
    parallel: int
    pause: float = 1.0
    _gate: asyncio.Semaphore | None = field(default=None, repr=False)

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request; see the protocol.

        Raises:
            EngineError: the endpoint cannot be reached or refuses; what it said is quoted.
        """
        if self._gate is None:
            self._gate = asyncio.Semaphore(self.parallel)
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _one(self, request: Request) -> Completion:
        assert self._gate is not None
        async with self._gate:
            for attempt in range(TRIES):
                said = ""
                try:
                    found = await asyncio.to_thread(self._post, request)
                    return _completion(request, found)
                except urllib.error.HTTPError as error:
                    with contextlib.suppress(http.client.HTTPException, OSError):
                        said = self._safe(error.read().decode("utf-8", "replace"))
                    fault = f"{self._shown} answered {error.code}: {' '.join(said.split())[:200]}"
                    if error.code not in BUSY:
                        raise EngineError(f"{fault}. {_hint(error.code)}") from None
                except http.client.HTTPException as error:  # cut off, or no HTTP at all
                    fault = f"{self._shown} gave no whole answer ({type(error).__name__})"
                except (urllib.error.URLError, OSError) as error:
                    fault = f"{self._shown} cannot be reached ({self._safe(str(error))})"
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    # Its kind alone: what it says may quote what was sent, the key among it.
                    raise EngineError(
                        f"{self._shown} gave no chat completion ({type(error).__name__}). Is it "
                        "OpenAI-compatible?"
                    ) from None
                if attempt < TRIES - 1:
                    await asyncio.sleep(self.pause * 2**attempt)
        raise EngineError(f"{fault}, {TRIES} times. The same command goes on from here.")

    @property
    def _shown(self) -> str:
        """The address without a password or query, which may be secrets too."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _safe(self, text: str) -> str:
        """What a server or the system said, without the key and without the whole address."""
        text = text.replace(self.url, self._shown)
        return text.replace(self.key, "(key)") if self.key else text

    def _post(self, request: Request) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        call = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(call, timeout=TIMEOUT) as reply:
            found: dict[str, Any] = json.loads(reply.read())
        return found


def open_remote(settings: Evolve) -> RemoteEngine:
    """The endpoint of a recipe's evolve section.

    Raises:
        EngineError: no model name, an address that is none, or a key that no request can carry.
    """
    if not settings.model:
        raise EngineError("evolve.model wants the model's name at the endpoint, found none.")
    try:
        parts = urllib.parse.urlsplit(settings.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char.isspace() for char in settings.url):
        raise EngineError(f"evolve.url wants http:// or https:// and a host, found {settings.url}.")
    key = os.environ.get(settings.key_env, "").strip()  # secret files end with a line break
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"the key in the environment variable {settings.key_env} holds characters that no "
            "request can carry, such as a line break or a typographic dash. Copy it anew."
        )
    return RemoteEngine(settings.url, settings.model, key or None, settings.parallel)


def _completion(request: Request, found: dict[str, Any]) -> Completion:
    choice = found["choices"][0]
    usage = found.get("usage") or {}
    return Completion(
        request.id,
        str(choice["message"]["content"] or ""),
        int(usage.get("prompt_tokens", 0)),
        int(usage.get("completion_tokens", 0)),
        choice.get("finish_reason") != "length",
    )


def _hint(code: int) -> str:
    if code in (401, 403):
        return "Is the key in the environment variable that evolve.key_env names?"
    return "See evolve.url and evolve.model." if code == 404 else ""
