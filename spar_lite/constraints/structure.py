"""The constraint that the whole answer is one JSON object."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from .base import Constraint, require
from .text import head, listed, quote, sentences, squeeze, toss
from .values import VALUES, Values


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def read_object(text: str) -> dict[str, object] | None:
    """The object, or None where the text is anything else."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _written(value: dict[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class JsonObject(Constraint):
    """The whole answer is a JSON object with exactly these keys, in any order; no fences."""

    keys: tuple[str, ...]
    kind = "json_object"
    claims = frozenset({"start", "end", "layout", "length"})
    case_bound = True
    roomy = True
    named = "Is a JSON object with the {_named}"
    asked = (
        "Answer with a JSON object with the {_named}.",
        "Your whole answer must be a JSON object with exactly the {_named}.",
        "Reply in JSON only, using the {_named}.",
    )

    def __post_init__(self) -> None:
        require(len(self.keys) >= 1, f"{self.kind}: keys must not be empty")
        require(len(set(self.keys)) == len(self.keys), f"{self.kind}: a key is given twice")
        for key in self.keys:
            fine = bool(key.strip()) and '"' not in key and key == squeeze(key)
            require(fine, f"{self.kind}: a key needs a name without quotes, found {key!r}")

    @property
    def _named(self) -> str:
        return f"{'key' if len(self.keys) == 1 else 'keys'} {listed(self.keys)}"

    @classmethod
    def sample(cls, rng: random.Random, values: Values = VALUES) -> "JsonObject":
        return cls(tuple(rng.sample(values.keys, rng.randint(1, 2))))

    def required_text(self) -> str:
        return " ".join(self.keys)

    def _passes(self, text: str) -> bool:
        found = read_object(text)
        return found is not None and found.keys() == set(self.keys)

    def _evidence(self, text: str) -> str:
        found = read_object(text)
        if found is None and not text.startswith("{"):
            return f"Its JSON keys: none, as it begins with {quote(head(text, 3))}."
        if found is None:
            return f"Its JSON keys: unreadable, as it ends with {quote(text[-12:])}."
        return f"Its JSON keys: {', '.join(quote(name, 20) for name in list(found)[:4]) or 'none'}."

    def _mends(self, text: str) -> Iterator[str]:
        bare = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
        yield bare
        yield f"{bare}}}"
        found = read_object(bare)
        if found is not None:
            yield _written({key: found[key] for key in found if key in self.keys})
            # As many keys as wanted, some under another name: the values keep their order.
            if len(found) == len(self.keys):
                free = iter([key for key in self.keys if key not in found])
                renamed = [name if name in self.keys else next(free) for name in found]
                yield _written(dict(zip(renamed, found.values(), strict=True)))
        elif not bare.startswith(("{", "[")):
            yield from self._packed(sentences(bare))

    def _packed(self, found: list[str]) -> Iterator[str]:
        """The answer's sentences as the values, the last key taking the rest."""
        last = len(self.keys) - 1
        if len(found) > last:
            values = [*found[:last], " ".join(found[last:])]
            yield _written(dict(zip(self.keys, values, strict=True)))

    def _spoils(self, text: str) -> Iterator[str]:
        found = read_object(text) or {}
        kept = list(found)[:-1]
        if kept and toss(text, 2):
            yield _written({key: found[key] for key in kept})
        plain = " ".join(str(value) for value in found.values())
        yield (text[:-1], plain, f"Here it is: {text}")[toss(text, 3)]
        yield text[:-1]
