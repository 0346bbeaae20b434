"""Each statistic against a number derived by hand, and intervals that cover what they promise."""

from __future__ import annotations

import math
import random

import pytest

from spar_lite.evaluation.stats import (
    Change,
    Interval,
    bootstrap,
    bootstrap_mean,
    clustered_mean,
    f1,
    macro_mean,
    mcnemar,
    mean,
    paired_change,
    wilson,
)


def test_mcnemar_by_hand() -> None:
    """8 gained, 2 lost: 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 2 * 56 / 1024."""
    pairs = [(False, True)] * 8 + [(True, False)] * 2 + [(True, True)] * 30
    assert mcnemar(pairs) == pytest.approx(112 / 1024)
    assert mcnemar([(b, a) for a, b in pairs]) == mcnemar(pairs)


def test_mcnemar_at_the_edges() -> None:
    assert mcnemar([]) == 1
    assert mcnemar([(True, True), (False, False)]) == 1
    assert mcnemar([(True, False), (False, True)]) == 1  # 2 * 3 / 4, and no more than 1
    assert mcnemar([(False, True)] * 6) == pytest.approx(2 / 64)


def test_f1_by_hand() -> None:
    """3 right Yes, 1 Yes missed, 2 wrong Yes: 2 * 3 / (2 * 3 + 1 + 2) = 2 / 3."""
    cases = [(True, True)] * 3 + [(True, False)] + [(False, True)] * 2 + [(False, False)] * 9
    found = bootstrap(cases, f1, seed=0)
    assert found.value == pytest.approx(2 / 3)
    assert 0 <= found.low < found.value < found.high <= 1
    assert found.n == 15


def test_f1_without_a_yes_is_zero_and_all_right_is_one() -> None:
    assert f1([(True, False), (False, False)]) == 0
    perfect = bootstrap([(True, True), (False, False)] * 10, f1, 0)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)


def test_macro_mean_weighs_groups_alike() -> None:
    """(1.0 over one value + 0.25 over four) / 2 = 0.625; the plain mean would be 0.4."""
    found = macro_mean({"small": [1.0], "large": [1.0, 0.0, 0.0, 0.0], "none": []}, seed=0)
    assert (found.value, found.n) == (0.625, 5)
    assert found.low <= 0.625 <= found.high
    assert math.isnan(macro_mean({}, 0).value)


def changed(before: list[float], after: list[float]) -> Change:
    """The same cases in the same order."""
    return paired_change(
        {str(n): value for n, value in enumerate(before)},
        {str(n): value for n, value in enumerate(after)},
        0,
    )


def test_paired_difference_is_narrower_than_its_parts() -> None:
    """The same cases, each 0.1 better: the difference is 0.1 without doubt."""
    rng = random.Random(0)
    before = [rng.random() for _ in range(40)]
    found = changed(before, [value + 0.1 for value in before]).difference
    assert found.value == pytest.approx(0.1) and found.low == pytest.approx(0.1)
    assert found.clear
    assert not Interval(0.1, -0.01, 0.2, 9).clear and not Interval(0.1, 0.1, 0.1, 1).clear


def test_only_what_is_on_both_sides_is_compared() -> None:
    found = paired_change({"a": 1.0, "b": 2.0, "c": 9.0}, {"new": 9.0, "b": 4.0, "a": 2.0}, 0)
    assert (found.before, found.after, found.difference.n) == (1.5, 3, 2)
    assert found.difference.value == 1.5


def test_a_paired_change_of_yes_and_no_is_decided_by_the_exact_test() -> None:
    """Five lost, none gained: 2 / 2^5 = 0.0625, though no resample is likely to reach 0. Six: 0.03.

    Of 20, so the means are 1 and 0.75, or 0.7.
    """
    five = changed([1.0] * 20, [0.0] * 5 + [1.0] * 15)
    assert (five.before, five.after, five.p) == (1, 0.75, pytest.approx(0.0625))
    assert five.difference.clear and not five.clear
    six = changed([1.0] * 20, [0.0] * 6 + [1.0] * 14)
    assert six.clear and not six.rose and changed([0.0] * 6, [1.0] * 6).rose


def test_a_paired_change_of_other_values_is_decided_by_its_interval() -> None:
    up = changed([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert up.p is None and up.difference == Interval(0.5, 0.5, 0.5, 3) and up.rose
    assert not changed([1.0, 2.0], [2.0, 1.0]).clear
    assert not changed([1.5], [9.5]).clear  # one case alone
    nothing = changed([], [])
    assert math.isnan(nothing.before) and not nothing.clear and not nothing.rose


def test_clusters_are_drawn_whole() -> None:
    """Two prompts: +1 in all three runs, 0 in all three. The mean is 0.5 of 2 cases, not of 6.

    Resampled means are 0, 0.5 or 1, so the interval is as wide as that of 0 and 1 alone.
    """
    found = clustered_mean([[1.0] * 3, [0.0] * 3], 0)
    assert found == bootstrap_mean([1.0, 0.0], 0) == Interval(0.5, 0.0, 1.0, 2)
    many = clustered_mean([[1.0] * 3, [0.0] * 3] * 8, 0)
    assert many == bootstrap_mean([1.0, 0.0] * 8, 0)
    assert bootstrap_mean([1.0, 0.0] * 24, 0).low > many.low  # what 48 cases would pretend


def test_clusters_weigh_by_their_size() -> None:
    """(3 x 1 + 1 x 0) / 4; an empty one is none."""
    found = clustered_mean([[1.0] * 3, [0.0], []], 0)
    assert (found.value, found.n) == (0.75, 2)
    assert math.isnan(clustered_mean([], 0).value)


def test_bootstrap_of_few_cases_is_wider_than_plain_percentiles() -> None:
    """0, 1 and n = 2: resampled means are 0, 0.5 or 1; t with one degree reaches them all."""
    found = bootstrap_mean([0.0, 1.0], seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(("n", "skew"), [(20, 1), (20, 2), (50, 2)])
def test_bootstrap_covers_the_truth_about_95_times_in_100(n: int, skew: int) -> None:
    """Uniform values to the power of ``skew``: their mean is 1 / (skew + 1)."""
    rng = random.Random(n * skew)
    truth, hits, rounds = 1 / (skew + 1), 0, 400
    for seed in range(rounds):
        found = bootstrap([rng.random() ** skew for _ in range(n)], mean, seed, draws=200)
        hits += found.low <= truth <= found.high
    # Seeds are fixed, so there is no flicker.
    assert 0.93 <= hits / rounds <= 0.97


@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (50, 0.3), (100, 0.3), (541, 0.25)])
def test_wilson_covers_the_truth_about_95_times_in_100(n: int, p: float) -> None:
    rng = random.Random(n)
    rounds = 4000
    hits = 0
    for _ in range(rounds):
        found = wilson(sum(rng.random() < p for _ in range(n)), n)
        hits += found.low <= p <= found.high
    assert 0.93 <= hits / rounds <= 0.97


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [random.Random(1).random() for _ in range(30)]
    assert bootstrap_mean(values, 3) == bootstrap_mean(values, 3)
