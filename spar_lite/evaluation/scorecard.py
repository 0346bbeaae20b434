"""One evaluation on disk: results that resume by id, and the scores, written last.

``NAME.settings.json`` is written first, so that results of other settings are never mixed in;
``NAME.jsonl`` has one record a prompt, each with an ``id`` and, where runs are compared, a
``score`` between 0 and 1; ``NAME.done.json`` holds the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from spar_lite.errors import StoreError
from spar_lite.evaluation.stats import Interval
from spar_lite.store import Marker, StageFile, read_lines

T = TypeVar("T")

Scores = Mapping[str, Interval]


class Scorecard(Generic[T]):
    """The files of one evaluation.

    Args:
        folder: the target's own, such as RUN/eval/iteration-1.
        name: task and decoding, such as "ifeval-greedy".
        kind: the record type of its results.
    """

    def __init__(self, folder: Path, name: str, kind: type[T]) -> None:
        self.folder, self.name = folder, name
        self.results = StageFile(folder, name, kind)
        self._settings = Marker(folder, f"{name}.settings")
        self._done = Marker(folder, name)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Claim the files for these settings.

        Raises:
            StoreError: results are there that were made with other settings.
        """
        found = self._settings.read()
        if found is None:
            self._settings.write(dict(settings))
            return
        for key in sorted({*found, *settings}):
            if found.get(key) != settings.get(key):
                raise StoreError(
                    f"{self.results.path} was made with {key}: {found.get(key)!r}, now it is "
                    f"{settings.get(key)!r}. Keep both with --out FOLDER, or remove the old files."
                )

    def finished(self) -> dict[str, Any] | None:
        """What ``finish`` wrote, or None where it has not come to that."""
        return self._done.read()

    def finish(
        self, task: str, target: str, settings: Mapping[str, Any], scores: Scores, **more: Any
    ) -> dict[str, Any]:
        """Write the scores; return what was written."""
        card = {
            "task": task,
            "target": target,
            "settings": dict(settings),
            "scores": {name: asdict(score) for name, score in scores.items()},
            "results_file": self.results.path.name,
            **more,
        }
        self._done.write(card)
        written = self._done.read()  # as a later call reads it: a figure there is none of is None
        assert written is not None
        return written


def scorecards(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Finished evaluations under a folder: ("iteration-1/ifeval-greedy", card), in order."""
    for path in sorted(folder.glob("*/*.done.json")):
        name = path.name.removesuffix(".done.json")
        if not name.endswith(".settings"):
            card = Marker(path.parent, name).read()
            if card is not None:
                yield f"{path.parent.name}/{name}", card


def points(folder: Path, place: str, card: Mapping[str, Any]) -> dict[str, float]:
    """Score by prompt id of an evaluation that ``scorecards`` found under ``folder``."""
    lines = read_lines(folder / place / card["results_file"])
    return {line["id"]: line["score"] for line in lines}
