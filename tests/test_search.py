"""Tree search against a plain sequential oracle, on several hundred random trees.

The oracle is written from the algorithm's description alone: loops, no asyncio, and a world that
says outright what a refinement holds and how a vote reads. The search sees the same world only
through a scripted engine's text, with calls finishing in random order.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from spar_lite.constraints import AllLowercase, KeywordInclude, NoCommas
from spar_lite.engine import Completion, Engine, Request, Sampling
from spar_lite.judge import judge_answer
from spar_lite.pairs import preference_pairs
from spar_lite.prompts import refine_messages
from spar_lite.recipe import Judge, Search
from spar_lite.records import Cost, Message, Prompt, Response, Role, Tree, stable_seed
from spar_lite.search import search_tree
from tests.scripted import ScriptedEngine

RULES = (NoCommas(), AllLowercase(), KeywordInclude("tea"))
ANSWERS = [
    "tea is warm.",  # all three constraints met
    "my tea is warm.",
    "Tea is warm.",  # a capital
    "milk is warm.",  # no tea
    "Milk, cold.",  # none
    "milk, cold.",  # lowercase only
]
WORST = "Milk, cold."


def met(answer: str) -> list[bool]:
    """The three constraints, checked without spar_lite."""
    words = answer.lower().replace(",", " ").replace(".", " ").split()
    return ["," not in answer, answer == answer.lower(), "tea" in words]


@dataclass
class World:
    """One tree's chances, drawn once; every reply follows from its id."""

    name: str
    mode: str
    complete: bool
    strategy: str
    branch: int = 0
    keep: int = 0
    depth: int = 0
    budget: int = 0
    tries: int = 0
    votes: int = 0
    gate: float = 0.5
    chance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.rng("settings")
        self.branch, self.depth = rng.randint(1, 4), rng.randint(1, 4)
        self.keep = rng.randint(1, self.branch)
        self.budget = rng.choice([1, 2, 4, 5, 7, 10, 1000])
        self.tries, self.votes = rng.randint(1, 3), rng.choice([1, 2, 3, 4, 5])
        self.gate = rng.choice([0.0, 0.3, 0.5, 0.5, 0.5, 0.8, 0.99])
        self.chance = {
            "unreadable refinement": rng.choice([0.0, 0.2, 0.5, 0.95]),
            "unreadable vote": rng.choice([0.0, 0.3, 0.8]),
            "yes": rng.choice([0.0, 0.3, 0.5, 0.7, 0.9]),
            "bad answer": rng.choice([0.0, 0.3, 0.8, 1.0]),
        }

    def rng(self, *coordinates: object) -> random.Random:
        return random.Random(stable_seed("world", self.name, self.mode, *coordinates))

    def refinement(self, path: str, attempt: int) -> str | None:
        """What the refiner's reply holds, or None where it cannot be read."""
        rng = self.rng("refinement", path, attempt)
        if rng.random() < self.chance["unreadable refinement"]:
            return None
        bad = rng.random() < self.chance["bad answer"]
        return rng.choice(ANSWERS[2:] if bad else ANSWERS)

    def vote(self, path: str, number: int) -> bool | None:
        rng = self.rng("vote", path, number)
        if rng.random() < self.chance["unreadable vote"]:
            return None
        return rng.random() < self.chance["yes"]

    @property
    def prompt(self) -> Prompt:
        rules = tuple(rule.to_json() for rule in RULES)
        return Prompt(self.name, f"Instruction {self.name}.", rules, self.complete)

    @property
    def judge(self) -> Judge:
        return Judge(mode=self.mode, votes=self.votes, early_stop=False)  # type: ignore[arg-type]

    @property
    def search(self) -> Search:
        return Search(
            strategy=self.strategy,  # type: ignore[arg-type]
            branch=self.branch,
            keep=self.keep,
            depth=self.depth,
            budget=self.budget,
            tries=self.tries,
            gate=self.gate,
        )


# The oracle -----------------------------------------------------------------------------------


@dataclass
class Leaf:
    """What the oracle knows of a node: its answer, how it was judged, the tries it took."""

    path: str
    text: str | None
    value: float | None
    verdict: bool | None
    tries: int

    def score(self, mode: str) -> tuple[float, float]:
        """Value first; with a program in play, the share of constraints met parts ties."""
        value = -1.0 if self.value is None else self.value
        share = sum(met(self.text or "")) / 3 if mode != "llm" else 0.0
        return value, share


