"""Negatives, pairs and the refiner's examples, on records written by hand."""

import dataclasses

import pytest

from spar_lite.pairs import (
    choose_negatives,
    contested,
    interference,
    passed_answers,
    preference_pairs,
    refined,
    refiner_examples,
)
from spar_lite.recipe import Rft
from spar_lite.records import (
    Cost,
    Judgement,
    Node,
    PreferencePair,
    Prompt,
    Response,
    TrainingExample,
    Tree,
    Vote,
)
from spar_lite.templates import answer_messages, judge_messages, refine_messages

Y, N, BLUR = Vote("It is good. Final Judgement: Yes", True), Vote("no", False), Vote("hm", None)


def judged(id: str, verdict: bool | None, *votes: Vote, critique: str = "") -> Judgement:
    text = None if verdict is None else critique or f"critique of {id}"
    return Judgement(id, votes, None, verdict, text, "model" if text else None, (), Cost())


def response(id: str, text: str = "") -> Response:
    return Response(id, id.rpartition("/")[0], text or f"answer {id}", True, Cost())


PROMPTS = [Prompt(id, f"ask {id}") for id in ("a", "b", "c", "d")]
BY_ID = {prompt.id: prompt for prompt in PROMPTS}
RESPONSES = [response(f"{prompt.id}/{k}") for prompt in PROMPTS for k in range(5)]
# a: all fail; b: 1 and 3 fail, 2 is a tie; c: ties only; d: all pass, d/4 never judged
VERDICTS: dict[str, bool | None] = {f"a/{k}": False for k in range(5)}
VERDICTS |= {"b/0": True, "b/1": False, "b/2": None, "b/3": False, "b/4": True}
VERDICTS |= {f"c/{k}": None for k in range(5)} | {f"d/{k}": True for k in range(4)}
JUDGED = {id: judged(id, verdict) for id, verdict in VERDICTS.items()}


def test_negatives_are_failed_answers_only():
    drawn: dict[str, set[str]] = {"a": set(), "b": set()}
    for seed in range(200):
        found = choose_negatives(PROMPTS, RESPONSES, JUDGED, seed)
        assert [prompt.id for prompt, _ in found] == ["a", "b"], "in the prompts' order"
        for prompt, negative in found:
            assert negative.prompt_id == prompt.id
            drawn[prompt.id].add(negative.id)
    # every failed answer comes up in 200 draws; a tie, a pass or an unjudged one never does
    assert drawn == {"a": {f"a/{k}" for k in range(5)}, "b": {"b/1", "b/3"}}


def test_negatives_follow_from_the_seed_and_the_prompt_alone():
    def ids(prompts: list[Prompt], responses: list[Response], seed: object) -> list[str]:
        return [negative.id for _, negative in choose_negatives(prompts, responses, JUDGED, seed)]

    first = ids(PROMPTS, RESPONSES, 0)
    assert first == ids(PROMPTS, RESPONSES, 0)
    assert ids(PROMPTS[:1], RESPONSES, 0) == first[:1], "other prompts do not matter"
    assert len({tuple(ids(PROMPTS, RESPONSES, seed)) for seed in range(50)}) > 5


def test_passed_answers_are_one_a_prompt_that_passed_and_ended():
    b = TrainingExample("b/0", "passed answer", answer_messages("ask b"), "answer b/0")
    d = TrainingExample("d/0", "passed answer", answer_messages("ask d"), "answer d/0")
    assert passed_answers(BY_ID, RESPONSES, JUDGED, 9, 0) == [b, d]
    assert passed_answers(BY_ID, RESPONSES, JUDGED, 0, 0) == []
    one = [tuple(passed_answers(BY_ID, RESPONSES, JUDGED, 1, seed)) for seed in range(20)]
    assert set(one) == {(b,), (d,)}
    cut = [dataclasses.replace(r, finished=r.id != "d/0") for r in RESPONSES]
    assert [x.id for x in passed_answers(BY_ID, cut, JUDGED, 9, 0)] == ["b/0", "d/1"]


def node(path: str, text: str | None, verdict: bool | None = False, *votes: Vote) -> Node:
    if text is None:
        return Node(path, None, None, ("?", "?"), None)
    reply = f"Mend it. [[start]] {text} [[end]]" if path else None
    return Node(path, text, reply, (), judged(f"t/{path}", verdict, *votes))


def tree(id: str, nodes: list[Node], accepted: str | None) -> Tree:
    stop = "depth" if accepted is None else "accepted"
    return Tree(id, id, f"{id}/0", tuple(nodes), accepted, accepted or "", stop, Cost())


ROOT = node("", "bad")
DEEP = tree("a", [ROOT, node("0", "poor"), node("1", None), node("0.1", "good", True)], "0.1")
FLAT = tree("b", [ROOT, node("0", "fine", True)], "0")
NONE = tree("c", [ROOT, node("0", "poor")], None)
SAME = tree("d", [ROOT, node("0", "bad", True)], "0")


SAMPLED = {f"{id}/0": response(f"{id}/0", "bad") for id in "abcd"}


