"""Which part of the loop fails, in words: the judge, the refinements or the training.

Read from an iteration's audit and its training, as they were noted; knows no records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spar_lite.app.report.tables import Summaries


def weak_parts(summaries: Summaries) -> dict[str, list[str]]:
    """Which part of the loop fails, in words, by iteration; ``summaries``: stage notes by label.

    The judge: it is not clearly more often right than one that always says the same. The
    refinements: clearly fewer are good than of the other answers to their prompts, or of the
    accepted ones most are not. The training: it made the chosen answers less likely.
    """
    found = {}
    for label, audit in summaries.items():
        name, _, stage = label.partition("/")
        if stage == "audit":
            actor = summaries.get(f"{name}/actor", {})
            said = [*_weak_judge(audit), *_weak_refiner(audit), *_weak_training(actor)]
            found[name] = said
    return {name: said for name, said in found.items() if said}


def _weak_judge(audit: Mapping[str, Any]) -> Iterator[str]:
    judge, always_no = audit.get("judge_agreement"), audit.get("always_no")
    if judge and always_no and judge["n"]:
        constant = max(always_no["value"], 1 - always_no["value"])
        if not judge["low"] > constant:
            yield (
                "the judge is not clearly better than a constant one: its own votes agree with the "
                f"program on {_percent(judge)}, always saying the same on {100 * constant:.1f} %"
            )


def _weak_refiner(audit: Mapping[str, Any]) -> Iterator[str]:
    refined, others = audit.get("refined_truly"), audit.get("others_truly")
    if refined and others and refined["n"] and others["n"] and refined["high"] < others["low"]:
        yield (
            f"the refinements fail: {_percent(refined)} are truly good, of the other answers to "
            f"those prompts {_percent(others)}"
        )
    accepted = audit.get("accepted_truly")
    if accepted and accepted["n"] and accepted["high"] < 0.5:
        yield f"most accepted refinements are not good: {_percent(accepted)} truly are"


def _weak_training(actor: Mapping[str, Any]) -> Iterator[str]:
    metrics = actor.get("metrics", {})
    before, after = (metrics.get(f"logp_chosen_{when}_per_token") for when in ("before", "after"))
    if before is not None and after is not None and after < before:
        yield (
            "the training made the chosen answers less likely: log p per token "
            f"{before:.2f} → {after:.2f}"
        )


def _percent(score: Mapping[str, Any]) -> str:
    value, low, high = (100 * score[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}], n={score['n']}"