class Oracle:
    """The description in SPAR.md, one node after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spent = 0
        self.nodes = {"": self.judged("", WORST, tries=0)}
        self.accepted: Leaf | None = None
        walk = self.bfs if world.strategy == "bfs" else self.dfs
        self.stop = walk(self.nodes[""])

    def judged(self, path: str, text: str, tries: int) -> Leaf:
        world = self.world
        yes = no = 0
        for number in range(world.votes):
            word = world.vote(path, number)
            yes += word is True
            no += word is False
        value: float | None = yes / (yes + no) if yes + no else None
        verdict = None if yes == no else yes > no
        if path == "":
            return Leaf(path, text, 0.0, False, tries)  # a negative, by definition
        if world.mode != "llm":
            good = all(met(text))
            if world.mode == "code" or world.complete or not good:
                value, verdict = float(good), good
        return Leaf(path, text, value, verdict, tries)

    def grow(self, parent: Leaf, number: int) -> Leaf:
        path = f"{parent.path}.{number}" if parent.path else f"{number}"
        leaf = Leaf(path, None, None, None, self.world.tries)
        for attempt in range(self.world.tries):
            text = self.world.refinement(path, attempt)
            if text is not None:
                leaf = self.judged(path, text, attempt + 1)
                break
        self.spent += 1
        self.nodes[path] = leaf
        return leaf

    def best_first(self, born: list[Leaf]) -> list[Leaf]:
        """Children with a verdict, best first; of equals, the one born first."""
        rest = [leaf for leaf in born if leaf.verdict is not None]
        ranked: list[Leaf] = []
        while rest:
            best = rest[0]
            for leaf in rest[1:]:
                if leaf.score(self.world.mode) > best.score(self.world.mode):
                    best = leaf
            rest.remove(best)
            ranked.append(best)
        return ranked

    def level(self, parents: list[Leaf]) -> list[Leaf]:
        born = []
        for parent in parents:
            for number in range(self.world.branch):
                if self.spent < self.world.budget:
                    born.append(self.grow(parent, number))
        return self.best_first(born)

    def accept(self, ranked: list[Leaf]) -> bool:
        if ranked and ranked[0].value is not None and ranked[0].value > self.world.gate:
            self.accepted = ranked[0]
        return self.accepted is not None

    def bfs(self, root: Leaf) -> str:
        frontier = [root]
        for _ in range(self.world.depth):
            if self.spent >= self.world.budget:
                return "budget"
            ranked = self.level(frontier)
            if self.accept(ranked):
                return "accepted"
            if not ranked:
                return "no child"
            frontier = ranked[: self.world.keep]
        return "depth"

    def dfs(self, root: Leaf) -> str:
        """With a stack of nodes still to expand instead of a recursion."""
        stack, stop = [root], "no child"
        while stack:
            leaf = stack.pop()
            if leaf.path and leaf.path.count(".") + 1 >= self.world.depth:
                stop = "depth"
                continue
            if self.spent >= self.world.budget:
                return "budget"
            ranked = self.level([leaf])
            if self.accept(ranked):
                return "accepted"
            if not ranked:
                stop = "no child"
            stack += reversed(ranked[: self.world.keep])
        return stop

    @property
    def best(self) -> str:
        """The accepted node, else the highest, the shallower and earlier of equals."""
        if self.accepted:
            return self.accepted.path
        order = sorted(self.nodes.values(), key=lambda leaf: place(leaf.path))
        best = order[0]
        for leaf in order:
            if leaf.text is not None and leaf.score(self.world.mode) > best.score(self.world.mode):
                best = leaf
        return best.path

    @property
    def pair(self) -> list[tuple[str | None, str]]:
        accepted = self.accepted
        return [(accepted.text, WORST)] if accepted and accepted.text != WORST else []


def place(path: str) -> tuple[int, list[int]]:
    numbers = [int(part) for part in path.split(".") if part]
    return len(numbers), numbers


# The search, on the same worlds ---------------------------------------------------------------


def script(worlds: dict[str, World]):
    """The worlds as text: each kind of sloppiness is drawn from the request's own id."""

    def reply(role: Role, request: Request) -> str:
        assert role == "refiner"
        name, *path, last = request.id.split("/")
        world, rng = worlds[name], random.Random(request.id)
        number = int(last[1:])
        node = path[0] if path else ""
        if last[0] == "r":
            text = world.refinement(node, number)
            if text is None:
                return rng.choice(["", "tea", "[[start]] tea", "[[start]] xxx [[end]]", "[[end]]"])
            return (
                f"{rng.choice(['', 'Mend it.', '<think>[[end]]</think>'])}[[start]] {text} [[end]]"
            )
        word = world.vote(node, number)
        if word is None:
            return rng.choice(["", "Yes", "Final Judgement: maybe", "No doubt it is good."])
        return f"Vote {number} on {node!r}. Final Judgement: {'Yes' if word else 'No'}"

    return reply


