"""Runs side by side on the screen: one column a run, then one sentence a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from spar_lite.app.report.evaluation import label, shown
from spar_lite.app.report.tables import difference_row

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
    """One sentence for each comparison and task, the pooled ones last."""
    yield from map(difference_row, found["differences"])
    if not found["differences"]:
        yield "No score is common to them, so nothing was compared prompt by prompt."
    yield from map(difference_row, found.get("pooled", ()))
    if not found.get("pooled", True):
        yield "No score is common to all of them, so nothing was pooled."


def _cell(name: str, score: Mapping[str, Any] | None) -> str:
    return f"{escape(shown(name, score))} n={score['n']}" if score else "-"


def _figure(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,.0f}"
