"""Scores with their uncertainty: n and a 95 % interval, always; comparisons on the same prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

Z95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

DRAWS = 2000
"""Resamples of a bootstrap."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its sample size and 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def wilson(hits: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a proportion (E. B. Wilson, 1927); n = 0 gives 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    p = hits / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = DRAWS) -> Interval:
    """Bootstrap 95 % interval of a mean, resampling the values."""
    return bootstrap(values, lambda drawn: sum(drawn) / len(drawn), seed, draws)


def bootstrap(
    cases: Sequence[T], statistic: Callable[[Sequence[T]], float], seed: int, draws: int = DRAWS
) -> Interval:
    """Bootstrap 95 % interval of any statistic, resampling whole cases (prompts).

    Expanded percentiles (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015,
    section 3.3): the plain ones are too narrow for few cases, by about t/z and sqrt(n/(n-1)).
    """
    n = len(cases)
    if n == 0:
        return NOTHING
    rng = random.Random(seed)
    drawn = sorted(statistic(rng.choices(cases, k=n)) for _ in range(draws))
    return _between(statistic(cases), drawn, n)


def macro_mean(groups: Mapping[str, Sequence[float]], seed: int) -> Interval:
    """Mean of the groups' means, each group resampled by itself; n counts all values."""
    full = [values for values in groups.values() if values]
    if not full:
        return NOTHING
    rng = random.Random(seed)

    def mean(parts: Sequence[Sequence[float]]) -> float:
        return sum(sum(part) / len(part) for part in parts) / len(parts)

    drawn = sorted(mean([rng.choices(part, k=len(part)) for part in full]) for _ in range(DRAWS))
    return _between(mean(full), drawn, sum(map(len, full)))


def f1(cases: Sequence[tuple[bool, bool]]) -> float:
    """F1 of Yes from (truth, said) cases: 2 TP / (2 TP + FP + FN); 0 where nothing is Yes."""
    hits = sum(truth and said for truth, said in cases)
    faults = sum(truth != said for truth, said in cases)
    return 2 * hits / (2 * hits + faults) if hits else 0.0


def f1_score(cases: Sequence[tuple[bool, bool]], seed: int) -> Interval:
    """``f1`` with its bootstrap interval."""
    return bootstrap(cases, f1, seed)


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


def paired_difference(before: Sequence[float], after: Sequence[float], seed: int) -> Interval:
    """Mean of after - before over the same cases in the same order, bootstrap over cases."""
    return bootstrap_mean([b - a for a, b in zip(before, after, strict=True)], seed)


def distinguishable(difference: Interval) -> bool:
    """Whether a difference's interval keeps clear of zero."""
    return difference.low > 0 or difference.high < 0


def mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True, slots=True)
class Change:
    """Two means over the same cases and their difference.

    ``p``: McNemar's exact p where every value is 0 or 1, else None.
    """

    before: float
    after: float
    difference: Interval
    p: float | None

    @property
    def clear(self) -> bool:
        """Whether it is more than chance; one case alone never is."""
        # Few 0/1 pairs that differ make a bootstrap interval too narrow; the exact test decides.
        if self.p is not None:
            return self.p < 0.05
        return self.difference.n > 1 and distinguishable(self.difference)

    @property
    def rose(self) -> bool:
        """Whether it is clear, and upwards."""
        return self.clear and self.after > self.before


def paired_change(before: Sequence[float], after: Sequence[float], seed: int) -> Change:
    """Compare the same cases in the same order; without any, all is NaN and nothing clear."""
    pairs = list(zip(before, after, strict=True))
    binary = all(value in (0, 1) for pair in pairs for value in pair)
    p = mcnemar([(a == 1, b == 1) for a, b in pairs]) if binary else None
    return Change(mean(before), mean(after), paired_difference(before, after, seed), p)


def clustered_mean(clusters: Sequence[Sequence[float]], seed: int) -> Interval:
    """Mean of all values, bootstrap over whole clusters; n counts clusters.

    For a prompt that several runs answered: its values are no independent cases, so they are drawn
    together or not at all. Clusters weigh by their size.
    """

    def whole(drawn: Sequence[Sequence[float]]) -> float:
        return sum(map(sum, drawn)) / sum(map(len, drawn))

    return bootstrap([cluster for cluster in clusters if cluster], whole, seed)


def _between(value: float, drawn: Sequence[float], n: int) -> Interval:
    """The expanded 95 % percentiles of sorted draws."""
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _t95(n - 1)) if n > 1 else 0.0
    last = len(drawn) - 1
    skip = round(tail * len(drawn))
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