async def search_all(engine: Engine, worlds: dict[str, World]) -> list[Tree]:
    async def one(world: World) -> Tree:
        # The root's judgement is the previous stage's; here a program's word on the worst answer.
        code = Judge(mode="code")
        judgement = await judge_answer(engine, world.prompt, WORST, world.name, code)
        negative = Response(f"{world.name}/0", world.name, WORST, True, Cost())
        return await search_tree(
            engine, world.prompt, negative, judgement, world.search, world.judge
        )

    return list(await asyncio.gather(*(one(world) for world in worlds.values())))


TREES = 80
KINDS = [("llm", False), ("code", True), ("hybrid", True), ("hybrid", False)]


@pytest.mark.parametrize("strategy", ["bfs", "dfs"])
@pytest.mark.parametrize(("mode", "complete"), KINDS)
def test_search_is_the_sequential_algorithm(strategy: str, mode: str, complete: bool):
    worlds = {f"w{n}": World(f"w{n}", mode, complete, strategy) for n in range(TREES)}
    engine = ScriptedEngine(script(worlds), shuffle_seed=1)
    trees = asyncio.run(search_all(engine, worlds))
    again = asyncio.run(search_all(ScriptedEngine(script(worlds), shuffle_seed=2), worlds))
    assert trees == again, "the order of arrival leaves no trace"
    assert len({request.id for request in engine.requests}) == len(engine.requests)

    oracles = {name: Oracle(world) for name, world in worlds.items()}
    seen: Counter[str] = Counter()
    for tree in trees:
        oracle = oracles[tree.id]
        assert {node.path for node in tree.nodes} == set(oracle.nodes), tree.id
        assert [n.path for n in tree.nodes] == sorted(oracle.nodes, key=place), "in one order"
        for node in tree.nodes:
            leaf = oracle.nodes[node.path]
            assert node.text == leaf.text
            assert len(node.failed_replies) + (node.reply is not None) == leaf.tries
            if node.judgement:
                assert (node.judgement.value, node.judgement.verdict) == (leaf.value, leaf.verdict)
            seen["tie"] += bool(leaf.text and leaf.verdict is None)
            seen["unreadable"] += leaf.text is None
            seen["retried"] += leaf.text is not None and leaf.tries > 1
            seen["deep"] += node.depth > 1
        accepted = oracle.accepted.path if oracle.accepted else None
        assert (tree.stop, tree.accepted, tree.best) == (oracle.stop, accepted, oracle.best)
        pairs = preference_pairs({tree.id: worlds[tree.id].prompt}, [tree])
        assert [(pair.chosen, pair.rejected) for pair in pairs] == oracle.pair
        seen[tree.stop] += 1
        seen["level cut short"] += len(tree.nodes) - 1 == worlds[tree.id].budget
        seen["accepted at once"] += accepted is not None and "." not in accepted
        seen["accepted later"] += accepted is not None and "." in accepted
        seen["only the root"] += all(node.text is None for node in tree.nodes[1:])
    wanted = ["accepted", "depth", "budget", "no child", "unreadable", "retried", "deep"]
    wanted += ["level cut short", "accepted at once", "accepted later", "only the root"]
    if (mode, complete) in (("llm", False), ("hybrid", False)):
        wanted.append("tie")
    assert all(seen[what] for what in wanted), f"the worlds are too tame: {seen}"


