"""What each iteration did, part by part, and in words which part of the loop fails.

Built from stage summaries alone; nothing is computed that they do not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from spar_lite.app.tables import Summaries, cell, make_table
from spar_lite.warmup import ALONE

Stages = Mapping[str, Mapping[str, Any]]
"""What the steps of one iteration noted, by their names."""

LOOP = {
    "answers": {
        "prompts": "prompts/prompts",
        "answers sampled": "responses/answers",
        "… failed": "judgements/failed",
        "… without judgement": "judgements/without_judgement",
        "those that truly fail: {}, %": "audit/failed_by",
    },
    "the judge": {
        "readable votes, %": "audit/readable_votes",
        "agrees with program, %": "audit/judge_agreement",
        "… on {}, %": "audit/by_kind",
        "… a judge that always says No, %": "audit/always_no",
        "… lets pass what fails, %": "audit/false_pass",
        "… fails what passes, %": "audit/false_fail",
    },
    "the refinements": {
        "trees": "trees/trees",
        "… solved": "trees/solved",
        "… solved within depth {}, %": "audit/solved_by_depth",
        "nodes per tree": "audit/nodes_per_tree",
        "deepest tree": "trees/deepest",
        "readable refinements, %": "audit/readable_refinements",
        "refinements truly good, %": "audit/refined_truly",
        "… of the other answers to their prompts, %": "audit/others_truly",
        "refinements that pass, %": "audit/accepted_refinements",
        "accepted refinements truly good, %": "audit/accepted_truly",
        "… of all that its own votes let pass, %": "audit/truly_by_votes",
        "accepted ones: {}, %": "audit/accepted_by",
    },
    "the pairs": {
        "preference pairs": "pairs/pairs",
        "… interfering": "pairs/interfering",
        "… {}": "pairs/interference",
        "pairs truly better, %": "audit/truly_better",
        "chosen answers truly good, %": "audit/chosen_truly",
        "likeness of refined pairs, %": "audit/refined_likeness",
        "… of directly sampled pairs, %": "audit/sampled_likeness",
    },
    "the training": {
        "actor examples": "actor/examples",
        "… passed answers": "actor/passed",
        "log p of chosen, per token": "actor/logp_chosen",
        "log p of rejected, per token": "actor/logp_rejected",
        "refiner examples": "refiner_examples/examples",
        "kept": "keep/in words",
    },
}
"""The loop's parts in their order: a row's title, and the step that noted its figure under a key.

A title with {} is a row for each name under that key.
"""

FAULTS = ("audit/failed_by", "audit/accepted_by")
"""Where what no answer has is left out."""


def iteration_table(summaries: Summaries) -> Table | None:
    """Answers, judge, refinements, pairs and training, one column an iteration."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for label, summary in summaries.items():
        name, _, step = label.partition("/")
        if name.startswith("iteration-"):
            found.setdefault(name, {})[step] = summary
    if not found:
        return None
    names = sorted(found, key=lambda name: int(name.rpartition("-")[2]))
    iterations = [_with_words(name, found[name]) for name in names]
    table = make_table("The loop", "", *names)
    for part, rows in LOOP.items():
        table.add_section()
        table.add_row(f"[bold]{part}[/]")
        for title, place in rows.items():
            step, _, key = place.partition("/")
            values = [stages.get(step, {}).get(key) for stages in iterations]
            if "{}" not in title:
                table.add_row(title, *(cell(value, key) for value in values))
                continue
            parts = [value or {} for value in values]
            none = 0 if place == "pairs/interference" else None
            for name in dict.fromkeys(name for part in parts for name in part):
                nested = [part.get(name, none) for part in parts]
                if place not in FAULTS or any(score and score["value"] for score in nested):
                    table.add_row(title.format(name), *map(cell, nested))
    return table


def _with_words(name: str, stages: Stages) -> Stages:
    """With what the table says in words: how log p changed, and what the next one starts from."""
    more = {**stages, "actor": actor_training(stages)}
    metrics = more["actor"].get("metrics", {})
    for side in ("chosen", "rejected"):
        found = [metrics.get(f"logp_{side}_{when}_per_token") for when in ("before", "after")]
        if None not in found:
            words = " → ".join(f"{value:.2f}" for value in found)
            more["actor"] = {**more["actor"], f"logp_{side}": words}
    if "keep" in stages:
        kept = stages["keep"]["kept"]
        stays = f"no, iteration-{kept} stays" if kept else "no, the start stays"
        more["keep"] = {"in words": "yes" if name == f"iteration-{kept}" else stays}
    return more


def actor_training(stages: Stages, place: str = "") -> Mapping[str, Any]:
    """What the actor's training noted; where one adapter is shared, "actor" is but its copy."""
    return stages.get(f"{place}{ALONE}") or stages.get(f"{place}actor", {})


def weak_parts(summaries: Summaries) -> dict[str, Sequence[str]]:
    """Which part of the loop fails, in words, by iteration; ``summaries``: stage notes by label.

    The judge: it is not clearly more often right than one that always says the same. The
    refinements: clearly fewer are good than of the other answers to their prompts, or of the
    accepted ones most are not. The training: it made the chosen answers less likely.
    """
    found = {}
    for label, audit in summaries.items():
        name, _, step = label.partition("/")
        if step == "audit":
            metrics = actor_training(summaries, f"{name}/").get("metrics", {})
            found[name] = list(_weak_parts(audit, metrics))
    return {name: said for name, said in found.items() if said}


def _weak_parts(audit: Mapping[str, Any], metrics: Mapping[str, float]) -> Iterator[str]:
    keys = ("judge_agreement", "always_no", "refined_truly", "others_truly", "accepted_truly")
    scores = [audit.get(key) for key in keys]
    judge, always_no, refined, others, accepted = (s if s and s["n"] else None for s in scores)
    if judge and always_no:
        constant = max(always_no["value"], 1 - always_no["value"])
        if not judge["low"] > constant:
            yield (
                "the judge is not clearly better than a constant one: its own votes agree with the "
                f"program on {_percent(judge)}, always saying the same on {100 * constant:.1f} %"
            )
    if refined and others and refined["high"] < others["low"]:
        yield (
            f"the refinements fail: {_percent(refined)} are truly good, of the other answers to "
            f"those prompts {_percent(others)}"
        )
    if accepted and accepted["high"] < 0.5:
        yield f"most accepted refinements are not good: {_percent(accepted)} truly are"
    before, after = (metrics.get(f"logp_chosen_{when}_per_token") for when in ("before", "after"))
    if before is not None and after is not None and after < before:
        yield (
            "the training made the chosen answers less likely: log p per token "
            f"{before:.2f} → {after:.2f}"
        )


def _percent(score: Mapping[str, Any]) -> str:
    value, low, high = (100 * score[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}], n={score['n']}"
