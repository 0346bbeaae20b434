"""Scores of a checkpoint, one file a task; ``scorecard`` is where their results lie."""

from spar_lite.evaluate.heldout import (
    HeldoutResult,
    answer_heldout,
    paired_difference,
    review_heldout,
    share,
    summarise,
)
from spar_lite.evaluate.scorecard import Scorecard, scorecards

__all__ = [
    "HeldoutResult",
    "Scorecard",
    "answer_heldout",
    "paired_difference",
    "review_heldout",
    "scorecards",
    "share",
    "summarise",
]
