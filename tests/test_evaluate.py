"""Statistics by hand, the held-out review, and what an iteration's metrics count."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random

import pytest

from spar_lite.engines.base import Request, strip_thinking
from spar_lite.evaluation.answer import scores
from spar_lite.evaluation.audit import (
    acceptance_truth,
    agreement,
    agreement_by_kind,
    fault_shares,
    judged_in,
    likeness,
    pair_truth,
    tree_counts,
    vote_counts,
    whats_wrong,
)
from spar_lite.evaluation.heldout import HELDOUT_POINTS, HeldoutResult, counts, review_heldout
from spar_lite.evaluation.stats import bootstrap_mean, paired_change, wilson
from spar_lite.recipe import Evaluate
from spar_lite.records import (
    Cost,
    Judgement,
    Node,
    PreferencePair,
    Prompt,
    Response,
    Role,
    Tree,
    Vote,
)
from tests.scripted import ScriptedEngine

WELL = {"kind": "starts_with", "phrase": "Well"}
ASK = Prompt("h-0", 'Describe tea. Begin with "Well".', (WELL,), complete=True)


def test_wilson_by_hand() -> None:
    """z = 1.96, 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 0.22657."""
    found = wilson(8, 10)
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 10).low == 0 and wilson(10, 10).high == pytest.approx(1)
    assert wilson(0, 10).high == pytest.approx(0.27753, abs=1e-4)  # z^2 / (n + z^2)
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value) and (nothing.low, nothing.high) == (0, 1)


def test_wilson_covers_the_truth_about_95_times_in_100() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        found = wilson(sum(rng.random() < 0.3 for _ in range(60)), 60)
        hits += found.low <= 0.3 <= found.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_bootstrap_of_equal_values_has_no_width() -> None:
    found = bootstrap_mean([0.5] * 7, seed=0)
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 7)


def test_bootstrap_is_near_the_normal_interval() -> None:
    """50 zeros and 50 ones: mean 0.5, standard error 0.05, so about 0.402 to 0.598."""
    found = bootstrap_mean([0.0, 1.0] * 50, seed=0)
    assert found.low == pytest.approx(0.402, abs=0.02)
    assert found.high == pytest.approx(0.598, abs=0.02)


def result(id: str, *checks: bool, said: bool | None = None) -> HeldoutResult:
    vote = Vote("", said) if said is not None else None
    return HeldoutResult(
        id, "two words", True, checks, (), None, vote, False, None, None, (), Cost()
    )


def test_paired_difference_compares_the_same_prompts() -> None:
    before = [result("a", True, False), result("b", False), result("c", True)]
    after = [result("b", True), result("a", True, True), result("new", True)]
    found = paired_change(counts(before), counts(after), 0).difference
    assert (found.value, found.n) == (1, 2)  # half of "a" did not count; "c", "new" stand alone
    assert found.clear
    assert not paired_change(counts(before), counts(before), 0).difference.clear


def test_summary_counts_only_what_was_asked() -> None:
    results = [result("a", True, said=True), result("b", False, said=True), result("c")]
    found = scores(results, HELDOUT_POINTS, 0)
    assert found["answers_that_count"].n == 3 and found["readable_votes"].n == 2
    assert found["judge_agreement"].value == 0.5
    assert found["readable_refinements"].n == 0
    assert found["answer_words"].value == 2


def review(text: str, refined: str, wanted: bool = True) -> tuple[HeldoutResult, ScriptedEngine]:
    def reply(role: Role, request: Request) -> str:
        return refined if request.id.endswith("refine") else "Final Judgement: Yes"

    engine = ScriptedEngine(reply)
    response = Response("h-0", "h-0", text, True, Cost())
    return asyncio.run(review_heldout(engine, ASK, response, Evaluate(), wanted)), engine


def test_a_failed_answer_is_judged_and_refined() -> None:
    found, engine = review("Tea.", "So. [[start]] Well. Tea. [[end]]")
    assert found.checks == (False,) and found.vote == Vote("Final Judgement: Yes", True)
    assert found.refined == "Well. Tea." and found.refined_checks == (True, True)
    assert len(engine.requests) == 2


def test_a_right_answer_is_not_refined_and_an_unreviewed_one_asks_nobody() -> None:
    found, engine = review("Well. Tea.", "")
    assert not found.asked_to_refine and len(engine.requests) == 1
    found, engine = review("Tea.", "", wanted=False)
    assert found.vote is None and engine.requests == []


def judgement(checks: tuple[bool, ...], *votes: bool | None) -> Judgement:
    cast = tuple(Vote("", verdict) for verdict in votes)
    return Judgement("h-0/0", cast, None, None, None, None, checks, Cost())


def test_agreement_counts_false_passes_and_false_fails() -> None:
    cases = [
        (ASK, judgement((True,), True, True, False)),  # right
        (ASK, judgement((False,), True, True, True)),  # false pass
        (ASK, judgement((True,), False, None, None)),  # false fail
        (ASK, judgement((False,), None, None, None)),  # nothing to compare
        (ASK, judgement((False,), True, False)),  # a tie says nothing
    ]
    found = agreement(cases)
    assert found["accuracy"]["n"] == 3 and found["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["false_pass"]["value"] == 1 and found["false_pass"]["n"] == 1
    assert found["false_fail"]["value"] == 0.5 and found["false_fail"]["n"] == 2
    votes = vote_counts(j for _, j in cases)
    assert (votes["yes"], votes["no"], votes["unreadable"]) == (6, 3, 5)


def test_agreement_by_kind() -> None:
    """Right on the prompt with one constraint, wrong on the one with two: that one counts twice."""
    two = Prompt("h-1", "x", (WELL, {"kind": "no_commas"}), complete=True)
    cases = [(ASK, judgement((True,), True)), (two, judgement((True, False), True))]
    found = agreement_by_kind(cases)
    assert found["starts_with"]["accuracy"]["value"] == 0.5
    assert found["no_commas"]["accuracy"] == found["no_commas"]["accuracy"] | {"value": 0, "n": 1}


def tree(id: str, accepted: str | None, *paths: str, checks: bool = True) -> Tree:
    nodes = [Node("", "old", None, (), judgement((False,), False))]
    nodes += [Node(p, "new", "r", (), judgement((checks,), True)) for p in paths]
    return Tree(id, "h-0", "h-0/0", tuple(nodes), accepted, accepted or "", "accepted", Cost())


def test_a_judgement_that_copies_share_counts_once() -> None:
    nodes = tree("a", None, "0", "1", "2").nodes
    root = dataclasses.replace(nodes[0], path="3")  # the failed answer again
    grown = dataclasses.replace(tree("a", None), nodes=(*nodes, root))
    assert judged_in(grown) == [nodes[1].judgement]


def test_trees_by_depth_and_the_truth_of_acceptance() -> None:
    """Four trees: two solved at depth 1, one at 2, one not; one accepted refinement is not true."""
    trees = [
        tree("a", "0", "0"),
        tree("b", "1", "0", "1", checks=False),
        tree("c", "0.0", "0", "0.0"),
        tree("d", None),
    ]
    counts = tree_counts(trees)
    assert counts["solved_by_depth"]["1"]["value"] == 0.5
    assert counts["solved_by_depth"]["2"]["value"] == counts["solved"]["value"] == 0.75
    assert counts["nodes_per_tree"]["value"] == (1 + 2 + 2 + 0) / 4
    judged = [(ASK, n.judgement) for t in trees for n in t.nodes if n.path and n.judgement]
    found = acceptance_truth(trees, [], judged)
    assert found["truly"]["value"] == pytest.approx(2 / 3) and found["truly"]["n"] == 3
    assert found["truly_by_votes"]["value"] == 3 / 5  # b's two refinements are praised in vain


ABOUT_TEA = Prompt("h-0", ASK.text, (WELL,), complete=True, topic="tea")
FINE = "Well, tea warms a cold kitchen in the morning."
TWICE = "Well, tea warms a cold kitchen. Well, tea warms a cold kitchen."
AWAY = "Well, the dog sleeps under a large table."


def test_what_is_wrong_with_a_text() -> None:
    assert whats_wrong(ABOUT_TEA, FINE) == []
    assert whats_wrong(ABOUT_TEA, TWICE) == ["says it twice"]
    assert whats_wrong(ABOUT_TEA, AWAY) == ["off topic"]
    assert whats_wrong(ABOUT_TEA, FINE.removeprefix("Well, ")) == ["misses a constraint"]
    found = fault_shares([whats_wrong(ABOUT_TEA, text) for text in (FINE, FINE, TWICE, AWAY)])
    assert {name: share["value"] for name, share in found.items() if share["value"]} == {
        "says it twice": 0.25,
        "off topic": 0.25,
    }
    assert all(share["n"] == 4 for share in found.values())


def test_a_pair_is_better_only_if_its_answer_stays_one() -> None:
    """Of a, b and c each begins as asked now. b says it twice instead, so nothing is gained; c is
    off the topic before and after, so it is better, and not good. d has no constraint to check.
    """
    plain = Prompt("p-0", "Describe tea.")
    prompts = {"h-0": ABOUT_TEA, "p-0": plain}
    rejected = FINE.removeprefix("Well, ")
    found = pair_truth(
        [
            PreferencePair("a", "h-0", (), FINE, rejected),
            PreferencePair("b", "h-0", (), TWICE, rejected),
            PreferencePair("c", "h-0", (), AWAY, "The dog sleeps. The dog sleeps"),
            PreferencePair("d", "p-0", (), FINE, rejected),
        ],
        prompts,
    )
    assert found["pairs"] == 4
    assert found["truly_better"]["value"] == pytest.approx(2 / 3)
    assert found["chosen_truly"]["value"] == pytest.approx(1 / 3)
    assert found["truly_better"]["n"] == 3


def test_refinements_and_what_sampling_again_would_bring() -> None:
    """Of three refinements one is not good; of the two other answers to that prompt one is."""
    trees = [tree("a", "0", "0", "1"), tree("b", None, "0", checks=False)]
    assert acceptance_truth(trees, [], [])["refined"]["value"] == pytest.approx(2 / 3)
    answers = {"h-0/0": False, "h-0/1": True, "h-0/2": False, "h-1/0": True}
    judged = [
        Judgement(id, (), None, None, None, None, (ok,), Cost()) for id, ok in answers.items()
    ]
    others = acceptance_truth([tree("a", "0", "0")], judged, [])["others"]
    assert (others["value"], others["n"]) == (0.5, 2)


def test_likeness_of_refined_and_of_sampled_pairs() -> None:
    """Refined: 3 of 4 words kept. Sampled: nothing in common with one, half with the other."""
    pair = PreferencePair("t", "h-0", (), "the tea is warm", "the tea is cold")
    texts = {"h-0/0": "a b", "h-0/1": "a c", "h-0/2": "d e", "h-1/0": "z"}
    verdicts = {"h-0/0": True, "h-0/1": False, "h-0/2": False, "h-1/0": False}
    responses = [Response(i, i[:3], text, True, Cost()) for i, text in texts.items()]
    judged = [Judgement(i, (), None, v, None, None, (), Cost()) for i, v in verdicts.items()]
    found = likeness([pair], responses, judged)
    assert found["refined_likeness"]["value"] == 0.75
    assert found["sampled_likeness"]["value"] == 0.25 and found["sampled_likeness"]["n"] == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>Final Judgement: Yes</think>No", "No"),
        ("before <think>a</think> b <think>c</think>after", "before  b after"),
        ("still <think>thinking and cut off", "still"),
        ("the template opened it</think> the answer", "the answer"),
        ("nothing to think", "nothing to think"),
    ],
)
def test_thinking_is_stripped(text: str, kept: str) -> None:
    assert strip_thinking(text) == kept
