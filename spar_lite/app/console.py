"""The terminal: how a run's progress is shown there, and one process a folder.

A live bar on a terminal, plain lines elsewhere; both know nothing of stages.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from spar_lite.errors import StoreError
from spar_lite.run import Screen

INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters, marks of direction, of no width, halves of pairs: none may work on a screen
unseen. Joiners of letters and emoji are left to do their work."""

LONGEST = 3000
"""Characters of a text that are shown."""

LINE_EVERY = 20.0
"""Seconds between two plain progress lines of one stage."""


def make_console(stderr: bool = False) -> Console:
    """A console on standard output, or on standard error where output is for programs."""
    console = Console(stderr=stderr)
    # A log or a pipe has no width of its own: wide enough that no table cell is cut.
    return console if console.is_terminal else Console(width=160, stderr=stderr)


def print_plain(console: Console, text: str, style: str | None = None, end: str = "\n") -> None:
    """A line that nothing is read into and that is not broken."""
    console.print(text, style=style, end=end, markup=False, highlight=False, soft_wrap=True)


def harmless(text: str) -> str:
    """What a model wrote, without what would move a terminal's cursor, colour it or turn its text.

    Line breaks and tabs stay.
    """
    return INVISIBLE.sub("", text)


def plain(text: str) -> str:
    """A text as it is shown: what is invisible is named, what is too long is cut."""
    left = len(text) - LONGEST
    seen = INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text[:LONGEST])
    return seen + (f" … ({left:,} more characters)" if left > 0 else "")


def print_alarms(console: Console, found: Mapping[str, Sequence[str]]) -> None:
    """What got worse, in red, by the step in which it did."""
    for step, said in found.items():
        for sentence in said:
            print_plain(console, f"{step}: {sentence}", "red")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of the same run folder; a killed one leaves no lock behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"{folder} is in use by another spar-lite run.") from None
        yield


class PlainScreen(Screen):
    """One line at a stage's start and end, and one every ``LINE_EVERY`` seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage, self.unit = "", ""
        self.total = self.done = self.count = 0
        self.begun = self.shown = time.perf_counter()

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage; a second start of the same stage corrects its total."""
        if stage != self.stage:
            self.say(f"{stage}: {total or '?'} {unit}")
        self.stage, self.unit, self.total = stage, unit, total
        self.done = self.count = 0
        self.begun = self.shown = time.perf_counter()

    def advance(self, items: int) -> None:
        self.done += items
        self.show(time.perf_counter())

    def tokens(self, count: int) -> None:
        self.count += count
        self.show(time.perf_counter())

    def end(self, note: str) -> None:
        self.say(f"{self.stage}: done in {time.perf_counter() - self.begun:.0f} s: {note}")

    def say(self, text: str) -> None:
        print_plain(self.console, text)

    def show(self, now: float) -> None:
        """How far the stage is, if it is time for a line."""
        if now - self.shown < LINE_EVERY:
            return
        self.shown, seconds = now, now - self.begun
        left = f", {seconds / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        self.say(
            f"{self.stage}: {self.done}/{self.total or '?'} {self.unit}, "
            f"{self.count / seconds:.0f} tokens/s{left}"
        )


class LiveScreen(PlainScreen):
    """A bar per stage on a terminal; finished stages stay as lines above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )

    def start(self, stage: str, total: int, unit: str) -> None:
        self._drop_bar()
        self.stage = stage  # the bar says that it began
        super().start(stage, total, unit)
        self.progress.start()
        self.progress.add_task(stage, total=total or None, unit=unit, rate="")

    def end(self, note: str) -> None:
        self._drop_bar()
        self.progress.stop()
        seconds = time.perf_counter() - self.begun
        self.console.print(f"[green]✓[/] {escape(self.stage)}: {escape(note)} ({seconds:.0f} s)")

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/]")

    def show(self, now: float) -> None:
        """Move the bar."""
        rate = f"{self.count / (now - self.begun):.0f} tokens/s" if self.count else ""
        for task in self.progress.task_ids:
            self.progress.update(task, completed=self.done, rate=rate)

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        self.progress.stop()

    def _drop_bar(self) -> None:
        for task in self.progress.task_ids:
            self.progress.remove_task(task)


def make_screen(console: Console) -> Screen:
    """A live screen where the console is a terminal, else plain lines."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)
