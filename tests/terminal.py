"""A command in a terminal of its own (a pseudo-terminal), as a person types and sees it.

``python -m tests.terminal WORDS`` is ``spar-lite WORDS`` with a model that is scripted.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from spar_lite.app.cli import main
from spar_lite.engines.base import Request
from spar_lite.records import Role
from tests.loops import mends
from tests.scripted import ScriptedEngine


class Terminal:
    """``python -m WORDS`` on a pseudo-terminal; what it shows is in ``shown``."""

    def __init__(self, *words: object, patience: float = 60) -> None:
        self.main, self._side = pty.openpty()
        self.before = termios.tcgetattr(self._side)
        self.shown, self._seen, self.patience = "", 0, patience
        known = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdin=self._side,
            stdout=self._side,
            stderr=self._side,
            cwd=Path(__file__).parents[1],
            env=known,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )

    def _take_terminal(self) -> None:
        """Make it the terminal that sends Ctrl-C, as a shell does."""
        import fcntl

        fcntl.ioctl(self._side, termios.TIOCSCTTY, 0)

    def type(self, line: str) -> None:
        os.write(self.main, f"{line}\n".encode())

    def press_ctrl_c(self) -> None:
        os.write(self.main, b"\x03")

    def wait_for(self, pattern: str) -> str:
        """Read on until this is shown, after what was last waited for; returns all until then.

        Raises:
            AssertionError: it does not come.
        """
        end = time.monotonic() + self.patience
        while not (found := re.compile(pattern).search(self.shown, self._seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.shown[self._seen :]!r}"
            assert self._read(0.2) or self.process.poll() is None, self.shown
        part = self.shown[self._seen : found.end()]
        self._seen = found.end()
        return part

    def _read(self, seconds: float) -> bool:
        if not select.select([self.main], [], [], seconds)[0]:
            return False
        self.shown += os.read(self.main, 65536).decode(errors="replace")
        return True

    def end(self) -> int:
        """Wait until the command is over; its exit code."""
        code = self.process.wait(self.patience)
        while self._read(0.1):
            pass
        return code

    def restored(self) -> bool:
        """Whether the terminal is as it was: echo and line mode, and a cursor that is seen."""
        hidden, seen = self.shown.rfind("\x1b[?25l"), self.shown.rfind("\x1b[?25h")
        return termios.tcgetattr(self._side) == self.before and seen >= hidden

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.main)
        os.close(self._side)


class Slow(ScriptedEngine):
    """Answers in a stream, a word at a time; what is mended passes the judge."""

    def stream(self, role: Role, request: Request) -> Iterator[str]:
        said = ""
        for number in range(40 if "long" in request.messages[-1].content else 3):
            said += f"{role}{number} "
            yield said
            time.sleep(0.05)

    @staticmethod
    def say(role: Role, request: Request) -> str:
        return mends(role, request, f"{role} says so")


if __name__ == "__main__":
    with mock.patch("spar_lite.app.talk._open", lambda *_: Slow(Slow.say)):
        main(prog_name="spar-lite")
