"""Keeping benchmark prompts out of the training prompts.

A prompt is too close to a benchmark's if the two share 13 words in a row (as GPT-3's report and
later ones counted) or most of their distinct words. Pure functions over texts, but for the reader
of a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spar_lite.errors import RecipeError

GRAM = 13
"""Words in a row that two texts may not share."""

ALIKE = 0.7
"""Share of distinct words (Jaccard) from which two texts count as one."""

_WORD = re.compile(r"[^\W_]+")


@dataclass
class Benchmark:
    """The prompts to keep away from."""

    grams: set[tuple[str, ...]] = field(default_factory=set)
    bags: list[frozenset[str]] = field(default_factory=list)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Benchmark:
        """Index some prompts."""
        found = cls()
        for text in texts:
            words = normalised(text)
            found.grams.update(_grams(words))
            found.bags.append(frozenset(words))
        return found

    def holds(self, text: str) -> bool:
        """Whether a text is too close to any of the prompts."""
        words = normalised(text)
        if any(gram in self.grams for gram in _grams(words)):
            return True
        bag = frozenset(words)
        return any(_jaccard(bag, other) >= ALIKE for other in self.bags)


def read_benchmark(path: Path) -> Benchmark:
    """Read a JSONL whose lines have "prompt" or "text", such as IFEval's input_data.jsonl.

    Raises:
        RecipeError: naming file and line.
    """
    texts = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"prompts.decontaminate: {path} cannot be read ({error}).") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts.append(str(row["prompt"] if "prompt" in row else row["text"]))
        except (ValueError, KeyError, TypeError):
            raise RecipeError(
                f'prompts.decontaminate: {path} line {number}: wanted {{"prompt": "…"}} or '
                f'{{"text": "…"}}, found {line[:80]}'
            ) from None
    return Benchmark.of(texts)


def normalised(text: str) -> list[str]:
    """Words in lower case, without marks."""
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return (tuple(words[n : n + GRAM]) for n in range(len(words) - GRAM + 1))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    if not a or not b or min(len(a), len(b)) < ALIKE * max(len(a), len(b)):
        return 0.0  # it cannot be reached, and counting would take longer
    both = len(a & b)
    return both / (len(a) + len(b) - both)
