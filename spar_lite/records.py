"""The frozen records that flow from stage to stage, and how they become JSON and back.

Ids come from coordinates (prompt id, sample index, node path), never from the order of arrival, so
that a resumed run writes the same ids. Nothing here knows about files, models or the method.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

Role = Literal["actor", "refiner", "base"]
"""Which adapter answers; "base" means with both adapters switched off."""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """An instruction, with what a program can check about its answers.

    ``constraints`` are the JSON forms of ``spar_lite.constraints``. ``complete`` says that they are
    all there is to judge, beside that it is an answer at all; otherwise a judge must still look at
    the rest of the instruction. ``topic``: what the answer must speak of, "" if not known.
    """

    id: str
    text: str
    constraints: tuple[dict[str, Any], ...] = ()
    complete: bool = False
    topic: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a record cost to make, in tokens and calls, summed over its generations."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer; id is ``PROMPT/k``. ``finished`` is False if it was cut off."""

    id: str
    prompt_id: str
    text: str
    finished: bool
    cost: Cost


@dataclasses.dataclass(frozen=True, slots=True)
class Vote:
    """One judge reply. ``verdict`` is None where the reply cannot be read: missing, not a No."""

    text: str
    verdict: bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """The votes on one answer and what follows from them.

    ``value``: fraction of readable votes saying Yes (llm), the program's word (code), or both
    combined (hybrid); None if nothing could be read. ``verdict``: the verdict of record; None for a
    tie or no readable vote, which means "no judgement" and never "failed". ``critique`` is the text
    that the refiner works from, agreeing with the verdict. ``checks`` holds the program's result
    per checkable constraint (empty if there is none).
    """

    id: str
    votes: tuple[Vote, ...]
    value: float | None
    verdict: bool | None
    critique: str | None
    critique_by: Literal["model", "program"] | None
    checks: tuple[bool, ...]
    cost: Cost


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One answer in a search tree.

    ``path`` is "" for the root and dotted child numbers below ("0", "0.2"). ``reply`` is the
    refiner's whole reply that held the refinement; ``failed_replies`` are earlier tries that could
    not be read. A node whose every try failed has ``text`` None and no judgement.
    """

    path: str
    text: str | None
    reply: str | None
    failed_replies: tuple[str, ...]
    judgement: Judgement | None

    @property
    def depth(self) -> int:
        """Number of refinements between the root and this node."""
        return 0 if not self.path else self.path.count(".") + 1


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """A whole search from one failed answer; ``id`` is the prompt's id.

    ``accepted`` is the path of the node above the gate, or None. ``best`` is the path of the node
    of highest value (the root's if nothing better grew). ``stop`` says why the search ended.
    """

    id: str
    prompt_id: str
    response_id: str
    nodes: tuple[Node, ...]
    accepted: str | None
    best: str
    stop: Literal["accepted", "depth", "budget", "no child"]
    cost: Cost

    def node(self, path: str) -> Node:
        """Return the node at ``path``."""
        return next(node for node in self.nodes if node.path == path)

    @property
    def depth(self) -> int:
        """Depth of the deepest node that holds an answer."""
        return max(node.depth for node in self.nodes if node.text is not None)


@dataclasses.dataclass(frozen=True, slots=True)
class PreferencePair:
    """DPO data: ``chosen`` is the accepted refinement of ``rejected``. ``id`` is the tree's.

    ``interferes``: in what the two sides differ beside what was mended ("cut off", "shorter",
    "longer", "rewritten"); a training on such a pair learns that as well. ``cut_off``: the rejected
    answer ran into the token limit, so it has no end token to learn from.
    """

    id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    interferes: tuple[str, ...] = ()
    cut_off: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingExample:
    """SFT data in prompt/completion form: the loss falls on ``completion`` alone.

    ``every_reply``: it falls on the assistant turns inside ``prompt`` as well, so that one chat
    teaches its critique and its refinement for the price of one.

    ``kind`` is one of "answer", "judgement", "refinement" (warm-up), "refinement", "tree critique",
    "answer critique" (rejection sampling) or "passed answer" (beside the preference pairs).
    """

    id: str
    kind: str
    prompt: tuple[Message, ...]
    completion: str
    every_reply: bool = False


T = TypeVar("T")


def to_json(record: Any) -> dict[str, Any]:
    """Turn a record into plain JSON types, nested records included."""
    return dataclasses.asdict(record)


def from_json(kind: type[T], line: str | bytes) -> T:
    """Build a record of ``kind`` from a line of JSON.

    Raises:
        ValueError: the line is not of that shape; one line that says where.
    """
    try:
        reader: TypeAdapter[T] = _reader(cast(Any, kind))
        return reader.validate_json(line, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


@functools.cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def stable_seed(*coordinates: object) -> int:
    """Return a 31-bit seed from coordinates, the same in every process (unlike ``hash``)."""
    text = "\x1f".join(str(part) for part in coordinates)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
