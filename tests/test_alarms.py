"""A table that cannot flatter: every alarm by hand, every row of the tables, which part fails."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from spar_lite.app.console import print_alarms
from spar_lite.app.loop_table import iteration_table, weak_parts
from spar_lite.app.tables import TITLES, difference_row, score_table
from spar_lite.evaluation.answer import scores
from spar_lite.evaluation.heldout import HELDOUT_POINTS, WATCHED, HeldoutResult, alarms
from spar_lite.evaluation.stats import wilson
from spar_lite.records import Cost, Vote

GOOD = HeldoutResult(
    "h", "one two three four", True, (True,), (), -1.0, None, False, None, None, (), Cost()
)


def results(count: int, changed: int = 0, **changes: Any) -> list[HeldoutResult]:
    """Answers that count, the first ``changed`` of them with other fields."""
    found = [dataclasses.replace(GOOD, id=f"h-{n}") for n in range(count)]
    other = [dataclasses.replace(r, **changes) for r in found[:changed]]
    return [*other, *found[changed:]]


def test_said_twice_by_hand() -> None:
    """3 of 100 before, 33 after, all three among them: +30 points, McNemar 2 / 2^30.

    30 of 100 differ, so the standard error is 0.046 and the interval about 21 to 39 points. An
    answer that says it twice does not count, so that these fall by as much.
    """
    before = results(100, 3, faults=("says it twice",))
    after = results(100, 33, faults=("says it twice",))
    count, twice = alarms(before, after)
    assert twice.startswith("the answers got worse: said twice 3.0 → 33.0 % (+30.0 [+21.0, +39.0]")
    assert twice.endswith(", paired, n=100)")
    assert count.startswith("the answers got worse: answers that count 97.0 → 67.0 % (-30.0 [-39.")
    assert alarms(after, before) == [] and alarms(after, after) == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "answers_that_count": ({"checks": (False,)}, "the answers got worse: answers that count 100"),
    "on_topic": ({"faults": ("off topic",)}, "the answers got worse: on topic 100.0 → 70.0 %"),
    "empty": ({"faults": ("no words of its own",)}, "the answers got worse: empty 0.0 → 30.0 %"),
    "empty, of the task": ({"faults": ("speaks of the task",)}, "empty 0.0 → 30.0 %"),
    "cut_off": ({"finished": False}, "the answers got worse: cut off 0.0 → 30.0 %"),
    "base_logp": ({"logp": -3.0}, "moved away from the base: log p per token -1.00 → -1.60 (-0.60"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_what_goes_wrong_in_30_of_100_is_said(changes: dict[str, Any], said: str) -> None:
    before, after = results(100), results(100, 30, **changes)
    assert any(said in sentence for sentence in alarms(before, after))
    assert alarms(after, before) == []


def test_every_score_that_can_hide_something_is_watched() -> None:
    """The rest are readings of replies, a baseline, and the score that can be won."""
    others = {"constraints_met", "readable_votes", "readable_refinements", "always_no_agreement"}
    assert set(WATCHED) | others == set(HELDOUT_POINTS) == set(TITLES)


def test_a_change_within_its_interval_is_not_said() -> None:
    """Five more of 100, none fewer: McNemar 2 / 2^5 = 0.0625. Six: 2 / 2^6 = 0.03."""
    assert alarms(results(100), results(100, 5, finished=False)) == []
    count, cut = alarms(results(100), results(100, 6, finished=False))
    assert "answers that count 100.0 → 94.0 %" in count and "cut off 0.0 → 6.0 %" in cut


def test_words_may_fall_by_a_third() -> None:
    """From 9 to 6 words is a third and no more; to 5 is more."""
    nine, six, five = ("w " * n for n in (9, 6, 5))
    before = results(20, 20, answer=nine)
    assert alarms(before, results(20, 20, answer=six)) == []
    (said,) = alarms(before, results(20, 20, answer=five))
    assert said == (
        "the answers got worse: words per answer 9.0 → 5.0 (-4.0 [-4.0, -4.0], paired, n=20)"
    )


def test_the_refiner_is_watched_too() -> None:
    """Ten failed answers, all judged rightly and mended before; after, none of it."""
    no, yes = Vote("", False), Vote("", True)
    bad = {"checks": (False,), "asked_to_refine": True, "refined": "x"}
    before = results(10, 10, vote=no, refined_checks=(True, True), **bad)
    after = results(10, 10, vote=yes, refined_checks=(True, False), **bad)
    assert [sentence.partition(" (")[0] for sentence in alarms(before, after)] == [
        "the refiner got worse: votes that agree with the program 100.0 → 0.0 %",
        "the refiner got worse: failed answers truly mended 100.0 → 0.0 %",
    ]


def test_a_score_that_is_won_without_answering_is_said_first() -> None:
    """Constraints met rise from 20 to 60 of 100, but by answers off the topic."""
    before = results(100, 80, checks=(False,))
    after = [
        dataclasses.replace(r, checks=(True,), faults=("off topic",)) if n < 40 else r
        for n, r in enumerate(before)
    ]
    won, topic = alarms(before, after)
    assert won.startswith("the score was won without answering: constraints met 20.0 → 60.0 % (+40")
    assert "but answers that count 20.0 → 20.0 % (+0.0 [+0.0, +0.0], paired, n=100)" in won
    assert topic.startswith("the answers got worse: on topic 100.0 → 60.0 %")
    honest = results(100, 40, checks=(False,))
    assert alarms(before, honest) == []


def test_nothing_to_compare_is_no_alarm() -> None:
    """No results, other prompts, one prompt, no log p, log p that is no number."""
    other = [dataclasses.replace(r, id=f"x-{r.id}", finished=False) for r in results(9)]
    assert alarms([], []) == alarms(results(9), []) == alarms(results(9), other) == []
    assert alarms(results(1), results(1, 1, logp=-9.0, answer="w")) == []
    for none in (None, math.nan):
        assert alarms(results(9, 9, logp=none), results(9)) == []
        assert alarms(results(9), results(9, 9, logp=none)) == []
    some = [*results(2, 2, logp=None), *results(9)[2:]]
    (said,) = alarms(some, results(9, 9, logp=-2.0))
    assert said.endswith("-1.00 → -2.00 (-1.00 [-1.00, -1.00], paired, n=7)")


# --- The tables -----------------------------------------------------------------------------------


def text(table: Table | None) -> list[str]:
    """The table's lines, cells parted by bars alone."""
    assert table is not None
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return [" | ".join(c.strip() for c in x.split("│")[1:-1]) for x in file.getvalue().split("\n")]