def test_pairs_are_the_accepted_node_against_the_root():
    assert preference_pairs(refined(BY_ID, SAMPLED, [DEEP, FLAT, NONE, SAME])) == [
        # two refinements deep, yet the rejected answer is the root's
        PreferencePair("a", "a", answer_messages("ask a"), "good", "bad", ("rewritten",)),
        PreferencePair("b", "b", answer_messages("ask b"), "fine", "bad", ("rewritten",)),
        # NONE was not accepted; SAME changed nothing
    ]
    assert preference_pairs(refined(BY_ID, SAMPLED, [])) == []


START = {"kind": "starts_with", "phrase": "To begin"}
SHORT = {"kind": "word_count", "low": None, "high": 6}
WOLF = "The wolf is a shy animal that hunts at night in the dark woods of the north."
LED = f"To begin, t{WOLF[1:]}"


@pytest.mark.parametrize(
    ("rule", "rejected", "finished", "chosen", "wanted"),
    [
        (START, WOLF, True, LED, ()),
        (START, WOLF, False, LED, ("cut off",)),
        (START, WOLF, True, "To begin, the wolf is a shy animal.", ("shorter",)),
        (START, "The wolf is a shy animal that.", True, LED, ("longer",)),
        (START, WOLF, True, "To begin: wolves live with a family and raise their young together "
         "until spring comes round.", ("rewritten",)),
        # Where a length is asked for, or the answer was none, that is what was mended.
        (SHORT, WOLF, True, "The wolf is a shy animal.", ()),
        (START, "To begin. To begin. To begin.", True, LED, ()),
        (START, "To begin. To begin. To begin.", False, LED, ()),  # it would never have ended
        (START, "To begin.", False, LED, ("cut off",)),
    ],
)  # fmt: skip
def test_interference_is_what_differs_beside_what_was_mended(
    rule: dict[str, object], rejected: str, finished: bool, chosen: str, wanted: tuple[str, ...]
):
    prompt = Prompt("p", "Describe a wolf.", (rule,), complete=True, topic="a wolf")
    answer = Response("p/0", "p", rejected, finished, Cost())
    assert interference(prompt, answer, chosen) == wanted


@pytest.mark.parametrize(
    ("verdict", "votes", "wanted", "why"),
    [
        (True, (Y, Y), False, "all agree"),
        (True, (Y, N, Y), True, "one vote differs"),
        (False, (N, Y, N), True, "one vote differs"),
        (True, (Y, BLUR), False, "an unreadable vote differs from nothing"),
        (False, (Y, Y), True, "all differ from the program"),
        (True, (), False, "no votes"),
        (True, (BLUR,), False, "none readable"),
    ],
)
def test_contested(verdict: bool, votes: tuple[Vote, ...], wanted: bool, why: str):
    assert contested(judged("x", verdict, *votes)) is wanted, why


def examples(
    trees: list[Tree],
    responses: list[Response] | None = None,
    judgements: dict[str, Judgement] | None = None,
    seed: object = 0,
    **caps: int,
) -> list[TrainingExample]:
    return refiner_examples(BY_ID, responses or [], judgements or {}, trees, Rft(**caps), seed)


def test_a_refinement_is_the_two_turn_chat_of_the_accepted_node():
    (example,) = examples([DEEP, NONE])
    # the accepted node's parent is "0", whose answer is "poor"
    assert example.kind == "refinement"
    assert example.prompt == refine_messages("ask a", "poor", "critique of t/0")
    assert example.completion == "Mend it. [[start]] good [[end]]"
    assert example.every_reply, "the parent's critique, a No, is a target too (F1)"


def test_a_refinement_that_copies_is_no_example():
    assert examples([SAME]) == []
    nodes = [ROOT, node("0", "poor"), node("0.0", "poor", True)]
    assert examples([tree("a", nodes, "0.0")]) == [], "its parent's text again"
    nodes = [ROOT, node("0", "poor"), node("0.0", "bad", True)]
    assert examples([tree("a", nodes, "0.0")]) == [], "the failed answer again"


def test_critiques_are_of_contested_nodes_and_answers():
    grown = tree(
        "a",
        [
            node("", "bad", False, N, Y),
            node("0", "poor", False, N, Y, N),
            node("1", "good", True, Y, N, Y),
            node("2", "clear", True, Y, Y),
            node("0.0", "torn", None, Y, N),
            node("0.1", None),
        ],
        None,
    )
    answers = [response("b/0", "one"), response("b/1", "two"), response("b/2", "three")]
    votes = {"b/0": (True, Y, Y, N), "b/1": (False, N, N, Y), "b/2": (None, Y, N)}
    judgements = {id: judged(id, *rest) for id, rest in votes.items()}
    found = examples([grown], [*answers, response("b/3")], judgements)
    # The root is a sampled answer, so the tree does not count it; "clear" is not contested;
    # "torn" and b/2 are ties; b/3 was never judged.
    assert [(e.kind, e.prompt, e.completion) for e in found] == [
        ("tree critique", judge_messages("ask a", "good"), "critique of t/1"),
        ("tree critique", judge_messages("ask a", "poor"), "critique of t/0"),
        ("answer critique", judge_messages("ask b", "one"), "critique of b/0"),
        ("answer critique", judge_messages("ask b", "two"), "critique of b/1"),
    ]


