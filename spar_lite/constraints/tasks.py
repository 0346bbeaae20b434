"""Built-in tasks: a plain request for a short answer plus constraints that go together.

`compose` promises the same tasks for the same seed, no text twice within a split, and topics that
no two splits share. Asking for more tasks with the same seed only adds to the end.
"""

import hashlib
import random
from collections.abc import Sequence

from spar_lite.records import Prompt

from .base import Constraint
from .edges import StoryBookends
from .kinds import conflict, kind_named, suggest
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


def topics_of(split: str) -> tuple[str, ...]:
    """The topics of one split; ValueError for an unknown one."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}. {suggest(split, SPLITS)}")
    return tuple(topic for index, topic in enumerate(TOPICS) if index % 4 in SPLITS[split])


def compose(
    seed: int,
    count: int,
    *,
    kinds: Sequence[str],
    per_prompt: tuple[int, int] = (1, 2),
    split: str = "train",
    start: int = 0,
) -> list[Prompt]:
    """Prompts number `start` to `start + count - 1` of a split; ValueError if there are too few.

    Of "heldout" the phrases and words are its own, too.
    """
    topics, values = topics_of(split), VALUES.part(heldout=split == "heldout")
    classes = [kind_named(kind) for kind in kinds]
    low, high = per_prompt
    if not classes or not 1 <= low <= high or count < 0 or start < 0:
        raise ValueError(
            "compose wants at least one kind, 1 <= per_prompt[0] <= per_prompt[1], count >= 0 "
            f"and start >= 0; found {list(kinds)}, {per_prompt}, {count} and {start}"
        )
    # From number 0 on, so that two calls with different starts share no text.
    found: dict[str, Prompt] = {}
    for index in range(start + count):
        for attempt in range(_ATTEMPTS):
            rng = random.Random(_digest(seed, split, index, attempt))
            topic = rng.choice(topics)
            rules = _draw(rng, rng.randint(low, high), classes, topic, split, values)
            text = _text(rng, topic, rules)
            if len(rules) >= low and text not in found:
                break
        else:
            raise ValueError(
                f"wanted task {index + 1} of split {split!r} with {low} to {high} of the kinds "
                f"{', '.join(kinds)}, found no new one in {_ATTEMPTS} tries: allow more kinds, "
                "fewer constraints a prompt, or ask for fewer tasks"
            )
        asked = tuple(rule.to_json() for rule in rules)
        topic = "" if any(rule.standalone for rule in rules) else topic
        found[text] = Prompt(f"{split}-{index:04d}", text, asked, complete=True, topic=topic)
    return list(found.values())[start:]


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
    found = _draw(rng, rng.randint(*per_prompt), classes, text, "train", VALUES)
    return " ".join([text, *(rng.choice(rule.phrasings()) for rule in found)]), found


def _digest(*coordinates: object) -> int:
    name = "/".join(map(str, coordinates)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _draw(
    rng: random.Random,
    wanted: int,
    classes: Sequence[type[Constraint]],
    topic: str,
    split: str,
    values: Values,
) -> tuple[Constraint, ...]:
    """Up to `wanted` constraints without conflict; fewer where none of 30 draws fits."""
    # A word that the topic gives away asks for nothing, or for the impossible.
    given = {word.lower() for word in words(topic)}
    chosen: list[Constraint] = []
    for _ in range(30):
        if len(chosen) == wanted:
            break
        rule = rng.choice(classes).sample(rng, values)
        fits = getattr(rule, "word", None) not in given
        if rule.standalone:
            # A task without a topic is held apart by its constraint's own fields.
            fits = wanted == 1 and _digest(*rule.to_json().values()) % 4 in SPLITS[split]
        if fits and not any(conflict(rule, other) for other in chosen):
            chosen.append(rule)
    return tuple(chosen)


def _text(rng: random.Random, topic: str, rules: Sequence[Constraint]) -> str:
    asked = [rng.choice(rule.phrasings()) for rule in rules]
    if any(rule.standalone for rule in rules):
        return " ".join(asked)
    forms: Sequence[str] = OPEN_FORMS if any(rule.roomy for rule in rules) else FORMS
    if any(isinstance(rule, StoryBookends) for rule in rules):
        forms = STORY_FORMS
    return " ".join([rng.choice(forms).format(topic=topic), *asked])
