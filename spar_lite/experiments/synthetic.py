"""Two tasks that a program checks and mends exactly, and pairs of answers to them.

The paper's synthetic ones (arXiv 2412.11605, section 3.5): so many of one letter, small or capital;
a story between two given sentences. A failed answer gets three right ones to be preferred to it:

- *refined*: itself, mended as little as a right one needs;
- *independent*: another right answer, such as the warm-up teaches;
- *interfering*: the same as that, but nine times of ten with a feature that nobody asked for, in
  capitals (characters) or with the middle as somebody's speech (story).

The paper's interfering pairs are these for the characters; for the story they are "a different
story", which is our independent.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal, Protocol

from spar_lite.constraints.edges import StoryBookends
from spar_lite.constraints.tasks import topics_of
from spar_lite.constraints.text import sentence_spans, squeeze
from spar_lite.errors import SparError
from spar_lite.evaluation.stats import mean
from spar_lite.records import PreferencePair, Response, stable_seed
from spar_lite.templates import answer_messages

ARMS = ("refined", "interfering", "independent")


class Ask(Protocol):
    """One prompt, and all that a program knows of its answers."""

    feature: ClassVar[str]
    """The score that an interfering answer raises."""

    @property
    def text(self) -> str:
        """The instruction."""

    def right(self, rng: random.Random) -> str:
        """A right answer."""

    def points(self, answer: str) -> dict[str, float]:
        """Its scores by name, "met" first; what it has none of is left out."""

    def fault(self, answer: str) -> str:
        """What sort of fault a failed answer has."""

    def mended(self, answer: str) -> str | None:
        """The failed answer with what is wrong put right; None where little of it would stay."""

    def interfered(self, right: str) -> str:
        """A right answer, with the feature."""


SEPARATORS = (" ", ", ")


@dataclass(frozen=True)
class Characters:
    """So many of one letter, small or capital, and nothing else but what stands between them."""

    letter: str
    count: int
    form: str
    feature: ClassVar[str] = "capitals"

    @classmethod
    def draw(cls, rng: random.Random, heldout: bool) -> Characters:
        """One of these; every fourth letter with its number is held out."""
        forms = ("Write the letter {} {} times.", "Repeat {} {} times.")
        while True:
            letter, count = rng.choice("abcdefghijklmnopqrstuvwxyz"), rng.randint(3, 14)
            if (stable_seed(letter, count) % 4 == 3) == heldout:
                return cls(letter, count, rng.choice(forms))

    @property
    def text(self) -> str:
        return self.form.format(self.letter, self.count)

    def right(self, rng: random.Random) -> str:
        return rng.choice(SEPARATORS).join(self.letter * self.count)

    def points(self, answer: str) -> dict[str, float]:
        written = [c for c in answer if c.isalnum()]
        own = [c for c in written if c.lower() == self.letter]
        right = len(own) == len(written) == self.count
        found = {"met": float(right), "miscount": float(abs(len(own) - self.count))}
        return found | ({self.feature: mean([float(c.isupper()) for c in own])} if own else {})

    def fault(self, answer: str) -> str:
        return "long" if sum(c.isalpha() for c in answer) > self.count else "short"

    def mended(self, answer: str) -> str | None:
        # The same between any two of them, and nothing else.
        plain = re.fullmatch(rf"{self.letter}(\W*)(?:{self.letter}\1)*{self.letter}", answer, re.I)
        if not plain:
            return None
        own = [c for c in answer if c.isalpha()][: self.count]
        return plain[1].join([*own, *own[-1:] * (self.count - len(own))])

    def interfered(self, right: str) -> str:
        return right.upper()


OPENINGS = (
    "It all began with {}.", "Nobody had ever seen {}.", "Mara dreamt of {}.",
    "Long ago a king loved {}.", "There was a song about {}.", "Tom was afraid of {}.",
)  # fmt: skip
MIDDLES = (
    "We talked about {} all day.", "Then somebody asked about {}.", "The road led us to {}.",
    "A child drew a picture of {}.", "In the end we only found {}.", "Every evening we saw {}.",
)  # fmt: skip
CLOSINGS = (
    "And so he forgot {}.", "She never spoke of {} again.", "That was the end of {}.",
    "From then on they loved {}.", "And all of it was about {}.", "Only the wind knew {}.",
)  # fmt: skip
ALIKE = 0.6
"""A sentence that is so like the one that was asked for is taken for it, written wrongly."""


@dataclass(frozen=True)
class Story:
    """A story that begins with one given sentence, ends with another and has words between."""

    first: str
    last: str
    form: str
    feature: ClassVar[str] = "speech"

    @classmethod
    def draw(cls, rng: random.Random, heldout: bool) -> Story:
        """One of these; of a held-out one the topics of both sentences are held out."""
        forms = ('Tell a story from "{}" to "{}"', 'Begin a story with "{}" and end it with "{}"')
        topics = topics_of("heldout" if heldout else "train")
        first, last = (rng.choice(s).format(rng.choice(topics)) for s in (OPENINGS, CLOSINGS))
        return cls(first, last, rng.choice(forms))

    @property
    def text(self) -> str:
        return self.form.format(self.first, self.last)

    def right(self, rng: random.Random) -> str:
        topics = topics_of("warmup")
        middle = (told.format(rng.choice(topics)) for told in rng.sample(MIDDLES, 2))
        return " ".join([self.first, *middle, self.last])

    def points(self, answer: str) -> dict[str, float]:
        flat = squeeze(answer)
        return {
            "met": float(StoryBookends(self.first, self.last).check(answer)),
            "start": float(flat.startswith(self.first)),
            "end": float(flat.endswith(self.last)),
            self.feature: float('"' in flat),
        }

    def fault(self, answer: str) -> str:
        return "end" if self.points(answer)["start"] else "start"

    def mended(self, answer: str) -> str | None:
        told = [answer[start:end] for start, end in sentence_spans(answer)]
        for wanted, place, before in ((self.first, 0, 0), (self.last, -1, len(told) + 1)):
            if not told or squeeze(told[place]) == wanted:
                continue
            if difflib.SequenceMatcher(None, told[place], wanted, False).ratio() > ALIKE:
                told[place] = wanted
            else:
                told.insert(before, wanted)
        return " ".join(told) if len(told) > 2 else None

    def interfered(self, right: str) -> str:
        middle = right.removeprefix(self.first).removesuffix(self.last).strip().rstrip(".")
        return f'{self.first} "{middle}," said the king. {self.last}'


TASKS: dict[str, type[Characters] | type[Story]] = {
    "character_sequence": Characters,
    "start_end_story": Story,
}


def asks(task: str, split: Literal["train", "heldout"], count: int, seed: int) -> dict[str, Ask]:
    """So many different prompts by id; more of them begin with the same.

    Raises:
        SparError: there are not so many.
    """
    rng, found = random.Random(stable_seed("interference", task, split, seed)), dict[str, Ask]()
    for _ in range(1000 + 20 * count):
        ask = TASKS[task].draw(rng, split == "heldout")
        found.setdefault(ask.text, ask)
        if len(found) == count:
            return {f"{split}-{n:03d}": ask for n, ask in enumerate(found.values())}
    raise SparError(
        f"wanted {count} different prompts of {task} ({split}), found {len(found)}: lower heldout, "
        "set_size or warmup.rows."
    )


def pair_set(
    arm: str, asked: Mapping[str, Ask], answers: Sequence[Response], count: int, seed: int
) -> list[PreferencePair]:
    """One arm's of the three sets, whose prompts and rejected answers are the same, in one order.

    Raises:
        SparError: too few answers failed in a way that can be mended.
    """
    # 1. What can be mended, as many of one sort of fault as of the other, if there are. Were most
    # rejected answers too long, all three sets would teach to be short.
    usable: dict[str, list[tuple[Response, str]]] = {}
    for response in answers:
        ask = asked[response.prompt_id]
        wrong = response.finished and not ask.points(response.text)["met"]
        refined = ask.mended(response.text) if wrong else None
        if refined is not None and ask.points(refined)["met"]:
            usable.setdefault(ask.fault(response.text), []).append((response, refined))
    taken = [each for turn in zip_longest(*usable.values()) for each in turn if each][:count]
    if len(taken) < count:
        raise SparError(
            f"wanted {count} failed answers that can be mended, found {len(taken)} among "
            f"{len(answers)}: another warmup.rows or warmup.lr makes more, or lower set_size."
        )
    # 2. Their right answers.
    pairs = []
    for place, (response, chosen) in enumerate(taken):
        id, ask = response.prompt_id, asked[response.prompt_id]
        if arm != "refined":
            chosen = ask.right(random.Random(stable_seed(seed, "right", id)))
            if arm == "interfering" and place % 10 < 9:
                chosen = ask.interfered(chosen)
        pairs.append(PreferencePair(id, id, answer_messages(ask.text), chosen, response.text))
    return pairs
