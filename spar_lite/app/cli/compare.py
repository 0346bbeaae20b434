"""The compare command: runs, or checkpoints of one, side by side."""

from __future__ import annotations

import click

from spar_lite.app.cli.common import make_console
from spar_lite.store import json_text


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--from", "start", metavar="CHECKPOINT", help="Each run against its own, pooled.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
def compare(runs: tuple[str, ...], start: str | None, as_json: bool) -> None:
    """Compare runs or checkpoints: scores, costs, differences.

    RUNS, each RUN or RUN:CHECKPOINT, are compared with the first, paired on the same prompts.
    A difference whose 95 % interval holds zero is called not distinguishable; what got worse is
    said in words.

    With --from bootstrap every run is compared with its own warm-up instead, and then all of them
    together: for runs of several seeds, whose held-out prompts are the same. That interval is over
    prompts; it says how these runs did, and little of another seed.
    """
    from spar_lite.errors import StoreError
    from spar_lite.evaluation import compare as comparison

    if start:
        found = comparison.pool([comparison.read_from(word, start) for word in runs])
    elif len(runs) < 2:
        raise StoreError("compare wants two runs or more, such as RUN:bootstrap RUN:iteration-1.")
    else:
        found = comparison.compare([comparison.read_side(word) for word in runs])
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    from spar_lite.app.report.comparison import comparison_table, difference_lines
    from spar_lite.app.report.tables import alarm_rows

    console = make_console()
    console.print(comparison_table(found))
    for line in difference_lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    said = {f"{alarm['from']} → {alarm['to']}": alarm["said"] for alarm in found["alarms"]}
    for line in alarm_rows(said):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
