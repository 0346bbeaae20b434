"""What an iteration's records say about the method: judge, trees, pairs, against the program.

Reads the finished files of one iteration; pure counting, no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.judge import majority
from spar_lite.records import Judgement, PreferencePair, Prompt, Tree
from spar_lite.statistics import wilson
from spar_lite.store import StageFile


def iteration_metrics(folder: Path) -> dict[str, Any]:
    """Count one iteration: votes, agreement with the program, trees, pairs' truth."""
    prompts = {p.id: p for p in StageFile(folder, "prompts", Prompt).load()}
    judgements = StageFile(folder, "judgements", Judgement).load()
    trees = StageFile(folder, "trees", Tree).load()
    pairs = StageFile(folder, "pairs", PreferencePair).load()
    judged = [(prompts[j.id.rpartition("/")[0]], j) for j in judgements]
    judged += [
        (prompts[tree.prompt_id], node.judgement)
        for tree in trees
        for node in tree.nodes
        if node.path and node.judgement
    ]
    return {
        "votes": vote_counts(j for _, j in judged),
        "judge_against_program": agreement(judged),
        "trees": tree_counts(trees),
        "pairs": pair_truth(pairs, prompts),
    }


def vote_counts(judgements: Iterable[Judgement]) -> dict[str, Any]:
    """Yes, No and unreadable votes, and the share that can be read."""
    votes = Counter(vote.verdict for judgement in judgements for vote in judgement.votes)
    readable, total = votes[True] + votes[False], sum(votes.values())
    return {
        "yes": votes[True],
        "no": votes[False],
        "unreadable": votes[None],
        "readable_share": asdict(wilson(readable, total)),
    }


def agreement(judged: Sequence[tuple[Prompt, Judgement]]) -> dict[str, Any]:
    """The model's majority against the program, on prompts that the program checks completely.

    false_pass: the model says Yes to what fails; false_fail: No to what passes.
    """
    cases = []
    for prompt, judgement in judged:
        said = majority(judgement.votes)[1]
        if prompt.complete and judgement.checks and said is not None:
            cases.append((said, all(judgement.checks)))
    fails = [said for said, truth in cases if not truth]
    passes = [said for said, truth in cases if truth]
    return {
        "accuracy": asdict(wilson(sum(s == t for s, t in cases), len(cases))),
        "always_no_accuracy": asdict(wilson(len(fails), len(cases))),
        "false_pass": asdict(wilson(sum(fails), len(fails))),
        "false_fail": asdict(wilson(sum(not s for s in passes), len(passes))),
    }


def tree_counts(trees: Sequence[Tree]) -> dict[str, Any]:
    """Trees, nodes, where they were solved, and how many refinements could be read."""
    solved = [t for t in trees if t.accepted is not None]
    grown = [n for t in trees for n in t.nodes if n.path]
    passed = [n for n in grown if n.judgement and n.judgement.verdict is True]
    tries = sum(len(n.failed_replies) + (n.text is not None) for n in grown)
    return {
        "trees": len(trees),
        "solved": asdict(wilson(len(solved), len(trees))),
        "solved_by_depth": dict(Counter(str(t.node(t.accepted or "").depth) for t in solved)),
        "stops": dict(Counter(t.stop for t in trees)),
        "nodes_per_tree": len(grown) / len(trees) if trees else 0.0,
        "deepest": max((t.depth for t in trees), default=0),
        "accepted_refinements": asdict(wilson(len(passed), len(grown))),
        "readable_refinements": asdict(wilson(sum(n.text is not None for n in grown), tries)),
    }


def pair_truth(pairs: Sequence[PreferencePair], prompts: dict[str, Prompt]) -> dict[str, Any]:
    """How many pairs the program confirms: the chosen answer meets more constraints."""
    gains = []
    for pair in pairs:
        known = [constraints.from_json(data) for data in prompts[pair.prompt_id].constraints]
        if known:
            better = sum(constraints.check_all(known, pair.chosen))
            gains.append(better - sum(constraints.check_all(known, pair.rejected)))
    return {
        "pairs": len(pairs),
        "truly_better": asdict(wilson(sum(gain > 0 for gain in gains), len(gains))),
    }
