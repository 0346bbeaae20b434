"""Built-in tasks: a plain request for a short answer plus constraints that go together.

`compose` promises the same tasks for the same seed, no text twice within a split, and topics that
no two splits share. Asking for more tasks with the same seed only adds to the end.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Constraint, kind_named, suggest
from .several import conflict
from .text import words
from .values import VALUES, Values

# Which quarter of the topics a split owns.
SPLITS = {"warmup": (0,), "train": (1, 2), "heldout": (3,)}
_ATTEMPTS = 300

# All of them ask for little, so that a right answer is one that ends soon.
OPEN_FORMS = (
    "Write a little about {topic}.",
    "Briefly describe {topic}.",
    "Tell me in short about {topic}.",
    "Say something kind about {topic}.",
    "Share one thought about {topic}.",
    "Explain in short why people like {topic}.",
    "What comes to mind first when you think of {topic}?",
    "Tell a child a little about {topic}.",
)
BRIEF_FORMS = (
    "Write one sentence about {topic}.",
    "Describe {topic} in one or two sentences.",
    "Give one fact about {topic}.",
    "Write a short sentence about {topic}.",
    "Say in one sentence what is good about {topic}.",
)
FORMS = OPEN_FORMS + BRIEF_FORMS
STORY_FORMS = (
    "Write a short story about {topic}.",
    "Tell a very short story about {topic}.",
    "Make up a little story about {topic}.",
    "Tell me a tale of a few sentences about {topic}.",
)

TOPICS = (
    "the sea", "a lost key", "tea", "an old bicycle", "the moon", "a rainy day", "coffee",
    "a small town", "cats", "a birthday cake", "snow", "the first day of school", "trees",
    "a train ride", "apples", "a quiet library", "dogs", "a broken cup", "the desert",
    "a long walk", "birds", "a wooden chair", "soup", "a night sky", "the beach", "shoes",
    "a good book", "horses", "a paper boat", "cheese", "a busy airport", "the sun", "bees",
    "a warm bath", "chess", "a red umbrella", "pizza", "a new neighbor", "fishing", "stars",
    "a farm", "painting", "a hot summer", "rice", "a swimming pool", "trains", "a lighthouse",
    "gardening", "a black coat", "the violin", "elephants", "a school bus", "chocolate",
    "a hat", "running", "an empty house", "butterflies", "a wedding", "sleep", "a museum",
    "rabbits", "a camera", "dancing", "a picnic", "lemons", "a tall tower", "rivers",
    "an airplane", "breakfast", "a lost dog", "the guitar", "a family dinner", "frogs",
    "a wool sweater", "baking", "a city park", "whales", "a wall clock", "laughter",
    "a ferry", "potatoes", "a kind doctor", "winter evenings", "a board game", "spiders",
    "a postcard", "singing", "a mountain hut", "oranges", "a baker", "thunderstorms",
    "a desk lamp", "turtles", "a carpet", "football", "a night train", "mushrooms",
    "a hospital", "the alphabet", "a toy robot", "penguins", "a balcony", "swimming",
    "a big storm", "onions", "a sewing machine", "foxes", "a hammock", "ice cream",
    "a crowded bus", "the wind", "a school play", "owls", "a glass of water", "cycling",
    "a cellar", "strawberries", "a grandmother", "the radio", "a haircut", "bears",
    "a ladder", "camping", "a fountain", "salt", "a barber", "old letters", "a suitcase",
    "sailing", "a foggy road", "carrots", "a jigsaw puzzle", "ducks", "a flower shop",
    "the piano", "a phone call", "grapes", "a wooden spoon", "hiking", "an attic",
    "sheep", "a street musician", "the theater", "a rocking chair", "dolphins",
    "a night market", "yoga", "a snowman", "tomatoes", "a fire station", "silence",
    "a shopping list", "wolves", "a window seat", "pancakes", "a railway station", "kites",
    "a first job", "the rainbow", "a garden gnome",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One request with what a good answer must meet."""

    id: str
    text: str
    constraints: tuple[Constraint, ...]
    topic: str = ""  # "" where the constraint is the whole task


def topics_of(split: str) -> tuple[str, ...]:
    return tuple(t for index, t in enumerate(TOPICS) if index % 4 in _quarters(split))


