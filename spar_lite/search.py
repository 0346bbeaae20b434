"""Steps 3 and 4: tree search for a refinement of a failed answer (paper, section 2.3.3).

A node is an answer, an edge one refinement. A child is refined from its parent's critique and
judged; its value is the judgement's. BFS and DFS share one ``expand``; each tree is one coroutine,
so trees never wait for one another, and the engine batches whatever is in flight.

Greedy: the best ``keep`` children go deeper; equal values keep their order of birth. A child
without a judgement (tie, nothing readable) is recorded but neither accepted nor refined.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from spar_lite.engine import Engine, strip_thinking
from spar_lite.judge import judge_answer
from spar_lite.prompts import parse_refinement, refine_messages
from spar_lite.recipe import Judge, Search
from spar_lite.records import Cost, Judgement, Node, Prompt, Response, Tree
from spar_lite.sample import complete

Stop = Literal["accepted", "depth", "budget", "no child"]


@dataclass(slots=True)
class Grower:
    """One tree in the making: its nodes so far, what may still be spent, what it has cost."""

    engine: Engine
    prompt: Prompt
    id: str
    settings: Search
    judge: Judge
    root: Node
    nodes: list[Node] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    @property
    def left(self) -> int:
        """Refinements that the budget still allows."""
        return self.settings.budget - (len(self.nodes) - 1)

    async def expand(self, parents: Sequence[Node]) -> list[Node]:
        """Refine each parent ``branch`` times, all at once, as far as the budget goes.

        Returns the judged children, best first.
        """
        places = [(p, n) for p in parents for n in range(self.settings.branch)][: self.left]
        children = await asyncio.gather(*(self._child(parent, n) for parent, n in places))
        self.nodes.extend(children)
        return sorted(
            (c for c in children if c.judgement and c.judgement.verdict is not None),
            key=self.rank,
            reverse=True,
        )

    def rank(self, node: Node) -> tuple[float, float]:
        """Sort key: the value; where a program judges too, then the share of constraints met.

        In hybrid and code mode every fail has value 0, so the share parts what would be ties. In
        llm mode the paper's rule stands alone.
        """
        checks = node.judgement.checks if node.judgement and self.judge.mode != "llm" else ()
        return node_value(node), sum(checks) / len(checks) if checks else 0.0

    def accepts(self, ranked: Sequence[Node]) -> bool:
        """Whether the best of some ranked children is strictly above the gate."""
        return bool(ranked) and node_value(ranked[0]) > self.settings.gate

    async def _child(self, parent: Node, number: int) -> Node:
        """Ask for one refinement, again while it cannot be read, and judge it."""
        path = f"{parent.path}.{number}" if parent.path else str(number)
        assert parent.text is not None and parent.judgement and parent.judgement.critique
        messages = refine_messages(self.prompt.text, parent.text, parent.judgement.critique)
        failed: list[str] = []
        for attempt in range(self.settings.tries):
            id = f"{self.id}/{path}/r{attempt}"
            done = await complete(self.engine, "refiner", id, messages, self.settings)
            self.cost += done.cost
            reply = strip_thinking(done.text)
            text = parse_refinement(reply)
            if text is not None:
                judgement = await judge_answer(
                    self.engine, self.prompt, text, f"{self.id}/{path}", self.judge
                )
                self.cost += judgement.cost
                return Node(path, text, reply, tuple(failed), judgement)
            failed.append(reply)
        return Node(path, None, None, tuple(failed), None)


async def search_tree(
    engine: Engine,
    prompt: Prompt,
    negative: Response,
    judgement: Judgement,
    settings: Search,
    judge: Judge,
) -> Tree:
    """Search from one failed answer; every node, vote and reply is kept in the tree."""
    root = Node("", negative.text, None, (), judgement)
    grower = Grower(engine, prompt, prompt.id, settings, judge, root, nodes=[root])
    walk = breadth_first if settings.strategy == "bfs" else depth_first
    stop, accepted = await walk(grower)
    nodes = tuple(sorted(grower.nodes, key=_order))
    best = accepted or max((n for n in nodes if n.judgement), key=grower.rank)
    path = accepted.path if accepted else None
    return Tree(prompt.id, prompt.id, negative.id, nodes, path, best.path, stop, grower.cost)


async def breadth_first(grower: Grower) -> tuple[Stop, Node | None]:
    """Grow level by level; the gate is tested after a whole level."""
    frontier = [grower.root]
    for _ in range(grower.settings.depth):
        if grower.left <= 0:
            return "budget", None
        ranked = await grower.expand(frontier)
        if grower.accepts(ranked):
            return "accepted", ranked[0]
        if not ranked:
            return "no child", None
        frontier = ranked[: grower.settings.keep]
    return "depth", None


async def depth_first(grower: Grower, node: Node | None = None) -> tuple[Stop, Node | None]:
    """Expand a node, test the gate, then go down its best children one after another.

    ``stop`` is the reason of the last branch walked, "accepted" and "budget" ending the search.
    """
    node = node or grower.root
    if node.depth >= grower.settings.depth:
        return "depth", None
    if grower.left <= 0:
        return "budget", None
    ranked = await grower.expand([node])
    if grower.accepts(ranked):
        return "accepted", ranked[0]
    stop: Stop = "no child"
    for child in ranked[: grower.settings.keep]:
        stop, accepted = await depth_first(grower, child)
        if stop in ("accepted", "budget"):
            return stop, accepted
    return stop, None


def node_value(node: Node) -> float:
    """A node's value, -1 where it has none: below every real one."""
    value = node.judgement.value if node.judgement else None
    return -1.0 if value is None else value


def _order(node: Node) -> tuple[int, list[int]]:
    return node.depth, [int(part) for part in node.path.split(".") if part]
