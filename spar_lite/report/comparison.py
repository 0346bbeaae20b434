"""Runs side by side on the screen: one column a run, then one sentence a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from spar_lite.report.evaluation import label, shown

FIGURES = {
    "prompts": "prompts",
    "trees": "trees",
    "preference_pairs": "preference pairs",
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
    "seconds": "seconds",
    "gpu_seconds": "GPU-seconds",
    "judged_by": "judged by",
}


def comparison_table(found: Mapping[str, Any]) -> Table:
    """Scores first, then what they cost."""
    runs = found["runs"]
    table = Table(
        title="Scores [95 % interval] and costs".replace("[", "\\["), title_justify="left"
    )
    table.add_column("")
    for run in runs:
        table.add_column(escape(run["name"]), justify="right")
    for task in dict.fromkeys(task for run in runs for task in run["scores"]):
        table.add_section()
        table.add_row(f"[bold]{escape(task)}[/]")
        for name in dict.fromkeys(n for run in runs for n in run["scores"].get(task, {})):
            scores = [run["scores"].get(task, {}).get(name) for run in runs]
            table.add_row(escape(label(name)), *(_cell(name, score) for score in scores))
    table.add_section()
    for key, title in FIGURES.items():
        if any(key in run for run in runs):
            table.add_row(title, *(_figure(run.get(key)) for run in runs))
    memory = [f"{run['peak_memory_bytes'] / 2**30:.1f} GiB" for run in runs]
    table.add_row("peak memory", *memory)
    return table


def difference_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each later run and task, "not distinguishable" where that is the truth."""
    for d in found["differences"]:
        value, low, high = (100 * d["difference"][key] for key in ("value", "low", "high"))
        yield (
            f"{d['task']}, {d['from']} → {d['to']}: {value:+.1f} points [{low:+.1f}, {high:+.1f}], "
            f"paired, n={d['difference']['n']}"
            + (f", McNemar p = {d['mcnemar_p']:.3g}" if d["mcnemar_p"] is not None else "")
            + ("" if d["distinguishable"] else ": not distinguishable")
            + (f" ({d['left_out']} prompts not shared)" if d["left_out"] else "")
        )
    if not found["differences"]:
        yield "No score is common to them, so nothing was compared prompt by prompt."


def _cell(name: str, score: Mapping[str, Any] | None) -> str:
    return f"{escape(shown(name, score))} n={score['n']}" if score else "-"


def _figure(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,.0f}"
