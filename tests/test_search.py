"""Tree search against a plain sequential oracle, on several hundred random trees.

The oracle is written from the algorithm's description alone: loops, no asyncio, and a world that
says outright what a refinement holds and how a vote reads. The search sees the same world only
through a scripted engine's text, with calls finishing in random order.
"""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from spar_lite.constraints.kinds import AllLowercase, KeywordInclude, NoCommas
from spar_lite.engines.base import Completion, Engine, Request, Sampling
from spar_lite.judge import judge_answer
from spar_lite.pairs import preference_pairs, refined
from spar_lite.recipe import Judge, Search
from spar_lite.records import (
    Cost,
    Judgement,
    Message,
    Prompt,
    Response,
    Role,
    Tree,
    Vote,
    stable_seed,
)
from spar_lite.search import search_tree
from spar_lite.templates import refine_messages
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
    early_stop: bool = False
    chance: dict[str, float] = field(default_factory=dict)
    root: tuple[bool | None, ...] = ()
    endings: int = 1

    def __post_init__(self) -> None:
        rng = self.rng("settings")
        self.branch, self.depth = rng.randint(1, 4), rng.choice([1, 1, 2, 3, 4])
        self.keep = rng.randint(1, self.branch)
        self.budget = rng.choice([1, 2, 4, 5, 7, 10, 1000])
        self.tries, self.votes = rng.randint(1, 3), rng.choice([1, 2, 3, 4, 5, 5, 5, 7])
        self.gate = rng.choice([0.0, 0.3, 0.5, 0.5, 0.5, 0.8, 0.99])
        self.chance = {
            "unreadable refinement": rng.choice([0.0, 0.0, 0.2, 0.5, 0.95]),
            "unreadable vote": rng.choice([0.0, 0.0, 0.1, 0.3, 0.8]),
            "yes": rng.choice([0.0, 0.3, 0.3, 0.5, 0.7, 0.9]),
            "bad answer": rng.choice([0.0, 0.3, 0.8, 1.0]),
        }
        self.endings = rng.choice([1, 3, 30, 30])  # one: texts come back all the time
        words = itertools.product((True, False, None), repeat=self.votes)
        self.root = rng.choice([w for w in words if w.count(False) > w.count(True)])

    def rng(self, *coordinates: object) -> random.Random:
        return random.Random(stable_seed("world", self.name, self.mode, *coordinates))

    def refinement(self, path: str, attempt: int) -> str | None:
        """What the refiner's reply holds, or None where it cannot be read."""
        rng = self.rng("refinement", path, attempt)
        if rng.random() < self.chance["unreadable refinement"]:
            return None
        bad = rng.random() < self.chance["bad answer"]
        text, ending = rng.choice(ANSWERS[2:] if bad else ANSWERS), rng.randrange(self.endings)
        return f"{text} and {ending}." if ending else text

    def vote(self, path: str, number: int) -> bool | None:
        if not path:
            return self.root[number]  # a failed answer
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
        return Judge(mode=self.mode, votes=self.votes, early_stop=self.early_stop)  # type: ignore[arg-type]

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
    """What the oracle knows of a node: its answer, how it was judged, the tries it took.

    ``judged_at``: the path whose votes were counted. ``drawn``: votes drawn for it, all rounds.
    """

    path: str
    text: str | None
    value: float | None
    verdict: bool | None
    tries: int
    judged_at: str = ""
    drawn: int = 0

    def score(self, mode: str) -> tuple[float, float]:
        """Value first; with a program in play, the share of constraints met parts ties."""
        value = -1.0 if self.value is None else self.value
        share = sum(met(self.text or "")) / 3 if mode != "llm" else 0.0
        return value, share


