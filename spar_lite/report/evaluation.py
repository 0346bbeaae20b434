"""The table of one scorecard: every score with its interval and n, and what it cost.

Built from the scorecard alone; nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

PLAIN = {"answer_words"}
"""Scores that are no shares."""


def card_table(card: Mapping[str, Any]) -> Table:
    """One row a score."""
    table = Table(title=escape(title(card)), title_justify="left", caption=_caption(card))
    table.add_column("score")
    table.add_column("value [95 % interval]".replace("[", "\\["), justify="right")
    table.add_column("n", justify="right")
    for name, score in card["scores"].items():
        table.add_row(escape(label(name)), escape(shown(name, score)), str(score["n"]))
    return table


def title(card: Mapping[str, Any]) -> str:
    """Task, target and how it was decoded."""
    way = card["settings"].get("decode")
    budget = card["settings"].get("budget")
    how = f", {way}{f' ({budget})' if budget else ''}" if way else ""
    return f"{card['task']}: {card['target']}{how}"


def label(name: str) -> str:
    """A score's name for people."""
    first, _, rest = name.partition("/")
    words = first.replace("_", " ")
    percent = "" if first in PLAIN else ", %"
    return f"… {words}, {rest}{percent}" if rest else words + percent


def shown(name: str, score: Mapping[str, Any]) -> str:
    """Value and interval; shares as percentages."""
    if not score["n"] or math.isnan(score["value"]):
        return "-"
    scale = 1 if name.partition("/")[0] in PLAIN else 100
    value, low, high = (scale * score[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _caption(card: Mapping[str, Any]) -> str:
    cost = card.get("cost")
    if not cost:
        return ""
    return (
        f"{cost['calls']:,} calls, {cost['prompt_tokens']:,} tokens in, "
        f"{cost['completion_tokens']:,} out, {card.get('seconds', 0):,.0f} s"
    )
