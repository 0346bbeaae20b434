"""Scores with their uncertainty: n and a 95 % interval, always.

Knows numbers only; nothing of prompts, models or files.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its sample size and 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


def wilson(hits: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a proportion (E. B. Wilson, 1927); n = 0 gives 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    p = hits / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = 2000) -> Interval:
    """Percentile bootstrap 95 % interval of a mean, resampling the values."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    return Interval(sum(values) / n, means[int(0.025 * draws)], means[int(0.975 * draws) - 1], n)


def distinguishable(difference: Interval) -> bool:
    """Whether a difference's interval keeps clear of zero."""
    return difference.low > 0 or difference.high < 0