def compose(
    seed: int,
    count: int,
    *,
    kinds: Sequence[str],
    per_prompt: tuple[int, int] = (1, 2),
    split: str = "train",
    start: int = 0,
    values: Values = VALUES,
) -> list[Task]:
    """Tasks number `start` to `start + count - 1` of a split.

    `values` takes `VALUES.part("heldout")` where phrases and words must be unseen too.
    """
    _quarters(split)
    classes = [kind_named(kind) for kind in kinds]
    low, high = per_prompt
    if not classes or not 1 <= low <= high or count < 0 or start < 0:
        raise ValueError(
            "compose wants at least one kind, 1 <= per_prompt[0] <= per_prompt[1], count >= 0 "
            f"and start >= 0; found {list(kinds)}, {per_prompt}, {count} and {start}"
        )
    # From number 0 on, so that two calls with different starts share no text.
    seen: set[str] = set()
    tasks = [
        _task(seed, split, index, classes, per_prompt, values, seen)
        for index in range(start + count)
    ]
    return tasks[start:]


def enrich(
    seed: int, id: str, text: str, kinds: Sequence[str], per_prompt: tuple[int, int]
) -> tuple[str, tuple[Constraint, ...]]:
    """A plain request with constraints that go together added to it, drawn by seed and id.

    None is added that the request's own words give away, and none that is a whole task by itself.
    """
    rng = random.Random(_digest(seed, "enrich", id))
    classes = [cls for cls in map(kind_named, kinds) if not cls.standalone]
    if not classes:
        raise ValueError("enrich wants a constraint kind that goes with a request")
    wanted = rng.randint(*per_prompt)
    found = _draw(rng, wanted, classes, text, "train", VALUES)
    return " ".join([text, *(rng.choice(rule.phrasings()) for rule in found)]), found


def _quarters(split: str) -> tuple[int, ...]:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}. {suggest(split, SPLITS)}")
    return SPLITS[split]


def _digest(*coordinates: object) -> int:
    name = "/".join(map(str, coordinates)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _task(
    seed: int,
    split: str,
    index: int,
    classes: Sequence[type[Constraint]],
    per_prompt: tuple[int, int],
    values: Values,
    seen: set[str],
) -> Task:
    for attempt in range(_ATTEMPTS):
        rng = random.Random(_digest(seed, split, index, attempt))
        topic = rng.choice(topics_of(split))
        constraints = _draw(rng, rng.randint(*per_prompt), classes, topic, split, values)
        text = _text(rng, topic, constraints)
        if len(constraints) >= per_prompt[0] and text not in seen:
            seen.add(text)
            whole = any(constraint.standalone for constraint in constraints)
            return Task(f"{split}-{index:04d}", text, constraints, "" if whole else topic)
    names = ", ".join(cls.kind for cls in classes)
    raise ValueError(
        f"wanted task {index + 1} of split {split!r} with {per_prompt[0]} to {per_prompt[1]} "
        f"of the kinds {names}, found no new one in {_ATTEMPTS} tries: allow more kinds, "
        "fewer constraints a prompt, or ask for fewer tasks"
    )


def _draw(
    rng: random.Random,
    wanted: int,
    classes: Sequence[type[Constraint]],
    topic: str,
    split: str,
    values: Values,
) -> tuple[Constraint, ...]:
    """Up to `wanted` constraints without conflict; fewer where none of 30 draws fits."""
    chosen: list[Constraint] = []
    for _ in range(30):
        if len(chosen) == wanted:
            break
        candidate = rng.choice(classes).sample(rng, values)
        if candidate.standalone:
            fits = wanted == 1 and _owned(candidate, split)
        else:
            # A word that the topic gives away asks for nothing, or for the impossible.
            given = {word.lower() for word in words(topic)}
            fits = getattr(candidate, "word", None) not in given
        if fits and not any(conflict(candidate, other) for other in chosen):
            chosen.append(candidate)
    return tuple(chosen)


def _owned(constraint: Constraint, split: str) -> bool:
    """A task without a topic is held apart by its constraint's own fields."""
    return _digest(*constraint.to_json().values()) % 4 in SPLITS[split]


def _text(rng: random.Random, topic: str, constraints: Sequence[Constraint]) -> str:
    asked = [rng.choice(constraint.phrasings()) for constraint in constraints]
    if any(constraint.standalone for constraint in constraints):
        return " ".join(asked)
    if any(constraint.kind == "story_bookends" for constraint in constraints):
        forms: tuple[str, ...] = STORY_FORMS
    elif any(constraint.roomy for constraint in constraints):
        forms = OPEN_FORMS
    else:
        forms = FORMS
    return " ".join([rng.choice(forms).format(topic=topic), *asked])
