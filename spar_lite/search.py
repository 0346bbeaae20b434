"""Steps 3 and 4: tree search for a refinement of a failed answer (paper, section 2.3.2).

A node is an answer, an edge one refinement. A child is refined from its parent's critique and
judged; its value is the judgement's. BFS and DFS share one ``expand``; each tree is one coroutine,
so trees never wait for one another, and the engine batches whatever is in flight.

A judgement belongs to a text: an answer that comes back in its tree is not judged again but shares
the judgement of the first node that held it. Votes without a majority are drawn anew, ``ROUNDS``
times in all. What ``judge.early_stop`` left out is drawn where two answers must be put in order,
so that the ranking is that of all votes. A program's verdict needs none of this.

For comparison there are two searches of another shape, with as many refinements: a chain of one
after another (``iterative``), and all of the answer at once (``best-of-n``).

Greedy: the best ``keep`` children go deeper; equal values keep their order of creation. A child
without a verdict (no round had a majority) is recorded but neither accepted nor refined, and
never the best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from spar_lite.engines.base import Engine, strip_thinking
from spar_lite.judge import Judgements, share_met
from spar_lite.recipe import Judge, Search
from spar_lite.records import Cost, Judgement, Node, Prompt, Response, Tree
from spar_lite.sample import complete
from spar_lite.templates import parse_refinement, refine_messages

ROUNDS = 3
"""Times that votes on a refinement are drawn until they have a majority (the official code's)."""

Stop = Literal["accepted", "depth", "budget", "no child"]
Rank = tuple[float, float]

Watch = Callable[[Sequence[Node]], None]
"""Shown a tree's nodes so far, those without a judgement among them."""


@dataclass(slots=True)
class TreeSearch:
    """One tree in the making: its nodes so far, what may still be spent, what refining has cost.

    What the judges say is in ``answers``, by text; a node gets its judgement in ``finished``.
    """

    engine: Engine
    prompt: Prompt
    id: str
    settings: Search
    answers: Judgements
    root: Node
    nodes: list[Node] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    watch: Watch | None = None

    @property
    def left(self) -> int:
        """Refinements that the budget still allows."""
        return self.settings.budget - (len(self.nodes) - 1)

    async def expand(self, parents: Sequence[Node]) -> list[Node]:
        """Refine each parent ``branch`` times, all at once, as far as the budget goes.

        New texts are then judged, each under the first path that holds it. Returns the children
        with a verdict, best first.
        """
        places = [(p, n) for p in parents for n in range(self.settings.branch)][: self.left]
        children = await asyncio.gather(*(self._child(parent, n) for parent, n in places))
        self.nodes.extend(children)
        self._show()
        last_first = sorted(children, key=_order, reverse=True)  # of copies the first path stays
        ids = {node.text: f"{self.id}/{node.path}" for node in last_first if node.text is not None}
        await self.answers.judge(ids, ROUNDS)
        self._show()
        judged = [node for node in children if self._has_verdict(node)]
        await self._settle(judged)
        return sorted(judged, key=self.rank, reverse=True)

    def rank(self, node: Node) -> Rank:
        """Sort key: the least value that is sure; then, with a program, the constraints met.

        In hybrid and code mode every fail has value 0, so their share parts what would be ties. In
        llm mode the paper's rule stands alone.
        """
        return self._bounds(node)[0]

    def accepts(self, ranked: Sequence[Node]) -> bool:
        """Whether the best of some ranked children is strictly above the gate."""
        return bool(ranked) and self.rank(ranked[0])[0] > self.settings.gate

    async def best(self) -> Node:
        """The best-valued node of those with a verdict, which the root has; the first of equals."""
        nodes = [node for node in sorted(self.nodes, key=_order) if self._has_verdict(node)]
        await self._find_first(nodes)
        return max(nodes, key=self.rank)

    def finished(self) -> tuple[Node, ...]:
        """All nodes by depth and path, with their judgements, as far as there are any."""
        known = self.answers.known
        return tuple(
            node if node.text is None else replace(node, judgement=known.get(node.text))
            for node in sorted(self.nodes, key=_order)
        )

    def _show(self) -> None:
        if self.watch is not None:
            self.watch(self.finished())

    async def _child(self, parent: Node, number: int) -> Node:
        """Ask for one refinement, again while it cannot be read; nobody has judged it yet."""
        path = f"{parent.path}.{number}" if parent.path else str(number)
        critique = self.answers.known[_text(parent)].critique
        assert critique
        messages = refine_messages(self.prompt.text, _text(parent), critique)
        failed: list[str] = []
        for attempt in range(self.settings.tries):
            id = f"{self.id}/{path}/r{attempt}"
            done = await complete(self.engine, "refiner", id, messages, self.settings)
            self.cost += done.cost
            reply = strip_thinking(done.text)
            text = parse_refinement(reply)
            if text is not None:
                return Node(path, text, reply, tuple(failed), None)
            failed.append(reply)
        return Node(path, None, None, tuple(failed), None)

    async def _settle(self, judged: Sequence[Node]) -> None:
        """Have all votes drawn of siblings where their order counts.

        It says which is accepted, if any passes the gate; else who goes deeper, and who first.
        """
        gate = self.settings.gate
        # Never at a gate of 0.5: there the verdict, which is sure, says who passes.
        unsure = [n for n in judged if self.rank(n)[0] <= gate < self._bounds(n)[1][0]]
        await self.answers.complete(_texts(unsure))
        passing = [node for node in judged if self.rank(node)[0] > gate]
        if passing:
            await self._find_first(passing)
        elif self.left > 0 and any(node.depth < self.settings.depth for node in judged):
            await self._compare(judged)

    async def _find_first(self, nodes: Sequence[Node]) -> None:
        """Have all votes drawn of the nodes that could still rank first; of equals the first."""
        floor = max((self.rank(node), -place) for place, node in enumerate(nodes))
        await self._compare(
            [n for place, n in enumerate(nodes) if (self._bounds(n)[1], -place) >= floor]
        )

    async def _compare(self, nodes: Sequence[Node]) -> None:
        """Have all votes drawn of some nodes, unless they are all the same text."""
        texts = _texts(nodes)
        if len(texts) > 1:
            await self.answers.complete(texts)

    def _has_verdict(self, node: Node) -> bool:
        return node.text is not None and self.answers.known[node.text].verdict is not None

    def _bounds(self, node: Node) -> tuple[Rank, Rank]:
        """The lowest and the highest rank that the votes left out could still give a node."""
        share = share_met(self.answers.known[_text(node)], self.answers.settings)
        least, most = self.answers.bounds(_text(node))
        return (least, share), (most, share)


async def search_tree(
    engine: Engine,
    prompt: Prompt,
    negative: Response,
    judgement: Judgement,
    settings: Search,
    judge: Judge,
    watch: Watch | None = None,
) -> Tree:
    """Search from one failed answer; every node, vote and reply is kept in the tree."""
    root = Node("", negative.text, None, (), judgement)
    answers = Judgements(engine, prompt, judge, {negative.text: judgement})
    shape = _shape(settings)
    tree_search = TreeSearch(engine, prompt, prompt.id, shape, answers, root, [root], watch=watch)
    walk = depth_first if settings.strategy == "dfs" else breadth_first
    stop, accepted = await walk(tree_search)
    best = accepted or await tree_search.best()
    path = accepted.path if accepted else None
    cost = tree_search.cost + answers.cost
    return Tree(
        prompt.id, prompt.id, negative.id, tree_search.finished(), path, best.path, stop, cost
    )


async def breadth_first(tree_search: TreeSearch) -> tuple[Stop, Node | None]:
    """Grow level by level; the gate is tested after a whole level."""
    frontier = [tree_search.root]
    for _ in range(tree_search.settings.depth):
        if tree_search.left <= 0:
            return "budget", None
        ranked = await tree_search.expand(frontier)
        if tree_search.accepts(ranked):
            return "accepted", ranked[0]
        if not ranked:
            return "no child", None
        frontier = ranked[: tree_search.settings.keep]
    return "depth", None


async def depth_first(
    tree_search: TreeSearch, node: Node | None = None
) -> tuple[Stop, Node | None]:
    """Expand a node, test the gate, then go down its best children one after another.

    ``stop`` is the reason of the last branch walked, "accepted" and "budget" ending the search.
    """
    node = node or tree_search.root
    if node.depth >= tree_search.settings.depth:
        return "depth", None
    if tree_search.left <= 0:
        return "budget", None
    ranked = await tree_search.expand([node])
    if tree_search.accepts(ranked):
        return "accepted", ranked[0]
    stop: Stop = "no child"
    for child in ranked[: tree_search.settings.keep]:
        stop, accepted = await depth_first(tree_search, child)
        if stop in ("accepted", "budget"):
            return stop, accepted
    return stop, None


def _shape(settings: Search) -> Search:
    """The settings of a search that a breadth- or depth-first walk then does.

    A chain and a best-of-n get as many refinements as the tree of these settings has at most.
    """
    most = settings.most
    shapes = {
        "iterative": {"branch": 1, "keep": 1, "depth": most},
        "best-of-n": {"branch": most, "depth": 1},
    }
    return settings.model_copy(update=shapes.get(settings.strategy, {}))


def node_value(node: Node) -> float:
    """A node's value, -1 where it has none: below every real one."""
    value = node.judgement.value if node.judgement else None
    return -1.0 if value is None else value


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text


def _texts(nodes: Sequence[Node]) -> list[str]:
    """Each text once, in a fixed order."""
    return list(dict.fromkeys(_text(node) for node in nodes))


def _order(node: Node) -> tuple[int, list[int]]:
    return node.depth, [int(part) for part in node.path.split(".") if part]