class Oracle:
    """The description in SPAR.md and FIDELITY.md (F2 to F4), one node after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spent = 0
        root = Leaf("", WORST, None, None, 0)
        self.judge(root)
        self.nodes, self.by_text = {"": root}, {WORST: root}
        self.accepted: Leaf | None = None
        walk = self.bfs if world.strategy == "bfs" else self.dfs
        self.stop = walk(root)

    def judge(self, leaf: Leaf) -> None:
        """All votes, up to three times until they have a majority; a program has one at once."""
        world = self.world
        assert leaf.text is not None
        leaf.judged_at = leaf.path
        good = all(met(leaf.text))
        by_program = world.mode == "code" or (
            world.mode == "hybrid" and (world.complete or not good)
        )
        yes = no = 0
        for turn in range(1 if by_program or not leaf.path else 3):
            words = [world.vote(leaf.path, turn * world.votes + n) for n in range(world.votes)]
            yes, no = words.count(True), words.count(False)
            leaf.drawn += world.votes
            if yes != no:
                break
        leaf.value, leaf.verdict = (yes / (yes + no) if yes + no else None), None
        if yes != no:
            leaf.verdict = yes > no
        if by_program:
            leaf.value, leaf.verdict = float(good), good
        if world.mode == "code":
            leaf.drawn = 0

    def grow(self, parent: Leaf, number: int) -> Leaf:
        path = f"{parent.path}.{number}" if parent.path else f"{number}"
        leaf = Leaf(path, None, None, None, self.world.tries)
        for attempt in range(self.world.tries):
            leaf.text = self.world.refinement(path, attempt)
            if leaf.text is not None:
                leaf.tries = attempt + 1
                break
        self.spent += 1
        self.nodes[path] = leaf
        return leaf

    def look_at(self, born: list[Leaf]) -> None:
        """Judge what is new, by path; a text that is known is as good as it was."""
        for leaf in sorted(born, key=lambda leaf: place(leaf.path)):
            if leaf.text in self.by_text:
                known = self.by_text[leaf.text]
                leaf.value, leaf.verdict = known.value, known.verdict
                leaf.judged_at, leaf.drawn = known.judged_at, known.drawn
            elif leaf.text is not None:
                self.judge(leaf)
                self.by_text[leaf.text] = leaf

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
        self.look_at(born)
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
        """The accepted node, else the highest with a verdict, of equals the shallowest, first."""
        if self.accepted:
            return self.accepted.path
        order = sorted(self.nodes.values(), key=lambda leaf: place(leaf.path))
        best = order[0]
        for leaf in order:
            decided = leaf.verdict is not None
            if decided and leaf.score(self.world.mode) > best.score(self.world.mode):
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
        claim = rng.choice(["", "1. No commas: No\n", "1. No commas: Yes\n"])
        return f"{claim}Vote {number} on {node!r}. Final Judgement: {'Yes' if word else 'No'}"

    return reply


def negative(world: World) -> Response:
    return Response(f"{world.name}/0", world.name, WORST, True, Cost())


async def search_all(engine: Engine, worlds: dict[str, World]) -> list[Tree]:
    async def one(world: World) -> Tree:
        # The root's judgement is the previous stage's; here it has all votes.
        judge = world.judge.model_copy(update={"early_stop": False})
        judgement = await judge_answer(engine, world.prompt, WORST, world.name, judge)
        return await search_tree(
            engine, world.prompt, negative(world), judgement, world.search, world.judge
        )

    return list(await asyncio.gather(*(one(world) for world in worlds.values())))


TREES = 100
KINDS = [("llm", False), ("code", True), ("hybrid", True), ("hybrid", False)]


def some_worlds(mode: str, complete: bool, strategy: str, **more: bool) -> dict[str, World]:
    return {f"w{n}": World(f"w{n}", mode, complete, strategy, **more) for n in range(TREES)}


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("strategy", ["bfs", "dfs"])
@pytest.mark.parametrize(("mode", "complete"), KINDS)
def test_search_is_the_sequential_algorithm(
    strategy: str, mode: str, complete: bool, early_stop: bool
):
    """The oracle always draws all votes: early stop may spare some, but finds the same tree."""
    worlds = some_worlds(mode, complete, strategy, early_stop=early_stop)
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
            assert (node.judgement is None) == (leaf.text is None)
            if node.judgement:
                assert node.judgement.verdict is leaf.verdict
                assert early_stop or node.judgement.value == leaf.value
                at = f"{tree.id}/{leaf.judged_at}" if leaf.judged_at else tree.id
                assert node.judgement.id == at, "the first node with this text was judged"
                calls = node.judgement.cost.calls
                assert calls <= leaf.drawn if early_stop else calls == leaf.drawn
                seen["spared"] += calls < leaf.drawn
            seen["copy"] += bool(leaf.text and leaf.judged_at not in ("", leaf.path))
            seen["copy of the root"] += bool(leaf.path and leaf.text and not leaf.judged_at)
            seen["drawn anew"] += leaf.drawn > worlds[tree.id].votes and leaf.verdict is not None
            seen["tie"] += bool(leaf.text and leaf.verdict is None)
            seen["unreadable"] += leaf.text is None
            seen["retried"] += leaf.text is not None and leaf.tries > 1
            seen["deep"] += node.depth > 1
        accepted = oracle.accepted.path if oracle.accepted else None
        assert (tree.stop, tree.accepted, tree.best) == (oracle.stop, accepted, oracle.best)
        rejected = negative(worlds[tree.id])
        pairs = preference_pairs(
            refined({tree.id: worlds[tree.id].prompt}, {rejected.id: rejected}, [tree])
        )
        assert [(pair.chosen, pair.rejected) for pair in pairs] == oracle.pair
        seen[tree.stop] += 1
        seen["level cut short"] += len(tree.nodes) - 1 == worlds[tree.id].budget
        seen["accepted at once"] += accepted is not None and "." not in accepted
        seen["accepted later"] += accepted is not None and "." in accepted
        seen["only the root"] += all(node.text is None for node in tree.nodes[1:])
    wanted = ["accepted", "depth", "budget", "no child", "unreadable", "retried", "deep"]
    wanted += ["level cut short", "accepted at once", "accepted later", "only the root"]
    wanted += ["copy", "copy of the root"]
    if (mode, complete) in (("llm", False), ("hybrid", False)):
        wanted += ["tie", "drawn anew"]
    if early_stop and mode != "code":
        wanted.append("spared")
    assert all(seen[what] for what in wanted), f"the worlds are too tame: {seen}"


@pytest.mark.parametrize("strategy", ["bfs", "dfs"])
@pytest.mark.parametrize(("mode", "complete"), KINDS[:2])
def test_early_stop_asks_for_the_same_refinements_in_the_same_words(
    mode: str, complete: bool, strategy: str
):
    """So that a refiner that sees nothing else writes the same tree.

    Not so in hybrid mode: the first vote that agrees with the program may be one left out.
    """
    asked: list[dict[str, tuple[Message, ...]]] = []
    for early_stop in (True, False):
        worlds = some_worlds(mode, complete, strategy, early_stop=early_stop)
        engine = ScriptedEngine(script(worlds), shuffle_seed=4)
        asyncio.run(search_all(engine, worlds))
        asked.append({r.id: r.messages for r in engine.requests})
    early, whole = asked
    assert early.items() <= whole.items(), "and no vote that all votes would not hold"
    left_out = whole.keys() - early.keys()
    assert all("/v" in id for id in left_out) and bool(left_out) == (mode != "code")


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(("mode", "complete"), KINDS)
def test_what_the_refiner_was_asked_and_what_it_cost(mode: str, complete: bool, early_stop: bool):
    worlds = some_worlds(mode, complete, "bfs", early_stop=early_stop)
    engine = ScriptedEngine(script(worlds), shuffle_seed=3)
    trees = {tree.id: tree for tree in asyncio.run(search_all(engine, worlds))}
    calls: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for request in engine.requests:
        name, *path, last = request.id.split("/")
        if not path:
            continue  # the root's votes, which another stage has paid
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
        judgements = {
            n.text: n.judgement for n in tree.nodes[1:] if n.text != WORST and n.judgement
        }
        votes = sum(judgement.cost.calls for judgement in judgements.values())
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


# The rules one by one, worked out by hand -----------------------------------------------------

PLAIN = Prompt("p", "Speak of tea.")
LETTERS = {"y": "Good. Final Judgement: Yes", "n": "Bad. Final Judgement: No", "?": "Hm."}


def grow(
    texts: dict[str, str],
    votes: dict[str, str],
    prompt: Prompt = PLAIN,
    judge: Judge | None = None,
    **search: float,
) -> tuple[Tree, dict[str, int]]:
    """The tree in which each path's refinement is given, and each text's votes (y, n, ?).

    Also returns how many votes were drawn by path; they are checked to be numbered through.
    """

    def reply(role: Role, request: Request) -> str:
        _, path, last = request.id.split("/")
        if last[0] == "r":
            return f"[[start]] {texts[path]} [[end]]"
        return LETTERS[votes[texts[path]][int(last[1:])]]

    engine = ScriptedEngine(reply, shuffle_seed=1)
    no = Vote(LETTERS["n"], False)
    judgement = Judgement("p/0", (no,) * 3, 0.0, False, no.text, "model", (), Cost(3, 30, 12))
    tree = asyncio.run(
        search_tree(
            engine,
            prompt,
            Response("p/0", "p", WORST, True, Cost()),
            judgement,
            Search(**search),  # type: ignore[arg-type]
            judge or Judge(),
        )
    )
    drawn: dict[str, list[int]] = {}
    for _, path, last in (request.id.split("/") for request in engine.requests):
        if last[0] == "v":
            drawn.setdefault(path, []).append(int(last[1:]))
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in drawn.values())
    assert tree.cost.calls == len(engine.requests)
    return tree, {path: len(numbers) for path, numbers in drawn.items()}


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_text_that_comes_back_is_not_judged_again(early_stop: bool):
    texts = {"0": "A.", "1": WORST, "2": "A."}
    # had the copy drawn five votes of its own, they might have said Yes
    tree, drawn = grow(texts, {"A.": "nnnyy"}, judge=Judge(early_stop=early_stop), depth=1)
    assert drawn == {"0": 5}
    assert tree.node("2").judgement == tree.node("0").judgement, "the same record"
    assert tree.node("1").judgement == tree.node("").judgement, "the failed answer failed"
    assert (tree.accepted, tree.best) == (None, "0")
    assert tree.cost.calls == 3 + 5


def test_a_text_is_judged_under_its_first_path_not_under_its_better_parents():
    texts = {"0": "A.", "1": "B.", "0.0": "C.", "0.1": "A.", "1.0": "C.", "1.1": WORST}
    votes = {"A.": "nnnnn", "B.": "nynny", "C.": "nnnnn"}
    tree, drawn = grow(texts, votes, branch=2, keep=2, depth=2, budget=5)
    assert [node.path for node in tree.nodes[3:]] == ["0.0", "1.0", "1.1"], "B's were born first"
    assert tree.node("1.0").judgement == tree.node("0.0").judgement
    assert set(drawn) == {"0", "1", "0.0"}


# votes on the refinements by path, settings, what is drawn, accepted, best, and why
FLAT, CHAIN = {"depth": 1}, {"depth": 2, "branch": 1, "keep": 1}
NARROW, STRICT = {"depth": 2, "keep": 1}, {"depth": 1, "branch": 1, "keep": 1, "gate": 0.7}
SPARED = [
    ("yyynn nnnyy nnnnn", FLAT, "333", "0", "0", "one passes: nothing to compare"),
    ("yyynn yyyyn nnnyy", FLAT, "553", "1", "1", "two pass, with 0.6 and 0.8, not with 1 and 1"),
    ("nnnnn nnnyy nynny", FLAT, "555", None, "1", "none passes: one is the best of the tree"),
    ("ynnyn nnnyy nnnnn", FLAT, "533", None, "0", "the others could not get beyond its 0.4"),
    ("ynnyn nnnyy nnnnn", {"depth": 2, "budget": 3}, "533", None, "0", "none can go deeper"),
    ("nnnnn nnnyy nnnyn yyyyy nnnnn nnnnn", NARROW, "555333", "1.0", "1.0", "one goes deeper"),
    ("nnnyy yyyyy", CHAIN, "33", "0.0", "0.0", "the only one goes deeper, whatever its value"),
    ("nnnyy nnnyy", CHAIN, "55", None, "0", "none passes: one is the best of the tree"),
    ("yyynn", STRICT, "5", None, "0", "after three votes 0.6 to 1: the gate is among them"),
    ("yyyyn", STRICT | {"gate": 0.5}, "3", "0", "0", "this gate is not"),
]


@pytest.mark.parametrize(("letters", "settings", "counts", "accepted", "best", "why"), SPARED)
def test_votes_are_left_out_where_they_put_nothing_in_order(
    letters: str,
    settings: dict[str, float],
    counts: str,
    accepted: str | None,
    best: str,
    why: str,
):
    branch = int(settings.get("branch", 3))
    below = ("1" if branch == 3 else "0") + "."
    paths = [f"{n}" for n in range(branch)] + [f"{below}{n}" for n in range(branch)]
    texts = {path: f"Text {path}." for path in paths}
    votes = dict(zip(texts.values(), letters.split(), strict=False))
    for early_stop in (True, False):
        tree, drawn = grow(texts, votes, judge=Judge(early_stop=early_stop), **settings)
        assert (tree.accepted, tree.best) == (accepted, best), why
        wanted = counts if early_stop else "5" * len(counts)
        assert drawn == {p: int(n) for p, n in zip(paths, wanted, strict=False)}, why


def test_what_the_program_decides_needs_no_more_votes():
    """Two fail and go deeper, two pass: by the program's word, so 3 of 5 votes are enough."""
    prompt = Prompt("p", "Use no commas.", (NoCommas().to_json(),), complete=True)
    texts = {"0": "Black, tea.", "1": "Green, tea.", "0.0": "Black tea.", "0.1": "Green tea."}
    texts |= {"1.0": "White, tea.", "1.1": "Red, tea."}
    judge = Judge(mode="hybrid")
    tree, drawn = grow(
        texts, dict.fromkeys(texts.values(), "yyynn"), prompt, judge, branch=2, keep=2, depth=2
    )
    assert (tree.accepted, set(drawn.values())) == ("0.0", {3})


