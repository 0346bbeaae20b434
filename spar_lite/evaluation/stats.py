"""Scores with their uncertainty: n and a 95 % interval, always; comparisons on the same prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, TypeVar

Z95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

DRAWS = 2000
"""Resamples of a bootstrap."""

T = TypeVar("T")

Points = Mapping[str, float]
"""Score by prompt id."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its sample size and 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether a difference's interval keeps clear of zero; one case alone never does."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def wilson(hits: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a proportion (E. B. Wilson, 1927); n = 0 gives 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    p = hits / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)


def share(cases: Iterable[bool]) -> Interval:
    """How many of the cases are true, with Wilson's interval."""
    known = list(cases)
    return wilson(sum(known), len(known))


def bootstrap(
    cases: Sequence[T], statistic: Callable[[Sequence[T]], float], seed: int, draws: int = DRAWS
) -> Interval:
    """Bootstrap 95 % interval of any statistic, resampling whole cases (prompts)."""
    return _bootstrap(lambda draw: statistic(draw(cases)), len(cases), seed, draws)


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """Bootstrap 95 % interval of a mean, resampling the values."""
    return bootstrap(values, mean, seed)


def macro_mean(groups: Mapping[str, Sequence[float]], seed: int) -> Interval:
    """Mean of the groups' means, each group resampled by itself; n counts all values."""
    full = [values for values in groups.values() if values]
    size = sum(map(len, full))
    return _bootstrap(lambda draw: mean([mean(draw(part)) for part in full]), size, seed)


def clustered_mean(clusters: Sequence[Sequence[float]], seed: int) -> Interval:
    """Mean of all values, bootstrap over whole clusters; n counts clusters.

    For a prompt that several runs answered: its values are no independent cases, so they are drawn
    together or not at all. Clusters weigh by their size.
    """
    full = [cluster for cluster in clusters if cluster]
    return bootstrap(full, lambda drawn: sum(map(sum, drawn)) / sum(map(len, drawn)), seed)


def f1(cases: Sequence[tuple[bool, bool]]) -> float:
    """F1 of Yes from (truth, said) cases: 2 TP / (2 TP + FP + FN); 0 where nothing is Yes."""
    hits = sum(truth and said for truth, said in cases)
    faults = sum(truth != said for truth, said in cases)
    return 2 * hits / (2 * hits + faults) if hits else 0.0


def _bootstrap(
    statistic: Callable[[Callable[[Sequence[Any]], Sequence[Any]]], float],
    n: int,
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """Expanded 95 % percentiles of a statistic that draws its n cases by the function it is given.

    T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 3.3: the plain
    percentiles are too narrow for few cases, by about t/z and sqrt(n/(n-1)).
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    rng = random.Random(seed)
    drawn = sorted(statistic(lambda c: rng.choices(c, k=len(c))) for _ in range(draws))
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _t95(n - 1)) if n > 1 else 0.0
    skip, last = round(tail * draws), draws - 1
    value = statistic(lambda cases: cases)
    return Interval(value, drawn[min(skip, last)], drawn[max(last - skip, 0)], n)


def _t95(freedom: int) -> float:
    """Student's t quantile of a two-sided 95 % interval (Cornish-Fisher, within 1 % from 3 on)."""
    z, v = Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> float:
    """McNemar's exact two-sided p for paired yes/no outcomes (before, after).

    Only pairs that changed count: under no difference each goes either way with probability 1/2
    (Q. McNemar, 1947; exact binomial). 1 where none changed.
    """
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    changed = gained + lost
    ways = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    tail: float = ways / 2**changed
    return min(1.0, 2 * tail)


@dataclass(frozen=True)
class Change:
    """Two means over the same cases, and what each case gained.

    ``p``: McNemar's exact p where every value is 0 or 1, else None.
    """

    before: float
    after: float
    p: float | None
    gains: list[float]
    seed: int

    @cached_property
    def difference(self) -> Interval:
        """The mean gain; it takes its time, so it is drawn when it is asked for."""
        return bootstrap_mean(self.gains, self.seed)

    @property
    def clear(self) -> bool:
        """Whether it is more than chance; one case alone never is."""
        # Few 0/1 pairs that differ make a bootstrap interval too narrow; the exact test decides.
        return self.difference.clear if self.p is None else self.p < 0.05

    @property
    def rose(self) -> bool:
        """Whether it is clear, and upwards."""
        return self.clear and self.after > self.before


def paired_change(before: Points, after: Points, seed: int) -> Change:
    """Compare the cases that both sides have; without any, all is NaN and nothing clear."""
    pairs = [(before[id], after[id]) for id in before if id in after]
    binary = all(value in (0, 1) for pair in pairs for value in pair)
    p = mcnemar([(a == 1, b == 1) for a, b in pairs]) if binary else None
    means = mean([a for a, _ in pairs]), mean([b for _, b in pairs])
    return Change(*means, p, [b - a for a, b in pairs], seed)
