"""The table of the loop: what each iteration did, part by part, so that it shows which one fails.

Built from stage summaries alone; nothing is computed that they do not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from spar_lite.app.report.tables import Summaries, count_cell, score_cell

Audits = Sequence[Mapping[str, Any]]
Rows = Iterator[tuple[str, list[str]]]

JUDGE = {
    "readable votes, %": "readable_votes",
    "agrees with program, %": "judge_agreement",
    "… a judge that always says No, %": "always_no",
    "… lets pass what fails, %": "false_pass",
    "… fails what passes, %": "false_fail",
}
REFINEMENTS = {
    "readable refinements, %": "readable_refinements",
    "refinements truly good, %": "refined_truly",
    "… of the other answers to their prompts, %": "others_truly",
    "refinements that pass, %": "accepted_refinements",
    "accepted refinements truly good, %": "accepted_truly",
    "… of all that its own votes let pass, %": "truly_by_votes",
}
PAIRS = {
    "pairs truly better, %": "truly_better",
    "chosen answers truly good, %": "chosen_truly",
    "likeness of refined pairs, %": "refined_likeness",
    "… of directly sampled pairs, %": "sampled_likeness",
}


def iteration_table(summaries: Summaries) -> Table | None:
    """Answers, judge, refinements, pairs and training, one column an iteration."""
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
    for part, rows in _loop_parts(summaries, names):
        table.add_section()
        table.add_row(f"[bold]{part}[/]")
        for title, cells in rows:
            table.add_row(title, *cells)
    return table


def _loop_parts(summaries: Summaries, names: list[str]) -> Iterator[tuple[str, Rows]]:
    """The loop's parts in their order, so that it can be seen which of them fails."""
    audits = [summaries.get(f"{name}/audit", {}) for name in names]
    yield "answers", _answer_rows(summaries, names, audits)
    yield "the judge", _judge_rows(audits)
    yield "the refinements", _refinement_rows(summaries, names, audits)
    yield "the pairs", _pair_rows(summaries, names, audits)
    yield "the training", _training_rows(summaries, names)


def _answer_rows(summaries: Summaries, names: list[str], audits: Audits) -> Rows:
    yield "prompts", _cells(summaries, names, "prompts", "prompts")
    yield "answers sampled", _cells(summaries, names, "responses", "answers")
    yield "… failed", _cells(summaries, names, "judgements", "failed")
    yield "… without judgement", _cells(summaries, names, "judgements", "without_judgement")
    yield from _faults(audits, "failed_by", "those that truly fail: {}, %")


def _judge_rows(audits: Audits) -> Rows:
    for title, key in JUDGE.items():
        yield title, [score_cell(audit.get(key)) for audit in audits]
        if key == "judge_agreement":
            yield from _nested(audits, "by_kind", "… on {}, %")


def _refinement_rows(summaries: Summaries, names: list[str], audits: Audits) -> Rows:
    yield "trees", _cells(summaries, names, "trees", "trees")
    yield "… solved", _cells(summaries, names, "trees", "solved")
    yield from _nested(audits, "solved_by_depth", "… solved within depth {}, %")
    yield "nodes per tree", [score_cell(audit.get("nodes_per_tree"), 1) for audit in audits]
    yield "deepest tree", _cells(summaries, names, "trees", "deepest")
    for title, key in REFINEMENTS.items():
        yield title, [score_cell(audit.get(key)) for audit in audits]
    yield from _faults(audits, "accepted_by", "accepted ones: {}, %")


def _pair_rows(summaries: Summaries, names: list[str], audits: Audits) -> Rows:
    yield "preference pairs", _cells(summaries, names, "pairs", "pairs")
    yield "… interfering", _cells(summaries, names, "pairs", "interfering")
    found = [summaries.get(f"{name}/pairs", {}).get("interference", {}) for name in names]
    for why in dict.fromkeys(why for counts in found for why in counts):
        yield f"… {why}", [count_cell(counts.get(why, 0)) for counts in found]
    for title, key in PAIRS.items():
        yield title, [score_cell(audit.get(key)) for audit in audits]


def _training_rows(summaries: Summaries, names: list[str]) -> Rows:
    yield "actor examples", _cells(summaries, names, "actor", "examples")
    yield "… passed answers", _cells(summaries, names, "actor", "passed")
    actors = [summaries.get(f"{name}/actor", {}).get("metrics", {}) for name in names]
    for side in ("chosen", "rejected"):
        yield f"log p of {side}, per token", [_before_after(found, side) for found in actors]
    yield "refiner examples", _cells(summaries, names, "refiner_examples", "examples")
    keeps = [summaries.get(f"{name}/keep") for name in names]
    yield "kept", [_kept(name, keep) for name, keep in zip(names, keeps, strict=True)]


def _before_after(metrics: Mapping[str, Any], side: str) -> str:
    found = [metrics.get(f"logp_{side}_{when}_per_token") for when in ("before", "after")]
    return "-" if None in found else " → ".join(f"{value:.2f}" for value in found)


def _kept(name: str, keep: Mapping[str, Any] | None) -> str:
    """Whether the next iteration starts from this one's adapters; "-" where nobody asked."""
    if keep is None:
        return "-"
    if name == f"iteration-{keep['kept']}":
        return "yes"
    return f"no, iteration-{keep['kept']} stays" if keep["kept"] else "no, the start stays"


def _cells(summaries: Summaries, names: list[str], stage: str, key: str) -> list[str]:
    return [count_cell(summaries.get(f"{name}/{stage}", {}).get(key)) for name in names]


def _nested(audits: Audits, key: str, title: str) -> Rows:
    """One row for each name that any iteration has under ``key``."""
    for name in dict.fromkeys(name for audit in audits for name in audit.get(key, {})):
        scores = [audit.get(key, {}).get(name) for audit in audits]
        yield title.format(name), [score_cell(score) for score in scores]


def _faults(audits: Audits, key: str, title: str) -> Rows:
    """Rows as ``_nested``, without the faults that no answer has."""
    found = [
        {fault: score for fault, score in audit.get(key, {}).items() if score["n"]}
        for audit in audits
    ]
    had = {fault for part in found for fault, score in part.items() if score["value"] > 0}
    kept = [{key: {f: score for f, score in part.items() if f in had}} for part in found]
    yield from _nested(kept, key, title)
