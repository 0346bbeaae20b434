"""HTTP to an OpenAI-compatible server: one call, and what its faults mean.

A fault is one of three: ``Busy``, so that the call is worth another try; ``Refused``, so that it is
not; ``Filtered``, which concerns this one prompt. No message quotes a request, and what a server
says is shown without the key. What asks again stands in ``remote``.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from spar_lite.errors import EngineError

BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP answers that are worth another try."""

AWAY = (0, 502, 503, 504)
"""Those that a server, or what stands before it, gives while it starts anew; 0: no answer."""

TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
"""Seconds without a byte until a call counts as cut off: a long reply comes as a whole."""

FILTERS = (
    "content_filter", "content_policy", "content management policy", "responsibleaipolicy",
    "flagged as potentially", "requires moderation", "data_inspection_failed",
)  # fmt: skip
"""What servers say when a filter took offence at a prompt (OpenAI, Azure, OpenRouter, Alibaba)."""


class Busy(Exception):
    """The server did not answer, or asks for patience: ``wait`` seconds, if it says how many."""

    def __init__(self, said: str, code: int = 0, wait: float = 0.0) -> None:
        super().__init__(said)
        self.code, self.wait = code, wait

    @property
    def away(self) -> bool:
        """Whether it may have been stopped: then its adapters may be gone."""
        return self.code in AWAY

    @property
    def passes(self) -> bool:
        """Whether minutes may mend it."""
        return self.away or self.code in (429, 529)


class Refused(EngineError):
    """The server will not do it; ``said``: its words, whole."""

    def __init__(self, message: str, code: int, said: str) -> None:
        super().__init__(message)
        self.code, self.said = code, said


class Filtered(Exception):
    """The server's filter refused this prompt."""


@dataclass
class Here:
    """What belongs to one event loop: connections, the places for requests, one to get ready."""

    loop: asyncio.AbstractEventLoop
    client: httpx2.AsyncClient
    places: asyncio.Semaphore
    ready: asyncio.Lock
    end: AsyncIterator[None]


@dataclass
class Transport:
    """Calls to the server at ``url``, ``parallel`` at a time; ``section``: the recipe's."""

    url: str = field(repr=False)
    key: str | None = field(repr=False)
    parallel: int
    section: str = "engine"
    _here: Here | None = field(default=None, repr=False)

    async def here(self) -> Here:
        """What belongs to the running event loop; its connections are closed when the loop ends."""
        loop = asyncio.get_running_loop()
        if self._here is None or self._here.loop is not loop:
            headers = {"Content-Type": "application/json"}
            if self.key:
                headers["Authorization"] = f"Bearer {self.key}"
            try:
                # A proxy is for the way out, not for this machine.
                trust = urllib.parse.urlsplit(self.url).hostname not in LOOPBACK
                limits = httpx2.Limits(max_keepalive_connections=self.parallel)
                client = httpx2.AsyncClient(
                    headers=headers, timeout=TIMEOUT, limits=limits, trust_env=trust
                )
            except (ValueError, httpx2.InvalidURL) as error:
                raise self.foreign(error) from None
            places, ready = asyncio.Semaphore(self.parallel), asyncio.Lock()
            # asyncio.run closes async generators that were begun in it, and so the connections.
            self._here = Here(loop, client, places, ready, _closed_at_end(client))
            await anext(self._here.end)
        return self._here

    async def send(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST a body, or GET without one; the answer's JSON, or its text where it is none.

        Raises:
            Busy, Refused, Filtered: see there.
            EngineError: this is no address, or no key, that a request can carry.
        """
        method = "GET" if body is None else "POST"
        content = None if body is None else json.dumps(body)
        base = self.root if path == "/health" else self.url.rstrip("/")
        client = (await self.here()).client
        try:
            reply = await client.request(method, base + path, content=content)
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
            raise self.foreign(error) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Busy(f"{self.shown} cannot be reached ({self.safe(str(error))})") from None
        except httpx2.TransportError as error:
            kind = type(error).__name__
            raise Busy(f"{self.shown} gave no whole answer ({kind})") from None
        except (httpx2.RequestError, httpx2.InvalidURL, ValueError) as error:
            raise self.foreign(error) from None
        try:
            found = json.loads(reply.text)
        except ValueError:
            found = reply.text
        fault, code = _error_in(found), reply.status_code
        if 200 <= code < 300 and fault is not None:
            code = _code(fault)
        if code >= 300:
            self._raise(code, fault, reply)
        return found

    def _raise(self, code: int, fault: dict[str, Any] | None, reply: httpx2.Response) -> None:
        said = self.safe(" ".join(str((fault or {}).get("message") or reply.text).split()))
        line = f"{self.shown} answered {code}: {said[:200]}"
        if code in (400, 403, 422, 451) and _by_filter(fault):
            raise Filtered(line)
        if code in BUSY:
            raise Busy(line, code, _retry_after(reply.headers.get("Retry-After")))
        hint = ""
        if code in (401, 403):
            hint = f" Is the key in the environment variable that {self.section}.key_env names?"
        elif code == 404:
            models = "models" if self.section == "engine" else "model"
            hint = f" See {self.section}.url and {self.section}.{models}."
        raise Refused(f"{line.rstrip('.')}.{hint}", code, said)

    @property
    def root(self) -> str:
        """The address without the version of the protocol: there a server says how it is."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def shown(self) -> str:
        """The address without a password or query, which may be secrets too."""
        return without_secrets(self.url)

    def safe(self, text: str) -> str:
        """What a server or the system said, without the key and without the whole address."""
        text = text.replace(self.url, self.shown)
        return text.replace(self.key, "(key)") if self.key else text

    def foreign(self, error: Exception) -> EngineError:
        """Its kind alone: what it says may quote what was sent, the key among it."""
        return EngineError(
            f"{self.shown} gave no chat completion ({type(error).__name__}). Is it "
            "OpenAI-compatible?"
        )


def without_secrets(url: str) -> str:
    """An address without a password or query."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def _closed_at_end(client: httpx2.AsyncClient) -> AsyncIterator[None]:
    async with contextlib.aclosing(client):
        yield


def _error_in(found: Any) -> dict[str, Any] | None:
    """The error that an answer holds, whatever its status says; None if there is none."""
    if not isinstance(found, dict):
        return None
    if found.get("object") == "error":
        return found
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = found.get("error") or (first.get("error") if isinstance(first, dict) else None)
    if not error:
        return None
    return error if isinstance(error, dict) else {"message": str(error)}


def _code(error: dict[str, Any]) -> int:
    """The status that an error inside a good answer stands for; one not said may pass."""
    code = str(error.get("code"))
    if _by_filter(error):
        return 400
    return int(code) if code.isdigit() and 400 <= int(code) < 600 else 500


def _by_filter(error: dict[str, Any] | None) -> bool:
    return any(word in json.dumps(error).lower() for word in FILTERS)


def _retry_after(header: str | None) -> float:
    """Seconds that a Retry-After asks for, as a number or as a date; 0 where it says none."""
    try:
        return max(0.0, min(float(header or 0), 1e6))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    except ValueError:
        return 0.0
