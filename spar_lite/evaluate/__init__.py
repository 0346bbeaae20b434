"""Scores of a checkpoint, each a file of its own: held-out prompts with checkable constraints."""

from spar_lite.evaluate.heldout import (
    HeldoutResult,
    answer_heldout,
    paired_difference,
    review_heldout,
    share,
    summarise,
)

__all__ = [
    "HeldoutResult",
    "answer_heldout",
    "paired_difference",
    "review_heldout",
    "share",
    "summarise",
]
