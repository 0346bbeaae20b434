"""What an iteration's records say about the method: judge, refinements, pairs, against the program.

The program's word is on all that it can check: every constraint, and that the text is an answer.
Reads the finished files of one iteration; pure counting, no model. Every share and mean comes with
n and a 95 % interval; what a program cannot check is left out of the counts that need its word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.data.prompts import requirements
from spar_lite.evaluation import stats
from spar_lite.evaluation.answer import check_answer
from spar_lite.evaluation.tasks.refine import edit_share
from spar_lite.judge import majority
from spar_lite.records import Judgement, PreferencePair, Prompt, Response, Tree
from spar_lite.store import StageFile

Judged = Sequence[tuple[Prompt, Judgement]]
Score = dict[str, Any]
"""An interval as JSON."""

MISSED = "misses a constraint"


def iteration_metrics(folder: Path) -> dict[str, Any]:
    """Count one iteration: votes, agreement with the program, trees, faults, pairs' truth."""
    prompts = {p.id: p for p in StageFile(folder, "prompts", Prompt).load()}
    judgements = StageFile(folder, "judgements", Judgement).load()
    responses = StageFile(folder, "responses", Response).load()
    trees = StageFile(folder, "trees", Tree).load()
    pairs = StageFile(folder, "pairs", PreferencePair).load()
    judged = [(prompts[j.id.rpartition("/")[0]], j) for j in judgements]
    judged += [(prompts[tree.prompt_id], j) for tree in trees for j in judged_in(tree)]
    wrong = [whats_wrong(prompts[r.prompt_id], r.text) for r in responses]
    accepted = [(prompts[t.prompt_id], t.node(t.accepted).text or "") for t in trees if t.accepted]
    return {
        "votes": vote_counts(j for _, j in judged),
        "judge_against_program": agreement(judged),
        "judge_by_kind": agreement_by_kind(judged),
        "trees": tree_counts(trees),
        "accepted": acceptance_truth(trees, judgements, judged),
        "failed_by": fault_shares([faults for faults in wrong if faults]),
        "accepted_by": fault_shares([whats_wrong(*answer) for answer in accepted]),
        "pairs": pair_truth(pairs, prompts) | likeness(pairs, responses, judgements),
    }


def audit_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``iteration_metrics`` that tables show."""
    program, accepted = found["judge_against_program"], found["accepted"]
    trees = ("readable_refinements", "accepted_refinements", "nodes_per_tree", "solved_by_depth")
    pairs = ("truly_better", "chosen_truly", "refined_likeness", "sampled_likeness")
    return {
        "readable_votes": found["votes"]["readable_share"],
        "judge_agreement": program["accuracy"],
        "always_no": program["always_no_accuracy"],
        "false_pass": program["false_pass"],
        "false_fail": program["false_fail"],
        "by_kind": {kind: part["accuracy"] for kind, part in found["judge_by_kind"].items()},
        **{key: found["trees"][key] for key in trees},
        "refined_truly": accepted["refined"],
        "others_truly": accepted["others"],
        "accepted_truly": accepted["truly"],
        "truly_by_votes": accepted["truly_by_votes"],
        "failed_by": found["failed_by"],
        "accepted_by": found["accepted_by"],
        **{key: found["pairs"][key] for key in pairs},
    }


def share(cases: Iterable[bool]) -> Score:
    """How many of the cases are true."""
    return asdict(stats.share(cases))


def average(values: Sequence[float]) -> Score:
    """The mean of some values."""
    return asdict(stats.bootstrap_mean(values, 0))


def judged_in(tree: Tree) -> list[Judgement]:
    """The judgements made in a tree: each text's once, the sampled answer's not again."""
    found = {n.text: n.judgement for n in reversed(tree.nodes) if n.judgement}
    return [judgement for text, judgement in found.items() if text != tree.node("").text]


def vote_counts(judgements: Iterable[Judgement]) -> dict[str, Any]:
    """Yes, No and unreadable votes, and the share that can be read."""
    votes = [vote.verdict for judgement in judgements for vote in judgement.votes]
    return {
        "yes": votes.count(True),
        "no": votes.count(False),
        "unreadable": votes.count(None),
        "readable_share": share(verdict is not None for verdict in votes),
    }


def agreement(judged: Judged) -> dict[str, Score]:
    """The model's majority against the program, on prompts that the program checks completely.

    false_pass: the model says Yes to what fails; false_fail: No to what passes.
    """
    cases = []
    for prompt, judgement in judged:
        said = majority(judgement.votes)[1]
        if prompt.complete and judgement.checks and said is not None:
            cases.append((said, all(judgement.checks)))
    return {
        "accuracy": share(said == truth for said, truth in cases),
        "always_no_accuracy": share(not truth for _, truth in cases),
        "false_pass": share(said for said, truth in cases if not truth),
        "false_fail": share(not said for said, truth in cases if truth),
    }


def agreement_by_kind(judged: Judged) -> dict[str, Any]:
    """``agreement`` on the prompts that hold a constraint of each kind, maybe among others."""
    by_kind: dict[str, list[tuple[Prompt, Judgement]]] = {}
    for prompt, judgement in judged:
        for kind in {data["kind"] for data in prompt.constraints}:
            by_kind.setdefault(kind, []).append((prompt, judgement))
    return {kind: agreement(part) for kind, part in sorted(by_kind.items())}


def acceptance_truth(
    trees: Sequence[Tree], judgements: Iterable[Judgement], judged: Judged
) -> dict[str, Score]:
    """How many texts the program lets pass, where it can say something of them.

    ``truly``: of the accepted refinements. ``refined``: of all refinements. ``truly_by_votes``: of
    all that the model's own majority lets pass; self-praise is what is missing to 1. ``others``: of
    the other answers to the trees' prompts: what sampling again would bring, so what refinements
    have to beat.
    """

    def truly(some: Iterable[Judgement | None]) -> Score:
        return share(all(j.checks) for j in some if j and j.checks)

    roots = {tree.prompt_id: tree.response_id for tree in trees}
    return {
        "truly": truly(t.node(t.accepted).judgement for t in trees if t.accepted),
        "refined": truly(node.judgement for t in trees for node in t.nodes if node.path),
        "truly_by_votes": truly(j for _, j in judged if majority(j.votes)[1] is True),
        "others": truly(j for j in judgements if roots.get(j.id.rpartition("/")[0], j.id) != j.id),
    }


def whats_wrong(prompt: Prompt, text: str) -> list[str]:
    """``MISSED`` and those of ``constraints.FAULTS`` that a text has."""
    checks, faults = check_answer(prompt, text)
    return [*([] if all(checks) else [MISSED]), *faults]


def fault_shares(wrong: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Of some answers, how many have each fault, maybe among others."""
    names = (MISSED, *constraints.FAULTS)
    return {name: share(name in faults for faults in wrong) for name in names}