def test_one_first_message_counts_once():
    twins = tree("a", [ROOT, *(node(str(n), "same", True, Y, Y, N) for n in range(3))], "2")
    other = dataclasses.replace(twins, id="b", prompt_id="b")
    found = examples([twins, other])
    # per prompt: one refinement, and one critique for three equal nodes, the first of them
    assert [e.kind for e in found] == ["refinement"] * 2 + ["tree critique"] * 2
    assert [e.completion for e in found[2:]] == ["critique of t/0"] * 2


def test_a_first_message_of_an_earlier_group_is_not_asked_again():
    """The accepted refinement's chat holds the root's judgement, and an answer may be a node's."""
    grown = tree("a", [node("", "bad", False, N, Y), node("0", "good", True, Y, Y, N)], "0")
    answers = [response("a/0", "bad"), response("a/1", "good"), response("a/2", "worse")]
    judgements = {r.id: judged(r.id, r.text == "good", Y, N) for r in answers}
    found = examples([grown], answers, judgements)
    assert [(e.kind, e.prompt[0].content) for e in found] == [
        ("refinement", judge_messages("ask a", "bad")[0].content),
        ("tree critique", judge_messages("ask a", "good")[0].content),
        ("answer critique", judge_messages("ask a", "worse")[0].content),
    ]


def renamed(name: str, old: Node) -> Node:
    """The same node with another text, so that no two trees hold the same one."""
    return dataclasses.replace(old, text=f"{old.text} {name}")


def many(count: int) -> tuple[list[Tree], list[Response], dict[str, Judgement]]:
    """Accepted trees with ``count`` contested nodes of each verdict in each; so with answers."""
    nodes = [ROOT]
    for n in range(count):
        nodes.append(node(str(2 * n), f"good {n}", True, Y, Y, N))
        nodes.append(node(str(2 * n + 1), f"poor {n}", False, N, N, Y))
    trees = [dataclasses.replace(tree(id, nodes, "0"), id=f"{id}{n}") for n in range(4)
             for id in ("a", "b", "c")]  # fmt: skip
    trees = [dataclasses.replace(t, nodes=tuple(renamed(t.id, m) for m in t.nodes)) for t in trees]
    answers = [response(f"d/{n}") for n in range(2 * count)]
    verdicts = {r.id: n % 2 == 0 for n, r in enumerate(answers)}
    judgements = {id: judged(id, verdict, Y, N) for id, verdict in verdicts.items()}
    return trees, answers, judgements


def sizes(found: list[TrainingExample]) -> list[int]:
    """Examples of each group: refinements, tree yes, tree no, answer yes, answer no."""
    groups = [
        [e for e in found if e.kind == "refinement"],
        [e for e in found if e.kind == "tree critique" and "good" in e.prompt[0].content],
        [e for e in found if e.kind == "tree critique" and "poor" in e.prompt[0].content],
        [e for e in found if e.kind == "answer critique" and int(e.completion[-1]) % 2 == 0],
        [e for e in found if e.kind == "answer critique" and int(e.completion[-1]) % 2 == 1],
    ]
    assert [e for group in groups for e in group] == found, "in the order of the groups"
    return [len(group) for group in groups]


def test_each_group_has_its_cap():
    trees, answers, judgements = many(4)
    # 12 accepted trees, with one critique of each verdict each; 4 answers of each verdict
    assert sizes(examples(trees, answers, judgements)) == [12, 12, 12, 4, 4]
    caps = {
        "refinements": 2,
        "tree_positive": 7,
        "tree_negative": 5,
        "answer_positive": 3,
        "answer_negative": 1,
    }
    assert sizes(examples(trees, answers, judgements, **caps)) == [2, 7, 5, 3, 1]
    assert examples(trees, answers, judgements, **dict.fromkeys(caps, 0)) == []


def test_what_is_drawn_follows_from_the_seed_and_keeps_its_order():
    trees, answers, judgements = many(4)
    everything = examples(trees, answers, judgements)
    drawn = []
    for seed in (1, 1, 2):
        found = examples(trees, answers, judgements, seed, tree_positive=6, tree_negative=6)
        places = [everything.index(example) for example in found]
        assert places == sorted(places)
        drawn.append(places)
    assert drawn[0] == drawn[1] != drawn[2]


def test_ids_are_unique_and_come_from_coordinates():
    # Sampled answer "a/0" and tree node "a/0" are both judged under the id "a/0", and that node
    # may be the accepted one: three examples, which a stage file must tell apart.
    root = Node("", "bad", None, (), judged("a/1", False, N, Y))
    child = Node("0", "good", "[[start]] good [[end]]", (), judged("a/0", True, Y, N, Y))
    found = examples(
        [tree("a", [root, child], "0")], [response("a/0", "odd")], {"a/0": judged("a/0", False, Y)}
    )
    assert [e.kind for e in found] == ["refinement", "tree critique", "answer critique"]
    assert [e.id for e in found] == ["a/0/refinement", "a/0/tree critique", "a/0/answer critique"]