def plain(scores: Any) -> dict[str, Any]:
    return {name: dataclasses.asdict(score) for name, score in scores.items()}


def test_the_score_table_shows_all_of_it_what_counts_first() -> None:
    """Two answers, one cut off; IFEval was asked of the base alone."""
    found = plain(scores(results(2, 1, finished=False), HELDOUT_POINTS, 0))
    marks = {
        "base/heldout": {"scores": found},
        "base/ifeval": {
            "checkpoint": "base",
            "scores": plain({"prompt_level_strict_acc": wilson(1, 4)}),
        },
        # of an older version
        "bootstrap/heldout": {"scores": {"constraints_met": found["constraints_met"]}},
    }
    lines = [line for line in text(score_table(marks)) if line]
    half, all_of_them = "50.0 [9.5, 90.5] n=2", "100.0 [100.0, 100.0] n=2"
    assert lines[:3] == [
        f"answers that count, % | {half} | -",
        f"constraints met, whatever meets them, % | {all_of_them} | {all_of_them}",
        "on topic, % | 100.0 [34.2, 100.0] n=2 | -",
    ]
    assert f"cut off, % | {half} | -" in lines
    assert "words per answer | 4.0 [4.0, 4.0] n=2 | -" in lines
    assert "log p per token under the base | -1.00 [-1.00, -1.00] n=2 | -" in lines
    assert "failed answers truly mended, % | - (n=0) | -" in lines
    assert "IFEval prompts met, % | 25.0 [4.6, 69.9] n=4 | -" in lines
    assert score_table({}) is None


def test_a_figure_that_there_is_none_of_is_a_dash() -> None:
    """In a marker's JSON NaN is null."""
    none = {"value": None, "low": None, "high": None, "n": 0}
    marks = {"base/heldout": {"scores": {"base_logp": none}}}
    assert "log p per token under the base | - (n=0)" in text(score_table(marks))


MARKS: dict[str, Any] = {
    "iteration-1/prompts": {"prompts": 5},
    "iteration-1/pairs": {
        "pairs": 4,
        "interfering": 2,
        "interference": {"cut off": 2, "longer": 1},
    },
    "iteration-1/actor": {
        "examples": 2,
        "passed": 1,
        "metrics": {
            "logp_chosen_before_per_token": -0.5,
            "logp_chosen_after_per_token": -0.75,
            "logp_rejected_before_per_token": -0.5,
            "logp_rejected_after_per_token": -2.0,
        },
    },
    "iteration-1/keep": {"kept": 1},
    "iteration-2/pairs": {"pairs": 1, "interfering": 1, "interference": {"shorter": 1}},
    "iteration-2/keep": {"kept": 1},
    "iteration-3/pairs": {"pairs": 0, "interfering": 0, "interference": {}},
    "iteration-3/keep": {"kept": 0},
    "iteration-4/pairs": {"pairs": 0},
}


def test_the_loop_shows_interference_training_and_what_was_kept() -> None:
    lines = text(iteration_table(MARKS))
    for row in (
        "preference pairs | 4 | 1 | 0 | 0",
        "… interfering | 2 | 1 | 0 | -",
        "… cut off | 2 | 0 | 0 | 0",
        "… longer | 1 | 0 | 0 | 0",
        "… shorter | 0 | 1 | 0 | 0",
        "actor examples | 2 | - | - | -",
        "… passed answers | 1 | - | - | -",
        "log p of chosen, per token | -0.50 → -0.75 | - | - | -",
        "log p of rejected, per token | -0.50 → -2.00 | - | - | -",
        "kept | yes | no, iteration-1 stays | no, the start stays | -",
    ):
        assert row in lines
    assert iteration_table({"base/heldout": {}}) is None


