"""Records keep their shape through JSON; ids and seeds follow from coordinates alone."""

import dataclasses
import json
import subprocess
import sys

import pytest

from spar_lite import records
from spar_lite.records import (
    Cost,
    Judgement,
    Message,
    Node,
    PreferencePair,
    Prompt,
    Response,
    TrainingExample,
    Tree,
    Vote,
    from_json,
    stable_seed,
    to_json,
)

VOTES = (Vote("Fine. Final Judgement: Yes", True), Vote("", None), Vote("no", False))
JUDGED = Judgement("p/0", VOTES, 0.5, None, None, None, (True, False), Cost(3, 40, 9))
FAILED = Judgement("p", (), 0.0, False, "Too long.", "program", (), Cost())
ROOT = Node("", "An answer.\u2028\u8336", None, (), FAILED)
CHILD = Node("0", "Better.", "[[start]] Better. [[end]]", ("hm", ""), JUDGED)
EMPTY = Node("0.2", None, None, ("a", "b", "c"), None)
CHAT = (Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Hi."))

RECORDS = [
    *CHAT,
    Prompt("p", "Say hi."),
    Prompt("p", "Say hi.", ({"kind": "word_count", "low": 1, "high": None},), True),
    Cost(1, 2, 3),
    Response("p/0", "p", "Hi.", False, Cost(1, 5, 1)),
    *VOTES,
    JUDGED,
    FAILED,
    ROOT,
    CHILD,
    EMPTY,
    Tree("p", "p", "p/3", (ROOT, CHILD, EMPTY), "0", "0", "accepted", Cost(9, 8, 7)),
    Tree("p", "p", "p/3", (ROOT,), None, "", "no child", Cost()),
    PreferencePair("p", "p", CHAT, "Better.", "Worse."),
    TrainingExample("p/0", "tree critique", CHAT[:1], "Fine."),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_json(record: object):
    back = from_json(type(record), json.dumps(to_json(record)))
    assert back == record
    assert repr(back) == repr(record), "tuples stay tuples, True stays True"


def test_every_record_is_tried_frozen_and_slotted():
    kinds = {value for value in vars(records).values() if dataclasses.is_dataclass(value)}
    assert kinds == {type(record) for record in RECORDS}
    for kind in kinds:
        assert hasattr(kind, "__slots__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROOT.text = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "data",
    [
        {"calls": 1, "price": 2},
        {"calls": "1"},
        {"calls": True},
        {"calls": 1.5},
        {"calls": 1, "prompt_tokens": 2, "completion_tokens": 3, "4": 4},
        [],
        None,
        "calls",
        7,
    ],
)
def test_data_of_another_shape_is_an_error(data: object):
    with pytest.raises(ValueError) as error:
        from_json(Cost, json.dumps(data))
    assert "\n" not in str(error.value)


def test_a_missing_field_without_default_is_an_error():
    with pytest.raises(ValueError, match="verdict: Field required"):
        from_json(Vote, '{"text": "x"}')
    assert from_json(Prompt, '{"id": "p", "text": "x"}') == Prompt("p", "x")


def test_costs_add_up():
    assert Cost(1, 20, 3) + Cost(2, 5, 7) == Cost(3, 25, 10)
    assert sum([Cost(1, 1, 1)] * 3, Cost()) == Cost(3, 3, 3)


@pytest.mark.parametrize(
    ("path", "depth"), [("", 0), ("0", 1), ("12", 1), ("0.2", 2), ("1.0.2", 3)]
)
def test_depth_counts_refinements(path: str, depth: int):
    assert Node(path, "x", None, (), None).depth == depth


def test_a_trees_depth_counts_only_nodes_with_an_answer():
    tree = Tree("p", "p", "p/3", (ROOT, CHILD, EMPTY), "0", "0", "accepted", Cost())
    # "0" is one refinement deep; "0.2" would be two, but could not be read
    assert tree.depth == 1
    assert tree.node("0") is CHILD
    assert tree.node("") is ROOT


def test_seeds_are_pinned():
    # The first 4 bytes of blake2b(digest 4) of "7\\x1fp/0\\x1f3", halved. If this number changes,
    # resumed runs draw other samples than the runs they continue.
    assert stable_seed(7, "p/0", 3) == 762959476


def test_seeds_part_their_coordinates():
    coordinates = [(1, 23), (12, 3), (123,), ("1", "2", "3"), ("1 2", 3), (3, 2, 1), (0,)]
    assert len({stable_seed(*c) for c in coordinates}) == len(coordinates)
    assert stable_seed("p", 1) == stable_seed("p", "1"), "a coordinate is its text"
    assert all(0 <= stable_seed(n) < 2**31 for n in range(1000))


def test_seeds_are_the_same_in_every_process():
    code = "from spar_lite.records import stable_seed; print(stable_seed('p/0', 'x'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(filter(None, sys.path)) or "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert found == {f"{stable_seed('p/0', 'x')}\n"}
