"""An OpenAI-compatible server behind the engine protocol: vLLM, llama.cpp, a paid endpoint.

Standard library only: one POST a request, a few at a time, again after a pause where the server is
busy. The key comes from the environment and is never written anywhere: no message quotes a request,
and what a server says is shown without it. A role is a served model's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spar_lite.engines.base import Completion, Request
from spar_lite.errors import EngineError
from spar_lite.recipe import Endpoint
from spar_lite.records import Role

BUSY = (408, 409, 429, 500, 502, 503, 504)
"""HTTP answers that are worth another try."""

TRIES = 5
TIMEOUT = 300.0


@dataclass
class RemoteEngine:
    """Engine over HTTP.

    ``models``: the name of the served model that answers as each role. ``models_key``: where the
    recipe says so, for messages. ``pause``: seconds before the second try, doubled each time.
    """

    url: str = field(repr=False)
    models: Mapping[Role, str]
    key: str | None = field(repr=False)
    parallel: int
    models_key: str = "engine.models"
    pause: float = 1.0
    on_tokens: Callable[[int], None] = field(default=lambda _: None, repr=False)
    _loaded: dict[Role, Path | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.parallel, "endpoint")

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request; see the protocol.

        Raises:
            EngineError: the endpoint cannot be reached or refuses; what it said is quoted.
        """
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(self._pool, self._one, role, each) for each in requests)
        found = list(await asyncio.gather(*calls))
        self.on_tokens(sum(completion.completion_tokens for completion in found))
        return found

    def use(self, role: Role, folder: Path | None) -> None:
        """Have the server answer as ``role`` with this adapter, by vLLM's endpoint; None: the base.

        Raises:
            EngineError: it does not load adapters, or not this one.
        """
        if folder is not None and self._loaded.get(role) != folder:
            body = {"lora_name": self.models[role], "lora_path": str(folder.resolve())}
            self._post("/load_lora_adapter", body | {"load_inplace": True})
        self._loaded[role] = folder

    def _one(self, role: Role, request: Request) -> Completion:
        bare = role in self._loaded and self._loaded[role] is None
        body = {
            "model": self.models["base" if bare else role],
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
        }
        try:
            return _completion(request, json.loads(self._post("/chat/completions", body)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._foreign(error) from None

    def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """What the endpoint answers, asked again while it is busy."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address, data = self.url.rstrip("/") + path, json.dumps(body).encode()
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            said = ""
            try:
                call = urllib.request.Request(address, data, headers)
                with urllib.request.urlopen(call, timeout=TIMEOUT) as reply:
                    return bytes(reply.read())
            except urllib.error.HTTPError as error:
                with contextlib.suppress(http.client.HTTPException, OSError):
                    said = self._safe(error.read().decode("utf-8", "replace"))
                fault = f"{self._shown} answered {error.code}: {' '.join(said.split())[:200]}"
                if error.code not in BUSY:
                    hint = self._hint(error.code, path)
                    raise EngineError(f"{fault}. {hint}".strip()) from None
            except http.client.HTTPException as error:  # cut off, or no HTTP at all
                fault = f"{self._shown} gave no whole answer ({type(error).__name__})"
            except (urllib.error.URLError, OSError) as error:
                fault = f"{self._shown} cannot be reached ({self._safe(str(error))})"
            except ValueError as error:
                raise self._foreign(error) from None  # an address or a key that none can carry
        raise EngineError(f"{fault}, {TRIES} times. The same command goes on from here.")

    def _foreign(self, error: Exception) -> EngineError:
        """Its kind alone: what it says may quote what was sent, the key among it."""
        return EngineError(
            f"{self._shown} gave no chat completion ({type(error).__name__}). Is it "
            "OpenAI-compatible?"
        )

    @property
    def _shown(self) -> str:
        """The address without a password or query, which may be secrets too."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _safe(self, text: str) -> str:
        """What a server or the system said, without the key and without the whole address."""
        text = text.replace(self.url, self._shown)
        return text.replace(self.key, "(key)") if self.key else text

    def _hint(self, code: int, path: str) -> str:
        section = self.models_key.partition(".")[0]
        if code in (401, 403):
            return f"Is the key in the environment variable that {section}.key_env names?"
        if path == "/load_lora_adapter":
            return (
                "It must load adapters: start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where it sees the run's folder."
            )
        return f"See {section}.url and {self.models_key}." if code == 404 else ""


def open_endpoint(
    settings: Endpoint, models: Mapping[Role, str], models_key: str = "engine.models"
) -> RemoteEngine:
    """The server that a section of a recipe names; ``models_key``: where its models are named.

    Raises:
        EngineError: no model name, an address that is none, or a key that no request can carry.
    """
    if not all(models.values()):
        raise EngineError(f"{models_key} wants the model's name at the endpoint, found none.")
    try:
        parts = urllib.parse.urlsplit(settings.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char.isspace() for char in settings.url):
        section = models_key.partition(".")[0]
        raise EngineError(
            f"{section}.url wants http:// or https:// and a host, found {settings.url}."
        )
    key = os.environ.get(settings.key_env, "").strip()  # secret files end with a line break
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"the key in the environment variable {settings.key_env} holds characters that no "
            "request can carry, such as a line break or a typographic dash. Copy it anew."
        )
    return RemoteEngine(settings.url, models, key or None, settings.parallel, models_key)


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
