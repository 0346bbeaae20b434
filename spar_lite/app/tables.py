"""What tables are made of, and those of scores and costs that status, compare and eval share.

Built from stage summaries, scorecards and comparisons alone; nothing is computed that they do not
say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

Summaries = Mapping[str, Mapping[str, Any]]

PLAIN = {
    "answer_words": 1,
    "base_logp": 2,
    "nodes_per_tree": 1,
    "miscount": 2,
    "chosen": 2,
    "rejected": 2,
    "drift": 2,
}
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

IFEVAL = {
    "prompt_level_strict_acc": "IFEval prompts met, %",
    "inst_level_strict_acc": "… instructions met, %",
    "prompt_level_loose_acc": "… prompts met, loosely, %",
    "inst_level_loose_acc": "… instructions met, loosely, %",
}


def make_table(title: str, *columns: str, left: int = 1, caption: str = "") -> Table:
    """A table whose first ``left`` columns are words, and the others figures."""
    table = Table(title=escape(title), title_justify="left", caption=caption)
    for number, name in enumerate(columns):
        table.add_column(escape(name), justify="left" if number < left else "right")
    return table


def score_text(score: Mapping[str, Any], name: str) -> str:
    """Value and interval, as percentages where it is a share; "-" for what there is none of."""
    if not score["n"] or score["value"] is None or math.isnan(score["value"]):
        return "-"
    digits = PLAIN.get(name.partition("/")[0])
    scale, places = (100, 1) if digits is None else (1, digits)
    value, low, high = (scale * score[key] for key in ("value", "low", "high"))
    return escape(f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]")


def cell(value: Any, name: str = "") -> str:
    """A score with interval and n, a number with commas, words as they are; "-" for none."""
    if isinstance(value, Mapping):
        text = score_text(value, name)
        return f"- (n={value['n']})" if text == "-" else f"{text} n={value['n']}"
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def memory_cell(size: float, places: int = 1) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.{places}f} GiB"


def label(name: str) -> str:
    """A score's name for people."""
    if name in TITLES:
        return TITLES[name]
    first, _, rest = name.partition("/")
    words = first.replace("_", " ")
    percent = "" if first in PLAIN else ", %"
    return f"… {words}, {rest}{percent}" if rest else words + percent


def card_table(card: Mapping[str, Any]) -> Table:
    """The table of one scorecard: every score with its interval and n, and what it cost."""
    settings, cost = card["settings"], card.get("cost")
    way, budget = settings.get("decode"), settings.get("budget")
    how = f", {way}{f' ({budget})' if budget else ''}" if way else ""
    caption = ""
    if cost:
        caption = (
            f"{cost['calls']:,} calls, {cost['prompt_tokens']:,} tokens in, "
            f"{cost['completion_tokens']:,} out, {card.get('seconds', 0):,.0f} s"
        )
    title = f"{card['task']}: {card['target']}{how}"
    table = make_table(title, "score", "value [95 % interval]", "n", caption=caption)
    for name, score in card["scores"].items():
        table.add_row(escape(label(name)), score_text(score, name), str(score["n"]))
    return table


def general_table(card: Mapping[str, Any]) -> Table:
    """The table of general tasks: one row a figure; shares of 0 to 1 as percentages."""
    title, columns = f"general: {card['target']}", ("task", "metric", "value [95 % interval]", "n")
    caption = f"{card['requests']:,} requests, {card['seconds']:,.0f} s"
    table = make_table(title, *columns, left=2, caption=caption)
    for name, score in card["scores"].items():
        task, _, metric = name.rpartition(":")
        value, low, high = score["value"], score["low"], score["high"]
        scale, unit = (100, " %") if 0 <= value <= 1 else (1, "")
        known = low is not None and not math.isnan(low)
        span = f" [{scale * low:.1f}, {scale * high:.1f}]" if known else ""
        text = f"{scale * value:.1f}{span}{unit}"
        table.add_row(escape(task), escape(metric), escape(text), str(score["n"]))
    return table


def score_table(summaries: Summaries) -> Table | None:
    """Held-out and IFEval scores with 95 % intervals, one column a checkpoint; None without any."""
    held = {
        label.partition("/")[0]: summary["scores"]
        for label, summary in summaries.items()
        if label.endswith("/heldout") and "scores" in summary
    }
    ifeval = {
        summary["checkpoint"]: summary["scores"]
        for label, summary in summaries.items()
        if label.endswith("/ifeval")
    }
    names = list(dict.fromkeys([*held, *ifeval]))
    if not names:
        return None
    columns = [{"bootstrap": "after warm-up"}.get(name, name) for name in names]
    table = make_table("Held-out prompts, greedy decoding [95 % interval]", "score", *columns)
    for found, titles in ((held, TITLES), (ifeval, IFEVAL)):
        table.add_section()
        for key, title in titles.items() if found else ():
            table.add_row(title, *(cell(found.get(name, {}).get(key), key) for name in names))
    return table


def cost_table(summaries: Summaries, planned: Mapping[str, Sequence[float]] | None = None) -> Table:
    """Seconds, calls and tokens of every stage that did work.

    ``planned``: by stage, the least and the most seconds that were expected.
    """
    figures = ("seconds", "planned", "calls", "tokens in", "tokens out", "busy", "peak memory")
    table = make_table("Cost", "stage", *figures)
    timed = {label: summary for label, summary in summaries.items() if "seconds" in summary}
    keys = ("seconds", "calls", "prompt_tokens", "completion_tokens")
    total = {key: sum(summary.get(key, 0) for summary in timed.values()) for key in keys}
    for label, summary in timed.items():
        if summary["seconds"] >= 0.5:
            table.add_row(label, *_cost_cells(summary, (planned or {}).get(label)))
    table.add_section()
    table.add_row("all", *_cost_cells(total, None))
    return table


def _cost_cells(summary: Mapping[str, Any], planned: Sequence[float] | None) -> list[str]:
    busy, memory = summary.get("occupancy"), summary.get("peak_memory_bytes")
    return [
        f"{summary['seconds']:.0f}",
        "{:.0f} to {:.0f}".format(*planned) if planned else "-",
        cell(summary.get("calls") or None),
        cell(summary.get("prompt_tokens") or summary.get("tokens")),
        cell(summary.get("completion_tokens") or None),
        f"{100 * busy:.0f} %" if busy else "-",
        memory_cell(memory) if memory else "-",
    ]


def difference_row(d: Mapping[str, Any]) -> str:
    """One sentence for two checkpoints that were compared on the same prompts."""
    found = d["difference"]
    where = f"{d['task']}, {d['from']} → {d['to']}"
    if not found["n"]:
        return f"{where}: no prompt in common"
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    runs = "paired"
    if "runs" in d:
        many = "s pooled, the same prompts in each" if d["runs"] > 1 else ""
        runs = f"{d['runs']} run{many}"
    p = d.get("mcnemar_p")
    return (
        f"{where}: {value:+.1f} points [{low:+.1f}, {high:+.1f}], {runs}, n={found['n']}"
        + (f", McNemar p = {p:.3g}" if p is not None else "")
        + ("" if d["distinguishable"] else ": not distinguishable")
        + (f" ({d['left_out']} prompts not shared)" if d["left_out"] else "")
    )