@pytest.mark.parametrize(("mode", "complete"), KINDS)
def test_what_the_refiner_was_asked_and_what_it_cost(mode: str, complete: bool):
    worlds = {f"w{n}": World(f"w{n}", mode, complete, "bfs") for n in range(40)}
    engine = ScriptedEngine(script(worlds), shuffle_seed=3)
    trees = {tree.id: tree for tree in asyncio.run(search_all(engine, worlds))}
    calls: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for request in engine.requests:
        name, *path, last = request.id.split("/")
        calls[name] += 1
        asked[name] += sum(len(message.content.split()) for message in request.messages)
        if last[0] == "r":
            parent = trees[name].node(path[0].rpartition(".")[0])
            assert parent.text is not None and parent.judgement is not None
            critique = parent.judgement.critique or ""
            # a parent has a verdict, so it has a critique, which ends in that verdict
            assert critique.endswith(
                f"Final Judgement: {'Yes' if parent.judgement.verdict else 'No'}"
            )
            text = worlds[name].prompt.text
            assert request.messages == refine_messages(text, parent.text, critique)
    for name, tree in trees.items():
        assert (tree.cost.calls, tree.cost.prompt_tokens) == (calls[name], asked[name])
        votes = sum(len(node.judgement.votes) for node in tree.nodes[1:] if node.judgement)
        tries = sum(len(n.failed_replies) + (n.reply is not None) for n in tree.nodes)
        assert tree.cost.calls == votes + tries
        assert mode != "code" or votes == 0


def test_the_papers_tree_has_15_nodes():
    # branch 3, keep 2, depth 3 and nothing accepted: 3 + 2*3 + 2*3 refinements and the root
    world = World("w", "llm", False, "bfs")
    world.branch, world.keep, world.depth, world.budget, world.tries = 3, 2, 3, 1000, 3
    world.chance = {"unreadable refinement": 0, "unreadable vote": 0, "yes": 0, "bad answer": 1}
    for strategy, refinements in (("bfs", 3 + 6 + 6), ("dfs", 3 + 2 * 3 + 4 * 3)):
        world.strategy = strategy
        (tree,) = asyncio.run(search_all(ScriptedEngine(script({"w": world})), {"w": world}))
        assert len(tree.nodes) == 1 + refinements
        assert (tree.stop, tree.accepted, tree.best, tree.depth) == ("depth", None, "", 3)


# The scripted engine itself -------------------------------------------------------------------


def request(id: str) -> Request:
    return Request(id, (Message("user", "how are you"), Message("user", "now")), 9, Sampling())


def test_scripted_tokens_are_words():
    engine = ScriptedEngine(lambda role, request: f"{role} {request.id} here")
    (done,) = asyncio.run(engine.generate("actor", [request("a")]))
    # "how are you" + "now" = 4 words asked, 3 words answered
    assert done == Completion("a", "actor a here", 4, 3, finished=True)
    assert engine.requests == [request("a")]


def test_a_scripted_completion_is_passed_on_as_it_is():
    cut = Completion("a", "cut", 7, 9, finished=False)
    engine = ScriptedEngine(lambda role, request: cut)
    assert asyncio.run(engine.generate("base", [request("a")])) == [cut]


def test_shuffled_calls_finish_out_of_order_but_return_in_order():
    async def go(engine: Engine) -> list[str]:
        calls = (engine.generate("actor", [request(str(n))]) for n in range(30))
        return [done[0].text for done in await asyncio.gather(*calls)]

    names = [str(n) for n in range(30)]
    orders = []
    for seed in (1, 1, 2):
        engine = ScriptedEngine(lambda role, request: request.id, shuffle_seed=seed)
        assert asyncio.run(go(engine)) == names
        orders.append(engine.finished)
    assert orders[0] == orders[1] != orders[2], "an order follows from its seed"
    assert sorted(orders[0]) == sorted(names) and orders[0] != names


def test_two_roles_in_flight_are_an_error():
    async def go(*roles: Role) -> None:
        engine: Engine = ScriptedEngine(lambda role, request: "fine")
        await asyncio.gather(*(engine.generate(role, [request("a")]) for role in roles))

    asyncio.run(go("actor", "actor"))
    with pytest.raises(AssertionError, match='"refiner" was called while "actor" is in flight'):
        asyncio.run(go("actor", "refiner"))


def test_one_role_after_the_other_is_fine_even_after_a_failure():
    def fail(role: Role, request: Request) -> str:
        if role == "actor":
            raise ValueError("no")
        return "fine"

    async def go() -> None:
        engine = ScriptedEngine(fail)
        with pytest.raises(ValueError, match="no"):
            await engine.generate("actor", [request("a")])
        assert (await engine.generate("refiner", [request("b")]))[0].text == "fine"

    asyncio.run(go())
