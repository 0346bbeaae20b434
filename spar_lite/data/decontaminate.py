"""Keeping benchmark prompts out of the training prompts.

A prompt is too close to a benchmark's if the two share 13 words in a row (as GPT-3's report and
later ones counted) or most of their distinct words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from spar_lite.data.files import file_rows
from spar_lite.errors import RecipeError

GRAM = 13
"""Words in a row that two texts may not share."""

ALIKE = 0.7
"""Share of distinct words (Jaccard) from which two texts count as one."""


class Benchmark:
    """The prompts to keep away from."""

    def __init__(self, texts: Iterable[str]) -> None:
        words = [_words(text) for text in texts]
        self._grams = {gram for text in words for gram in _grams(text)}
        self._bags = [set(text) for text in words]

    def holds(self, text: str) -> bool:
        """Whether a text is too close to any of the prompts."""
        words = _words(text)
        if not self._grams.isdisjoint(_grams(words)):
            return True
        bag = set(words)
        for other in self._bags:
            # What cannot reach the share by its size is not counted: that would take longer.
            if min(len(bag), len(other)) >= ALIKE * max(len(bag), len(other), 1):
                both = len(bag & other)
                if both / (len(bag) + len(other) - both) >= ALIKE:
                    return True
        return False


def read_benchmark(path: Path) -> Benchmark:
    """Read a file whose rows have "prompt" or "text", such as IFEval's input_data.jsonl.

    Raises:
        RecipeError: naming file and row.
    """
    texts = []
    for where, row in file_rows(path, "prompts.decontaminate"):
        text = row.get("prompt", row.get("text"))
        if not isinstance(text, str):
            raise RecipeError(
                f'{where}: wanted {{"prompt": "…"}} or {{"text": "…"}}, found {str(row)[:80]}'
            )
        texts.append(text)
    return Benchmark(texts)


def _words(text: str) -> list[str]:
    """In lower case, without marks."""
    return re.findall(r"[^\W_]+", text.lower())


def _grams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[n : n + GRAM]) for n in range(len(words) - GRAM + 1))
