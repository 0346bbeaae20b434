"""The table of one scorecard: every score with its interval and n, and what it cost.

Built from the scorecard alone; nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

PLAIN = {"answer_words": 1, "base_logp": 2}
"""Scores that are no shares, and their digits."""

TITLES = {
    "answers_that_count": "answers that count, %",
    "constraints_met": "constraints met, whatever meets them, %",
    "on_topic": "on topic, %",
    "says_it_twice": "say something twice, %",
    "empty": "empty, %",
    "cut_off": "cut off, %",
    "answer_words": "words per answer",
    "base_logp": "log p per token under the base",
    "readable_votes": "readable votes, %",
    "judge_agreement": "judge agrees with program, %",
    "always_no_agreement": "… a judge that always says No, %",
    "readable_refinements": "readable refinements, %",
    "truly_mended": "failed answers truly mended, %",
}
"""Names for people, in their order, of what held-out answers are scored by."""


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
    if name in TITLES:
        return TITLES[name]
    first, _, rest = name.partition("/")
    words = first.replace("_", " ")
    percent = "" if first in PLAIN else ", %"
    return f"… {words}, {rest}{percent}" if rest else words + percent


def shown(name: str, score: Mapping[str, Any]) -> str:
    """Value and interval; shares as percentages."""
    if not score["n"] or score["value"] is None or math.isnan(score["value"]):
        return "-"
    digits = PLAIN.get(name.partition("/")[0])
    scale, places = (100, 1) if digits is None else (1, digits)
    value, low, high = (scale * score[key] for key in ("value", "low", "high"))
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _caption(card: Mapping[str, Any]) -> str:
    cost = card.get("cost")
    if not cost:
        return ""
    return (
        f"{cost['calls']:,} calls, {cost['prompt_tokens']:,} tokens in, "
        f"{cost['completion_tokens']:,} out, {card.get('seconds', 0):,.0f} s"
    )