def tree_counts(trees: Sequence[Tree]) -> dict[str, Any]:
    """Trees, nodes, how many were solved at each depth or above it, what could be read."""
    grown = [n for t in trees for n in t.nodes if n.path]
    # The depth at which each tree was solved, None if it was not.
    solved = [t.node(t.accepted).depth if t.accepted else None for t in trees]
    depths = range(1, max((d for d in solved if d), default=0) + 1)
    readable = sum(n.text is not None for n in grown)
    tries = readable + sum(len(n.failed_replies) for n in grown)
    return {
        "trees": len(trees),
        "solved": share(depth is not None for depth in solved),
        "solved_by_depth": {
            str(d): share(s is not None and s <= d for s in solved) for d in depths
        },
        "stops": dict(Counter(t.stop for t in trees)),
        "nodes_per_tree": average([len(t.nodes) - 1.0 for t in trees]),
        "deepest": max((t.depth for t in trees), default=0),
        "accepted_refinements": share(
            n.judgement is not None and n.judgement.verdict is True for n in grown
        ),
        "readable_refinements": asdict(stats.wilson(readable, tries)),
    }


def pair_truth(pairs: Sequence[PreferencePair], prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    """How many pairs the program confirms, of those with a constraint to check.

    ``truly_better``: the chosen answer meets more of what is asked, being an answer included.
    ``chosen_truly``: it meets all of it.
    """
    sides = []
    for pair in pairs:
        if prompts[pair.prompt_id].constraints:
            known = requirements(prompts[pair.prompt_id])
            chosen = constraints.check_all(known, pair.chosen)
            sides.append((chosen, constraints.check_all(known, pair.rejected)))
    return {
        "pairs": len(pairs),
        "truly_better": share(sum(chosen) > sum(rejected) for chosen, rejected in sides),
        "chosen_truly": share(all(chosen) for chosen, _ in sides),
    }


def likeness(
    pairs: Sequence[PreferencePair],
    responses: Sequence[Response],
    judgements: Sequence[Judgement],
) -> dict[str, Score]:
    """How alike the two answers of a pair are: 1 minus the share of words that differ.

    ``refined``: the pairs at hand. ``sampled``: what pairs of directly sampled answers would be,
    the mean over all passing and failing answers of each prompt that has both (the paper's
    ablation without refinement). The method rests on the first being the larger.
    """
    verdicts = {j.id: j.verdict for j in judgements}
    by_prompt: dict[str, dict[bool | None, list[str]]] = {}
    for response in responses:
        sides = by_prompt.setdefault(response.prompt_id, {True: [], False: [], None: []})
        sides[verdicts.get(response.id)].append(response.text)
    sampled = [
        stats.mean([1 - edit_share(bad, good) for good in sides[True] for bad in sides[False]])
        for sides in by_prompt.values()
        if sides[True] and sides[False]
    ]
    refined = [1 - edit_share(pair.rejected, pair.chosen) for pair in pairs]
    return {"refined_likeness": average(refined), "sampled_likeness": average(sampled)}