# two votes a round; by text: all that are drawn, those on record, value, and why
ROUNDS = [
    ("yn??yy", "yy", 1.0, "the third round has a majority"),
    ("??yn?n", "?n", 0.0, "a failed one, which goes deeper"),
    ("yy", "yy", 1.0, "the first round will do"),
    ("ynnyyn", "yn", 0.5, "three ties: no judgement"),
    ("yn????", "??", None, "the last round is on record"),
]


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(("letters", "kept", "value", "why"), ROUNDS)
def test_votes_without_a_majority_are_drawn_anew(
    letters: str, kept: str, value: float | None, why: str, early_stop: bool
):
    judge = Judge(votes=2, early_stop=early_stop)
    tree, drawn = grow({"0": "A."}, {"A.": letters}, judge=judge, branch=1, keep=1, depth=1)
    found = tree.node("0").judgement
    assert found is not None and drawn == {"0": len(letters)} == {"0": found.cost.calls}, why
    assert [vote.text for vote in found.votes] == [LETTERS[letter] for letter in kept]
    assert found.value == value
    assert found.verdict is (None if value in (0.5, None) else value == 1.0)
    assert tree.accepted == ("0" if value == 1.0 else None)
    # the root's 0 is as good as a failed child's, and better than no judgement, though of 0.5
    assert tree.best == ("0" if value == 1.0 else "")
    assert tree.stop == {1.0: "accepted", 0.0: "depth"}.get(value, "no child")


def test_the_programs_verdict_is_not_drawn_anew():
    prompt = Prompt("p", "Use no commas.", (NoCommas().to_json(),), complete=True)
    judge = Judge(mode="hybrid", votes=2)
    search = {"branch": 1, "keep": 1, "depth": 1}
    for text, accepted in (("Black tea.", "0"), ("Black, tea.", None)):
        tree, drawn = grow({"0": text}, {text: "yn"}, prompt, judge, **search)
        assert (tree.accepted, drawn) == (accepted, {"0": 2})


def test_a_node_without_a_verdict_is_not_the_best_of_its_tree():
    """A tie's 0.5 is above 0.2, but nobody said that it is any good."""
    votes = {"A.": "yn?yn?yn?", "B.": "nny"}
    judge = Judge(votes=3, early_stop=False)
    tree, _ = grow({"0": "A.", "1": "B."}, votes, judge=judge, branch=2, depth=1)
    assert [node.judgement.value for node in tree.nodes if node.judgement] == [0.0, 0.5, 1 / 3]
    assert tree.best == "1"


def test_a_refinement_is_tried_nine_times():
    """As in the official code: three times three."""
    assert Search().tries == 9


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
