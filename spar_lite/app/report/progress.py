"""Progress of a run: a live bar on a terminal, plain lines elsewhere.

Shows items, tokens a second and time left; knows nothing of stages.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from spar_lite.run import Screen

LINE_EVERY = 20.0
"""Seconds between two plain progress lines of one stage."""


class LiveScreen(Screen):
    """A bar per stage on a terminal; finished stages stay as lines above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task: TaskID | None = None
        self.stage, self.count, self.begun = "", 0, time.perf_counter()

    def start(self, stage: str, total: int, unit: str) -> None:
        """Show a stage; a second start of the same stage corrects its total."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.progress.start()
        self.stage, self.count, self.begun = stage, 0, time.perf_counter()
        self.task = self.progress.add_task(stage, total=total or None, unit=unit, rate="")

    def advance(self, items: int) -> None:
        """Move the bar."""
        if self.task is not None and items:
            self.progress.advance(self.task, items)

    def tokens(self, count: int) -> None:
        """Update the rate."""
        self.count += count
        seconds = time.perf_counter() - self.begun
        if self.task is not None and seconds > 0:
            self.progress.update(self.task, rate=f"{self.count / seconds:.0f} tokens/s")

    def end(self, note: str) -> None:
        """Take the bar away and leave one line."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.progress.stop()
        seconds = time.perf_counter() - self.begun
        self.console.print(f"[green]✓[/] {escape(self.stage)}: {escape(note)} ({seconds:.0f} s)")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(f"[dim]{escape(text)}[/]")

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        self.progress.stop()


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
            self._print(f"{stage}: {total or '?'} {unit}")
        self.stage, self.unit, self.total = stage, unit, total
        self.done = self.count = 0
        self.begun = self.shown = time.perf_counter()

    def advance(self, items: int) -> None:
        """Count items."""
        self.done += items
        self._maybe()

    def tokens(self, count: int) -> None:
        """Count tokens."""
        self.count += count
        self._maybe()

    def end(self, note: str) -> None:
        """Print the stage's result."""
        seconds = time.perf_counter() - self.begun
        self._print(f"{self.stage}: done in {seconds:.0f} s: {note}")

    def say(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def _maybe(self) -> None:
        now = time.perf_counter()
        if now - self.shown < LINE_EVERY:
            return
        self.shown = now
        seconds = now - self.begun
        left = f", {seconds / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        self._print(
            f"{self.stage}: {self.done}/{self.total or '?'} {self.unit}, "
            f"{self.count / seconds:.0f} tokens/s{left}"
        )

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_screen(console: Console) -> Screen:
    """A live screen where the console is a terminal, else plain lines."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)
