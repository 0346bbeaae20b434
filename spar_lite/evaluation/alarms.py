"""What got worse between two checkpoints, in words, so that no table is read for its best row.

Both answered the same held-out prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spar_lite.evaluation.answer import paired_points
from spar_lite.evaluation.heldout import HELDOUT_POINTS, HeldoutResult
from spar_lite.evaluation.stats import Change, mean, paired_change


@dataclass(frozen=True)
class Watch:
    """A score to watch: what is said of it, and how much of a change is one.

    ``rises``: it gets worse by rising. ``least``: a smaller share of what it was goes unsaid.
    ``digits`` None: a share, shown in percent.
    """

    said: str
    words: str
    rises: bool = False
    least: float = 0.0
    digits: int | None = None

    def worse(self, before: float, after: float) -> bool:
        """Whether the score moved the wrong way, by more than is left unsaid; NaN never did."""
        return after > before if self.rises else before - after > self.least * abs(before)


ANSWERS, REFINER = "the answers got worse", "the refiner got worse"

WATCHED = {
    "answers_that_count": Watch(ANSWERS, "answers that count"),
    "on_topic": Watch(ANSWERS, "on topic"),
    "says_it_twice": Watch(ANSWERS, "said twice", rises=True),
    "empty": Watch(ANSWERS, "empty", rises=True),
    "cut_off": Watch(ANSWERS, "cut off", rises=True),
    "answer_words": Watch(ANSWERS, "words per answer", least=1 / 3, digits=1),
    "base_logp": Watch("the answers moved away from the base", "log p per token", digits=2),
    "judge_agreement": Watch(REFINER, "votes that agree with the program"),
    "truly_mended": Watch(REFINER, "failed answers truly mended"),
}


def alarms(
    before: Sequence[HeldoutResult], after: Sequence[HeldoutResult], seed: int = 0
) -> list[str]:
    """A sentence for every score that fell (or rose, where that is worse) clear of its interval.

    Prompts that only one side has, or that say nothing there, are left out; n says how many are
    compared. The first sentence, if any, is the worst: more constraints met by no more answers.
    """
    found = []
    met, count = (
        paired_change(*paired_points(before, after, HELDOUT_POINTS[name]), seed)
        for name in ("constraints_met", "answers_that_count")
    )
    if met.rose and not count.rose:
        found.append(
            f"the score was won without answering: constraints met {shown(met)}, "
            f"but answers that count {shown(count)}"
        )
    for name, watch in WATCHED.items():
        values = paired_points(before, after, HELDOUT_POINTS[name])
        if watch.worse(*map(mean, values)):  # most did not, and an interval takes its time
            change = paired_change(*values, seed)
            if change.clear:
                found.append(f"{watch.said}: {watch.words} {shown(change, watch.digits)}")
    return found


def shown(change: Change, digits: int | None = None) -> str:
    """Like "3.0 → 33.0 % (+30.0 [+21.0, +39.0], paired, n=100)"; percent without ``digits``."""
    scale, unit, places = (100, " %", 1) if digits is None else (1, "", digits)
    before, after = scale * change.before, scale * change.after
    d = change.difference
    by, low, high = (scale * value for value in (d.value, d.low, d.high))
    return (
        f"{before:.{places}f} → {after:.{places}f}{unit} ({by:+.{places}f} "
        f"[{low:+.{places}f}, {high:+.{places}f}], paired, n={d.n})"
    )
