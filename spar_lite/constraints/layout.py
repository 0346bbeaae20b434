"""Constraints on the layout: paragraphs and bullets.

What counts as one is defined in `text.py` and below.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint
from .text import FILLERS, LIST_MARK, enumerated, paragraphs, sentences, toss
from .values import VALUES, Values

_BULLET = re.compile(r"^- (?=\S)", re.MULTILINE)


@dataclass(frozen=True)
class ParagraphCount(Constraint):
    """Exactly `count` blocks of text with a blank line between them."""

    count: int
    kind = "paragraph_count"
    claims = frozenset({"layout"})
    roomy = True
    named = "Has exactly {count:paragraph}"
    asked = (
        "Write exactly {count:paragraph} with a blank line between paragraphs.",
        "Your answer must have exactly {count:paragraph}, separated by blank lines.",
        "Use blank lines to make exactly {count:paragraph}.",
    )

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "ParagraphCount":
        return cls(rng.randint(2, 3))

    def least_words(self) -> int:
        return 3 * self.count

    def _passes(self, text: str) -> bool:
        return len(paragraphs(text)) == self.count

    def _evidence(self, text: str) -> str:
        return f"Its paragraphs: {enumerated(paragraphs(text), 'paragraph')}."

    def _mends(self, text: str) -> Iterator[str]:
        blocks, found = paragraphs(text), sentences(text)
        if len(blocks) > self.count:
            joined = [*blocks[: self.count - 1], " ".join(blocks[self.count - 1 :])]
            yield "\n\n".join(joined)
        elif len(found) >= self.count:
            yield "\n\n".join([*found[: self.count - 1], " ".join(found[self.count - 1 :])])

    def _spoils(self, text: str) -> Iterator[str]:
        blocks, found = paragraphs(text), sentences(text)
        if len(blocks) > 1:
            yield "\n\n".join([*blocks[:-2], f"{blocks[-2]} {blocks[-1]}"])
        if len(found) > 1:
            yield "\n\n".join([found[0], " ".join(found[1:])])


@dataclass(frozen=True)
class BulletCount(Constraint):
    """Exactly `count` lines that begin with "- "; other lines are allowed."""

    count: int
    kind = "bullet_count"
    claims = frozenset({"start", "layout"})
    roomy = True
    named = "Has exactly {count:bullet}"
    asked = (
        'Write exactly {count:bullet point}, each on a line that starts with "- ".',
        'Answer as a list of {count:bullet point} with "- " in front.',
        'Use exactly {count:line} beginning with "- ".',
    )

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "BulletCount":
        return cls(rng.randint(2, 4))

    def least_words(self) -> int:
        return 2 * self.count

    def _passes(self, text: str) -> bool:
        return len(_BULLET.findall(text)) == self.count

    def _evidence(self, text: str) -> str:
        found = [line[2:] for line in text.split("\n") if _BULLET.match(line)]
        return f"Its bullets: {enumerated(found, 'bullet')}."

    def _mends(self, text: str) -> Iterator[str]:
        starts = [match.start() for match in _BULLET.finditer(text)]
        if len(starts) > self.count:
            yield text[: starts[self.count]].rstrip()
        if not starts:
            yield LIST_MARK.sub("- ", text)
            found = sentences(text)
            if len(found) >= self.count:
                items = [*found[: self.count - 1], " ".join(found[self.count - 1 :])]
                yield "\n".join(f"- {item}" for item in items)

    def _spoils(self, text: str) -> Iterator[str]:
        starts = [match.start() for match in _BULLET.finditer(text)]
        if self.count > 1 and toss(text, 2):
            yield text[: starts[-1]].rstrip()
        else:
            yield f"{text}\n- {FILLERS[toss(text, len(FILLERS))]}"
        yield _BULLET.sub("", text)
