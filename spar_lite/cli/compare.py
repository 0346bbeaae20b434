"""The compare command: runs, or checkpoints of one, side by side."""

from __future__ import annotations

import click

from spar_lite.cli.common import make_console
from spar_lite.store import json_text


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON, and nothing else.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Compare RUNS, each RUN or RUN:CHECKPOINT, with the first: scores, costs, paired differences.

    A difference whose 95 % interval holds zero is called not distinguishable.
    """
    from spar_lite import comparison
    from spar_lite.errors import StoreError

    if len(runs) < 2:
        raise StoreError("compare wants two runs or more, such as RUN:bootstrap RUN:iteration-1.")
    found = comparison.compare([comparison.read_side(word) for word in runs])
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    from spar_lite.report.comparison import comparison_table, difference_lines

    console = make_console()
    console.print(comparison_table(found))
    for line in difference_lines(found):
        console.print(line, highlight=False, markup=False)
