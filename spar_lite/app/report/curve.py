"""The warm-up curve as a table: rows, cost, judging and mending, on seen and unseen kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from spar_lite.app.report.evaluation import shown

COLUMNS = {
    "judge right, %": ("judge", "accuracy"),
    "votes unreadable, %": ("judge", "unreadable_votes"),
    "truly mended, %": ("refine", "truly_mended"),
    "believed mended, %": ("refine", "believed_mended"),
}


def curve_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """One line a size and set of kinds."""
    table = Table(
        title=escape("Warm-up: rows taught against judging and mending [95 % interval]"),
        title_justify="left",
        caption="Half of the judge's cases are Yes, so 50 % is what a constant judge gets.",
    )
    for name in ("rows", "seconds", "kinds", *COLUMNS):
        table.add_column(name, justify="left" if name == "kinds" else "right")
    for point in points:
        for name in ("seen", "unseen"):
            if name in point:
                table.add_row(
                    f"{point['rows']}", f"{point['seconds']:.0f}", name, *_cells(point[name])
                )
    return table


def _cells(cards: Mapping[str, Any]) -> list[str]:
    scores = [(key, cards[card]["scores"][key]) for card, key in COLUMNS.values()]
    return [f"{escape(shown(key, score))} n={score['n']}" for key, score in scores]
