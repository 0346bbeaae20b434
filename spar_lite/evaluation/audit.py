"""What an iteration's records say about the method: judge, refinements, pairs, against the program.

The program's word is on all that it can check: every constraint, and that the text is an answer.
Reads the finished files of one iteration; pure counting, no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.data.prompts import requirements
from spar_lite.evaluation.answer import check_answer
from spar_lite.evaluation.stats import Interval, bootstrap_mean, wilson
from spar_lite.evaluation.tasks.refine import edit_share
from spar_lite.judge import majority
from spar_lite.records import Judgement, PreferencePair, Prompt, Response, Tree
from spar_lite.store import StageFile

Judged = Sequence[tuple[Prompt, Judgement]]


def iteration_metrics(folder: Path) -> dict[str, Any]:
    """Count one iteration: votes, agreement with the program, trees, faults, pairs' truth.

    Every share and mean comes with n and a 95 % interval. What a program cannot check is left out
    of the counts that need its word, and their n says so.
    """
    prompts = {p.id: p for p in StageFile(folder, "prompts", Prompt).load()}
    judgements = StageFile(folder, "judgements", Judgement).load()
    responses = StageFile(folder, "responses", Response).load()
    trees = StageFile(folder, "trees", Tree).load()
    pairs = StageFile(folder, "pairs", PreferencePair).load()
    judged = [(prompts[j.id.rpartition("/")[0]], j) for j in judgements]
    judged += [(prompts[tree.prompt_id], j) for tree in trees for j in judged_in(tree)]
    texts = [(prompts[r.prompt_id], r.text) for r in responses]
    mended = [(prompts[t.prompt_id], t.node(t.accepted).text or "") for t in trees if t.accepted]
    return {
        "votes": vote_counts(j for _, j in judged),
        "judge_against_program": agreement(judged),
        "judge_by_kind": agreement_by_kind(judged),
        "trees": tree_counts(trees),
        "accepted": accepted_truth(trees, judged) | {"others": others_truth(trees, judgements)},
        "failed_by": fault_shares((p, text) for p, text in texts if whats_wrong(p, text)),
        "accepted_by": fault_shares(mended),
        "pairs": pair_truth(pairs, prompts) | likeness(pairs, responses, judgements),
    }


def audit_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``iteration_metrics`` that tables show."""
    program, trees, pairs = found["judge_against_program"], found["trees"], found["pairs"]
    return {
        "readable_votes": found["votes"]["readable_share"],
        "judge_agreement": program["accuracy"],
        "always_no": program["always_no_accuracy"],
        "false_pass": program["false_pass"],
        "false_fail": program["false_fail"],
        "by_kind": {kind: part["accuracy"] for kind, part in found["judge_by_kind"].items()},
        "readable_refinements": trees["readable_refinements"],
        "accepted_refinements": trees["accepted_refinements"],
        "nodes_per_tree": trees["nodes_per_tree"],
        "solved_by_depth": trees["solved_by_depth"],
        "refined_truly": found["accepted"]["refined"],
        "others_truly": found["accepted"]["others"],
        "accepted_truly": found["accepted"]["truly"],
        "truly_by_votes": found["accepted"]["truly_by_votes"],
        "failed_by": found["failed_by"],
        "accepted_by": found["accepted_by"],
        "truly_better": pairs["truly_better"],
        "chosen_truly": pairs["chosen_truly"],
        "refined_likeness": pairs["refined_likeness"],
        "sampled_likeness": pairs["sampled_likeness"],
    }


def judged_in(tree: Tree) -> list[Judgement]:
    """The judgements made in a tree: each text's once, the sampled answer's not again."""
    found = {n.text: n.judgement for n in reversed(tree.nodes) if n.judgement}
    return [judgement for text, judgement in found.items() if text != tree.node("").text]


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


def agreement(judged: Judged) -> dict[str, Any]:
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


def agreement_by_kind(judged: Judged) -> dict[str, Any]:
    """``agreement`` on the prompts that hold a constraint of each kind, maybe among others."""
    kinds = sorted({data["kind"] for prompt, _ in judged for data in prompt.constraints})
    return {
        kind: agreement(
            [(p, j) for p, j in judged if any(data["kind"] == kind for data in p.constraints)]
        )
        for kind in kinds
    }


def accepted_truth(trees: Sequence[Tree], judged: Judged) -> dict[str, Any]:
    """How true acceptance is, where a program can say.

    ``truly``: of the accepted refinements, those that the program lets pass. ``refined``: of all
    refinements. ``truly_by_votes``: of all that the model's own majority lets pass; self-praise is
    what is missing to 1.
    """
    accepted = (t.node(t.accepted).judgement for t in trees if t.accepted)
    refined = (node.judgement for t in trees for node in t.nodes if node.path)
    return {
        "truly": asdict(truly(accepted)),
        "refined": asdict(truly(refined)),
        "truly_by_votes": asdict(truly(j for _, j in judged if majority(j.votes)[1] is True)),
    }


