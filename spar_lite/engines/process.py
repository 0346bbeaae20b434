"""A server that the run itself starts (``engine.start``), and never leaves behind."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import weakref
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from spar_lite.engines.guard import GRACE
from spar_lite.errors import EngineError

START_SECONDS = 1800.0
"""A large model is read, and its kernels are compiled."""

LINE_EVERY = 20.0
"""Seconds between two lines of progress."""

KEYS = {"--api-key", "--admin-api-key", "--hf-token", "-hft"}
"""Options of vLLM, SGLang and llama.cpp whose values open something."""

ADAPTERS_MAY_CHANGE = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


class ServerProcess:
    """The server, started when it is needed; its words go to a log file.

    Args:
        command: the program and its arguments; --host and --port of ``url`` are added where it
            names none.
        url: where it will answer, on this machine.
        log: its output is added to this file.
        say: told how far it is.
        key: never shown, nor are those that the command names (``KEYS``): a server may print both.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        url: str,
        log: Path,
        say: Callable[[str], None],
        key: str | None = None,
    ) -> None:
        words = shlex.split(command) if isinstance(command, str) else list(command)
        parts = urllib.parse.urlsplit(url)
        host = "127.0.0.1" if parts.hostname == "localhost" else str(parts.hostname)
        self.place = host, parts.port or (443 if parts.scheme == "https" else 80)
        for option, value in zip(("--host", "--port"), self.place, strict=True):
            if not any(word.partition("=")[0] == option for word in words):
                words += [option, str(value)]
        self.command, self.log, self.say = words, log, say
        named, option = [], ""
        for part in (part for word in words for part in word.split("=", 1)):
            option = part if part.startswith("-") else option
            named += [part] if option in KEYS and part != option else []  # vLLM takes several
        # A longer one first: another may be a part of it.
        self._secrets = sorted(filter(None, {key, *named}), key=len, reverse=True)
        self._end: weakref.finalize[..., ServerProcess] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it is there, as far as the system knows."""
        return self._guard is not None and self._guard.poll() is None

    async def start(self, healthy: Callable[[], Awaitable[bool]]) -> None:
        """Start it unless it runs, and wait until it is ``healthy``.

        Raises:
            EngineError: it ends instead, does not become healthy, or another has its place.
        """
        if self.running:
            return
        self.stop()
        if self._taken():
            raise EngineError(
                f"engine.start: something answers on port {self.place[1]} already. Stop it, give "
                "engine.url another port, or leave engine.start out to use what is there."
            )
        name, begin = self.command[0], time.monotonic()
        self.say(f"starting {name}; what it says is in {self.log}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            offset = log.tell()
            guard = subprocess.Popen(
                [sys.executable, "-m", "spar_lite.engines.guard", *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=ADAPTERS_MAY_CHANGE | os.environ,
                start_new_session=True,  # Ctrl-C is for the run, which then ends the server
            )
        self._guard, self._end = guard, weakref.finalize(self, _stop, guard)
        shown = begin
        while not await healthy():
            now = time.monotonic()
            if guard.poll() is not None or now - begin > START_SECONDS:
                self.stop()
                raise EngineError(
                    f"engine.start: {name} did not come up in {now - begin:.0f} s. It said: "
                    f"{self._last_words(offset)} (all of it: {self.log})"
                )
            if now - shown > LINE_EVERY:
                shown = now
                self.say(f"{name}: {now - begin:.0f} s: {self._last_words(offset)}")
            await asyncio.sleep(0.5)
        self.say(f"{name} answers after {time.monotonic() - begin:.0f} s")

    def stop(self) -> None:
        """End it, with all its children; there need be none."""
        if self._end is not None:
            self._end()
        self._guard = self._end = None

    def _taken(self) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in self.place[0] else socket.AF_INET) as place:
            return place.connect_ex(self.place) == 0

    def _last_words(self, offset: int) -> str:
        with self.log.open("rb") as log:
            log.seek(offset)
            lines = log.read().decode("utf-8", "replace").split("\n")
        words = " ".join(" ".join(lines).split())
        for secret in self._secrets:  # before a cut that may leave half of one
            words = words.replace(secret, "(key)")
        return words[-300:] or "nothing"


def _stop(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(GRACE + 10)
    except subprocess.TimeoutExpired:
        os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
