"""The table of general tasks: one row a figure, with its interval and n.

Built from the scorecard alone; nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def general_table(card: Mapping[str, Any]) -> Table:
    """The figures of every task; shares of 0 to 1 as percentages."""
    table = Table(
        title=escape(f"general: {card['target']}"),
        title_justify="left",
        caption=f"{card['requests']:,} requests, {card['seconds']:,.0f} s",
    )
    for name in ("task", "metric"):
        table.add_column(name)
    table.add_column("value \\[95 % interval]", justify="right")
    table.add_column("n", justify="right")
    for name, score in card["scores"].items():
        task, _, metric = name.rpartition(":")
        table.add_row(escape(task), escape(metric), escape(_shown(score)), str(score["n"]))
    return table


def _shown(score: Mapping[str, Any]) -> str:
    value, low, high = score["value"], score["low"], score["high"]
    percent = 0 <= value <= 1
    scale, unit = (100, " %") if percent else (1, "")
    known = low is not None and not math.isnan(low)
    span = f" [{scale * low:.1f}, {scale * high:.1f}]" if known else ""
    return f"{scale * value:.1f}{span}{unit}"
