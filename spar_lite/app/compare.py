"""The compare command: runs, or checkpoints of one, side by side."""

from __future__ import annotations

from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from spar_lite.app.console import make_console, print_alarms, print_plain
from spar_lite.app.tables import cell, difference_row, label, make_table, memory_cell
from spar_lite.errors import StoreError
from spar_lite.evaluation.compare import compare
from spar_lite.store import json_text

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


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--from", "start", metavar="CHECKPOINT", help="Each run against its own, pooled.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
def compare_command(runs: tuple[str, ...], start: str | None, as_json: bool) -> None:
    """Compare runs or checkpoints: scores, costs, differences.

    RUNS, each RUN or RUN:CHECKPOINT, are compared with the first, paired on the same prompts.
    A difference whose 95 % interval holds zero is called not distinguishable; what got worse is
    said in words.

    With --from bootstrap every run is compared with its own warm-up instead, and then all of them
    together: for runs of several seeds, whose held-out prompts are the same. That interval is over
    prompts; it says how these runs did, and little of another seed.
    """
    if not start and len(runs) < 2:
        raise StoreError("compare wants two runs or more, such as RUN:bootstrap RUN:iteration-1.")
    found = compare(runs, start)
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    console = make_console()
    console.print(comparison_table(found["runs"]))
    none = ["No score is common to them, so nothing was compared prompt by prompt."]
    lines = [*map(difference_row, found["differences"])] or none
    if start:
        none = ["No score is common to all of them, so nothing was pooled."]
        lines += [*map(difference_row, found["pooled"])] or none
    for line in lines:
        print_plain(console, line)
    alarms = found["alarms"]
    print_alarms(console, {f"{alarm['from']} → {alarm['to']}": alarm["said"] for alarm in alarms})


def comparison_table(runs: list[dict[str, Any]]) -> Table:
    """One column a run: scores first, then what they cost."""
    table = make_table("Scores [95 % interval] and costs", "", *(run["name"] for run in runs))
    for task in dict.fromkeys(task for run in runs for task in run["scores"]):
        table.add_section()
        table.add_row(f"[bold]{escape(task)}[/]")
        found = [run["scores"].get(task, {}) for run in runs]
        for name in dict.fromkeys(name for scores in found for name in scores):
            table.add_row(escape(label(name)), *(cell(scores.get(name), name) for scores in found))
    table.add_section()
    for key, title in FIGURES.items():
        if any(key in run for run in runs):
            table.add_row(title, *(cell(run.get(key)) for run in runs))
    table.add_row("peak memory", *(memory_cell(run["peak_memory_bytes"]) for run in runs))
    return table