def others_truth(trees: Sequence[Tree], judgements: Iterable[Judgement]) -> dict[str, Any]:
    """How many of the other answers to the trees' prompts the program lets pass.

    What sampling again would bring, so what refinements have to beat.
    """
    roots = {tree.prompt_id: tree.response_id for tree in trees}
    others = (j for j in judgements if roots.get(j.id.rpartition("/")[0], j.id) != j.id)
    return asdict(truly(others))


def truly(judgements: Iterable[Judgement | None]) -> Interval:
    """Share that the program lets pass, of those that it can say something of."""
    known = [all(j.checks) for j in judgements if j and j.checks]
    return wilson(sum(known), len(known))


MISSED = "misses a constraint"


def whats_wrong(prompt: Prompt, text: str) -> list[str]:
    """``MISSED`` and those of ``constraints.FAULTS`` that a text has."""
    checks, faults = check_answer(prompt, text)
    return [*([] if all(checks) else [MISSED]), *faults]


def fault_shares(answers: Iterable[tuple[Prompt, str]]) -> dict[str, Any]:
    """Of some answers, how many have each fault, maybe among others."""
    found = [whats_wrong(prompt, text) for prompt, text in answers]
    return {
        name: asdict(wilson(sum(name in faults for faults in found), len(found)))
        for name in (MISSED, *constraints.FAULTS)
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
        "solved_by_depth": _by_depth(trees),
        "stops": dict(Counter(t.stop for t in trees)),
        "nodes_per_tree": asdict(bootstrap_mean([len(t.nodes) - 1.0 for t in trees], 0)),
        "deepest": max((t.depth for t in trees), default=0),
        "accepted_refinements": asdict(wilson(len(passed), len(grown))),
        "readable_refinements": asdict(wilson(sum(n.text is not None for n in grown), tries)),
    }


def _by_depth(trees: Sequence[Tree]) -> dict[str, Any]:
    """Share of the trees solved at each depth or above it."""
    depths = Counter(t.node(t.accepted).depth for t in trees if t.accepted)
    return {
        str(depth): asdict(wilson(sum(n for d, n in depths.items() if d <= depth), len(trees)))
        for depth in range(1, max(depths, default=0) + 1)
    }


def pair_truth(pairs: Sequence[PreferencePair], prompts: dict[str, Prompt]) -> dict[str, Any]:
    """How many pairs the program confirms, of those with a constraint to check.

    ``truly_better``: the chosen answer meets more of what is asked, being an answer included.
    ``chosen_truly``: it meets all of it.
    """
    sides = []
    for pair in pairs:
        prompt = prompts[pair.prompt_id]
        if prompt.constraints:
            known = requirements(prompt)
            chosen, rejected = (
                constraints.check_all(known, text) for text in (pair.chosen, pair.rejected)
            )
            sides.append((chosen, rejected))
    n = len(sides)
    return {
        "pairs": len(pairs),
        "truly_better": asdict(wilson(sum(sum(a) > sum(b) for a, b in sides), n)),
        "chosen_truly": asdict(wilson(sum(all(a) for a, _ in sides), n)),
    }


def likeness(
    pairs: Sequence[PreferencePair],
    responses: Sequence[Response],
    judgements: Sequence[Judgement],
) -> dict[str, Any]:
    """How alike the two answers of a pair are: 1 minus the share of words that differ.

    ``refined``: the pairs at hand. ``sampled``: what pairs of directly sampled answers would be,
    the mean over all passing and failing answers of each prompt that has both (the paper's
    ablation without refinement). The method rests on the first being the larger.
    """
    verdicts = {j.id: j.verdict for j in judgements}
    by_prompt: dict[str, dict[bool, list[str]]] = {}
    for response in responses:
        verdict = verdicts.get(response.id)
        if verdict is not None:
            sides = by_prompt.setdefault(response.prompt_id, {True: [], False: []})
            sides[verdict].append(response.text)
    sampled = [
        sum(1 - edit_share(bad, good) for good in sides[True] for bad in sides[False])
        / (len(sides[True]) * len(sides[False]))
        for sides in by_prompt.values()
        if sides[True] and sides[False]
    ]
    refined = [1 - edit_share(pair.rejected, pair.chosen) for pair in pairs]
    return {
        "refined_likeness": asdict(bootstrap_mean(refined, 0)),
        "sampled_likeness": asdict(bootstrap_mean(sampled, 0)),
    }