def test_the_audit_is_shown_by_part_and_fault() -> None:
    share = plain({"x": wilson(1, 4)})["x"]
    audit = {
        "judge_agreement": share,
        "by_kind": {"no_commas": share},
        "refined_truly": share,
        "failed_by": {"misses a constraint": share, "off topic": share},
        "accepted_by": {"says it twice": share, "cut off": plain({"x": wilson(0, 4)})["x"]},
    }
    lines = text(iteration_table({"iteration-1/audit": audit}))
    shown = "25.0 [4.6, 69.9] n=4"
    for title in (
        "agrees with program, %",
        "… on no_commas, %",
        "refinements truly good, %",
        "those that truly fail: off topic, %",
        "accepted ones: says it twice, %",
    ):
        assert f"{title} | {shown}" in lines
    assert not [line for line in lines if line.startswith("accepted ones: cut off")]  # nobody was
    parts = ["answers", "the judge", "the refinements", "the pairs", "the training"]
    order = [line.split(" | ")[0] for line in lines]
    assert sorted(parts, key=order.index) == parts


def test_a_difference_in_words() -> None:
    difference = {"value": 0.26, "low": 0.16, "high": 0.36, "n": 100}
    d: dict[str, Any] = {"task": "answers that count", "from": "base", "to": "bootstrap"}
    d |= {"difference": difference, "mcnemar_p": 0.0001, "distinguishable": True, "left_out": 0}
    assert difference_row(d) == (
        "answers that count, base → bootstrap: +26.0 points [+16.0, +36.0], paired, n=100, "
        "McNemar p = 0.0001"
    )
    weak = {**d, "mcnemar_p": None, "distinguishable": False, "left_out": 2, "runs": 3}
    assert difference_row(weak).endswith(
        "3 runs pooled, the same prompts in each, n=100: not distinguishable (2 prompts not shared)"
    )
    none = {**d, "difference": {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}}
    assert difference_row(none) == "answers that count, base → bootstrap: no prompt in common"


def test_alarms_name_their_step() -> None:
    file = io.StringIO()
    print_alarms(Console(file=file), {"a → b": ["x", "y"], "b → c": []})
    assert file.getvalue() == "a → b: x\na → b: y\n"


# --- Which part fails -----------------------------------------------------------------------------


def said(audit: dict[str, Any], metrics: dict[str, float] | None = None) -> Sequence[str]:
    marks = {"iteration-1/audit": plain(audit), "iteration-1/actor": {"metrics": metrics or {}}}
    return weak_parts(marks).get("iteration-1", [])


def test_a_judge_no_better_than_a_constant_one_is_named() -> None:
    """57 of 100 agree, 47 to 66 %: less than always Yes, with 60 of 100. 80 of 100 are enough."""
    no = wilson(40, 100)
    (judge,) = said({"judge_agreement": wilson(57, 100), "always_no": no})
    assert judge == (
        "the judge is not clearly better than a constant one: its own votes agree with the program "
        "on 57.0 % [47.2, 66.3], n=100, always saying the same on 60.0 %"
    )
    assert said({"judge_agreement": wilson(80, 100), "always_no": no}) == []
    assert said({"judge_agreement": wilson(0, 0), "always_no": wilson(0, 0)}) == []


def test_refinements_that_sampling_again_would_beat_fail() -> None:
    few, many = wilson(10, 100), wilson(50, 100)
    (refinements,) = said({"refined_truly": few, "others_truly": many})
    assert refinements.startswith("the refinements fail: 10.0 % [5.5, 17.4], n=100 are truly good")
    assert said({"refined_truly": many, "others_truly": few}) == []
    (accepted,) = said({"accepted_truly": few})
    assert accepted.startswith("most accepted refinements are not good: 10.0 %")


def test_a_training_that_makes_chosen_answers_less_likely_fails() -> None:
    names = ("logp_chosen_before_per_token", "logp_chosen_after_per_token")
    (training,) = said({}, dict(zip(names, (-0.5, -0.75), strict=True)))
    assert training.endswith("less likely: log p per token -0.50 → -0.75")
    assert said({}, dict(zip(names, (-0.75, -0.5), strict=True))) == []
    assert weak_parts({"iteration-1/audit": {}}) == {}


def test_an_actor_that_shares_its_adapter_is_looked_at_too() -> None:
    """Its training is another step: the actor's own is a copy of what the refiner became."""
    metrics = {"logp_chosen_before_per_token": -1.0, "logp_chosen_after_per_token": -2.0}
    alone = {"examples": 7, "metrics": metrics}
    marks = {"audit": {}, "actor_alone": alone, "actor": {"copied": 1}}
    stages = {f"iteration-1/{step}": noted for step, noted in marks.items()}
    (training,) = weak_parts(stages)["iteration-1"]
    assert training.endswith("less likely: log p per token -1.00 → -2.00")
    table = iteration_table(stages)
    assert table is not None
    rows = dict(zip(*(column.cells for column in table.columns), strict=True))
    assert rows["actor examples"] == "7"
    assert rows["log p of chosen, per token"] == "-1.00 → -2.00"
