"""Scores of a checkpoint, one file a task; ``scorecard`` is where their results lie."""

from spar_lite.evaluation.alarms import alarms
from spar_lite.evaluation.heldout import (
    HELDOUT_POINTS,
    HeldoutResult,
    answer_heldout,
    paired_difference,
    review_heldout,
    summarise,
)
from spar_lite.evaluation.scorecard import Scorecard, points, scorecards

__all__ = [
    "HELDOUT_POINTS",
    "HeldoutResult",
    "Scorecard",
    "alarms",
    "answer_heldout",
    "paired_difference",
    "points",
    "review_heldout",
    "scorecards",
    "summarise",
]
