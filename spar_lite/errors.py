"""The errors a user may meet.

Each one is a sentence that says what was wanted, what was found, and what to do next. The CLI shows
the sentence and exits with 2; nothing here knows about exit codes, terminals or files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparError(Exception):
    """Base of every error meant for the user's eyes; never shown with a traceback."""


class RecipeError(SparError):
    """A recipe that cannot be read or asks for something impossible."""


class StoreError(SparError):
    """Files on disk that do not fit together: another recipe's records, a damaged line."""


class ModelError(SparError):
    """A model, tokenizer or adapter that cannot be loaded or used."""


class TrainingError(SparError):
    """Training that did not do what it promises, or had nothing to train on."""


class EngineError(SparError):
    """Generation that failed and could not be saved by a slower path."""


def one_line(error: object, most: int = 200) -> str:
    """An error's words, or any text, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f' Did you mean "{near[0]}"?' if near else ""
