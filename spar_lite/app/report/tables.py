"""The tables at the end of a run and in ``spar-lite status``: scores and alarms, costs.

Built from stage summaries and comparisons alone; nothing is computed that they do not say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from spar_lite.app.report.evaluation import PLAIN, TITLES

Summaries = Mapping[str, Mapping[str, Any]]

IFEVAL = {
    "prompt_level_strict_acc": "IFEval prompts met, %",
    "inst_level_strict_acc": "… instructions met, %",
    "prompt_level_loose_acc": "… prompts met, loosely, %",
    "inst_level_loose_acc": "… instructions met, loosely, %",
}


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
    columns = list(dict.fromkeys([*held, *ifeval]))
    if not columns:
        return None
    table = Table(title="Held-out prompts, greedy decoding [95 % interval]", title_justify="left")
    table.add_column("score")
    for name in columns:
        table.add_column({"bootstrap": "after warm-up"}.get(name, name), justify="right")
    for found, titles in ((held, TITLES), (ifeval, IFEVAL)):
        table.add_section()
        for key, title in titles.items() if found else ():
            scores = [found.get(name, {}).get(key) for name in columns]
            table.add_row(title, *(score_cell(score, PLAIN.get(key)) for score in scores))
    return table


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


def alarm_rows(found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What got worse, by the step in which it did."""
    for step, said in found.items():
        for sentence in said:
            yield f"{step}: {sentence}"


def cost_table(summaries: Summaries) -> Table:
    """Seconds, calls and tokens of every stage that did work."""
    table = Table(title="Cost", title_justify="left")
    for title in ("stage", "seconds", "calls", "tokens in", "tokens out", "busy", "peak memory"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    total = {"seconds": 0.0, "calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
    for label, summary in summaries.items():
        if "seconds" not in summary:
            continue
        for key in total:
            total[key] += summary.get(key, 0)
        if summary["seconds"] >= 0.5:
            table.add_row(label, *_cost_cells(summary))
    table.add_section()
    table.add_row("all", *_cost_cells(total))
    return table


def _cost_cells(summary: Mapping[str, Any]) -> list[str]:
    busy = summary.get("occupancy")
    memory = summary.get("peak_memory_bytes")
    return [
        f"{summary['seconds']:.0f}",
        count_cell(summary.get("calls") or None),
        count_cell(summary.get("prompt_tokens") or summary.get("tokens")),
        count_cell(summary.get("completion_tokens") or None),
        f"{100 * busy:.0f} %" if busy else "-",
        f"{memory / 2**30:.1f} GiB" if memory else "-",
    ]


def count_cell(value: object) -> str:
    """A number with commas, any other value as it is, "-" for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def score_cell(score: Mapping[str, Any] | None, digits: int | None = None) -> str:
    """In percent unless ``digits`` are given; "-" where nothing was noted."""
    if score is None:
        return "-"
    if not score["n"] or score["value"] is None or math.isnan(score["value"]):
        return f"- (n={score['n']})"
    scale, places = (100, 1) if digits is None else (1, digits)
    value, low, high = (scale * score[key] for key in ("value", "low", "high"))
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}] n={score['n']}"
