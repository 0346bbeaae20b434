"""The tables at the end of a run and in ``spar-lite status``: counts, costs, scores.

Built from stage summaries alone; nothing is computed that the records do not say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

Summaries = Mapping[str, Mapping[str, Any]]

SCORES = {
    "constraints_met": "constraints met, %",
    "all_met": "all constraints met, %",
    "readable_votes": "readable votes, %",
    "judge_agreement": "judge agrees with program, %",
    "always_yes_agreement": "… a judge that always says Yes, %",
    "readable_refinements": "readable refinements, %",
    "truly_mended": "failed answers truly mended, %",
    "answer_words": "words per answer",
}


AUDIT = {
    "readable votes, %": "readable_votes",
    "judge agrees with program, %": "judge_agreement",
    "… a judge that always says No, %": "always_no",
    "… lets pass what fails, %": "false_pass",
    "… fails what passes, %": "false_fail",
    "readable refinements, %": "readable_refinements",
    "refinements that pass, %": "accepted_refinements",
    "accepted refinements truly mended, %": "accepted_truly",
    "… of all that its own votes let pass, %": "truly_by_votes",
    "pairs truly better, %": "truly_better",
    "likeness of refined pairs, %": "refined_likeness",
    "… of directly sampled pairs, %": "sampled_likeness",
}


def score_table(summaries: Summaries) -> Table | None:
    """Held-out scores with 95 % intervals, one column a checkpoint; None without any."""
    columns = {
        label.partition("/")[0]: summary["scores"]
        for label, summary in summaries.items()
        if label.endswith("/heldout") and "scores" in summary
    }
    if not columns:
        return None
    table = Table(title="Held-out prompts, greedy decoding [95 % interval]", title_justify="left")
    table.add_column("score")
    for name in columns:
        table.add_column({"bootstrap": "after warm-up"}.get(name, name), justify="right")
    for key, title in SCORES.items():
        scale = 100 if title.endswith("%") else 1
        table.add_row(title, *(_score(scores[key], scale) for scores in columns.values()))
    return table


def difference_rows(differences: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One sentence for each pair of checkpoints compared on the same prompts."""
    for name, d in differences.items():
        low, high = 100 * d["low"], 100 * d["high"]
        verdict = "" if low > 0 or high < 0 else ": not distinguishable"
        yield (
            f"{name}: {100 * d['value']:+.1f} points of constraints met "
            f"[{low:+.1f}, {high:+.1f}], paired, n={d['n']}{verdict}"
        )


def iteration_table(summaries: Summaries) -> Table | None:
    """Prompts, failed answers, trees, pairs, one column an iteration."""
    names = sorted(
        {label.partition("/")[0] for label in summaries if label.startswith("iteration-")},
        key=lambda name: int(name.rpartition("-")[2]),
    )
    if not names:
        return None
    table = Table(title="The loop", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for title, cells in _loop_rows(summaries, names):
        table.add_row(title, *cells)
    return table


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


def _loop_rows(summaries: Summaries, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    def cells(stage: str, key: str) -> list[str]:
        return [_cell(summaries.get(f"{name}/{stage}", {}).get(key)) for name in names]

    yield "prompts", cells("prompts", "prompts")
    yield "answers sampled", cells("responses", "answers")
    yield "answers failed", cells("judgements", "failed")
    yield "answers without judgement", cells("judgements", "without_judgement")
    yield "trees", cells("trees", "trees")
    yield "trees solved", cells("trees", "solved")
    audits = [summaries.get(f"{name}/audit", {}) for name in names]
    nodes = [audit.get("nodes_per_tree") for audit in audits]
    yield "nodes per tree", [_score(found, 1) if found else "-" for found in nodes]
    yield "deepest tree", cells("trees", "deepest")
    yield from _nested(audits, "solved_by_depth", "… solved within depth {}, %")
    yield "preference pairs", cells("pairs", "pairs")
    yield "refiner examples", cells("refiner_examples", "examples")
    for title, key in AUDIT.items():
        yield title, [_score(audit[key]) if key in audit else "-" for audit in audits]
        if key == "judge_agreement":
            yield from _nested(audits, "by_kind", "… on {}, %")


def _nested(
    audits: list[Mapping[str, Any]], key: str, title: str
) -> Iterator[tuple[str, list[str]]]:
    """One row for each name that any iteration has under ``key``."""
    for name in sorted({name for audit in audits for name in audit.get(key, {})}):
        found = [audit.get(key, {}).get(name) for audit in audits]
        yield title.format(name), [_score(score) if score else "-" for score in found]


def _cost_cells(summary: Mapping[str, Any]) -> list[str]:
    busy = summary.get("occupancy")
    memory = summary.get("peak_memory_bytes")
    return [
        f"{summary['seconds']:.0f}",
        _cell(summary.get("calls") or None),
        _cell(summary.get("prompt_tokens") or summary.get("tokens")),
        _cell(summary.get("completion_tokens") or None),
        f"{100 * busy:.0f} %" if busy else "-",
        f"{memory / 2**30:.1f} GiB" if memory else "-",
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _score(score: Mapping[str, Any], scale: float = 100) -> str:
    if not score["n"] or math.isnan(score["value"]):
        return "- (n=0)"
    low, high = scale * score["low"], scale * score["high"]
    return f"{scale * score['value']:.1f} [{low:.1f}, {high:.1f}] n={score['n']}"
