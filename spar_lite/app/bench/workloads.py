"""What a SPaR iteration asks of an engine, with scripted lengths.

Random-weight or untrained models would stop anywhere; here every reply runs to a length drawn
beforehand, the same for every engine that is compared.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spar_lite.engines.base import Engine, Request, Sampling
from spar_lite.records import Message, Role, stable_seed

WORDS = tuple("abcdefghijklmnopqrstuvwxyz")

SAMPLING = Sampling(temperature=0.7)


@dataclass(frozen=True)
class Sizes:
    """How large the workloads are; lengths in tokens, both ends included.

    ``prompt``: of a sampled answer's prompt; ``long_prompt``: of a judgement's or refinement's.
    ``reply``: of answers and refinements; ``vote``: of judgements.
    """

    trees: int
    branch: int = 2
    votes: int = 2
    prompt: tuple[int, int] = (30, 60)
    long_prompt: tuple[int, int] = (100, 200)
    reply: tuple[int, int] = (8, 160)
    vote: tuple[int, int] = (8, 64)


@dataclass(frozen=True)
class Group:
    """Requests that share a prompt; ``then``: what each reply leads to, group by group."""

    requests: tuple[Request, ...]
    then: tuple[Group, ...] = ()


class Writer:
    """Makes texts of a wanted length in tokens."""

    def __init__(self, encode: Callable[[Sequence[Message]], list[int]], seed: int) -> None:
        self.encode = encode
        self.seed = seed

    def chat(self, id: str, span: tuple[int, int]) -> tuple[Message, ...]:
        """One user turn whose whole prompt has about as many tokens as ``span`` says."""
        rng = random.Random(stable_seed(self.seed, id))
        wanted = rng.randint(*span)
        text = id
        while len(self.encode((Message("user", text),))) < wanted:
            text += " " + rng.choice(WORDS)
        return (Message("user", text),)

    def group(
        self, id: str, prompt: tuple[int, int], reply: tuple[int, int], count: int
    ) -> tuple[Request, ...]:
        """``count`` requests with one prompt, each with a length of its own."""
        chat = self.chat(id, prompt)
        lengths = random.Random(stable_seed(self.seed, id, "lengths"))
        return tuple(
            Request(f"{id}/{n}", chat, lengths.randint(*reply), SAMPLING) for n in range(count)
        )


def sample_groups(writer: Writer, sizes: Sizes) -> list[Group]:
    """Short prompts, answers of mixed length."""
    return [
        Group(writer.group(f"sample-{n}", sizes.prompt, sizes.reply, sizes.branch))
        for n in range(sizes.trees)
    ]


def judge_groups(writer: Writer, sizes: Sizes) -> list[Group]:
    """Longer prompts, votes of mixed length."""
    return [
        Group(writer.group(f"judge-{n}", sizes.long_prompt, sizes.vote, sizes.votes))
        for n in range(sizes.trees)
    ]


def search_groups(writer: Writer, sizes: Sizes) -> list[Group]:
    """Trees: the children of a node share a prompt, and so do the votes on each child."""
    groups = []
    for n in range(sizes.trees):
        children = writer.group(f"tree-{n}", sizes.long_prompt, sizes.reply, sizes.branch)
        votes = tuple(
            Group(writer.group(f"{child.id}/v", sizes.long_prompt, sizes.vote, sizes.votes))
            for child in children
        )
        groups.append(Group(children, votes))
    return groups


def flat(groups: Sequence[Group]) -> list[Request]:
    """Every request of some groups, as if none depended on another."""
    return [r for g in groups for r in (*g.requests, *flat(g.then))]


async def work(engine: Engine, role: Role, groups: Sequence[Group]) -> None:
    """Ask for everything: groups at once, what depends on a reply as soon as it is there."""

    async def ask(request: Request, then: Group | None) -> None:
        await engine.generate(role, [request])
        if then:
            await work(engine, role, [then])

    await asyncio.gather(
        *(
            ask(request, group.then[n] if group.then else None)
            for group in groups
            for n, request in enumerate(group.requests)
        )
    )
