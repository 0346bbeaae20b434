"""Composed tasks: the same for the same seed, apart between splits, without conflict."""

import itertools

import pytest

from spar_lite.constraints import (
    FORMS,
    KINDS,
    SPLITS,
    TOPICS,
    VALUES,
    Constraint,
    compose,
    conflict,
    from_json,
    topics_of,
)
from spar_lite.constraints.tasks import BRIEF_FORMS, OPEN_FORMS, STORY_FORMS
from spar_lite.records import Prompt

EVERY = tuple(KINDS)
FIRST = Prompt(
    "train-0000",
    'Say in one sentence what is good about a wall clock. Begin your answer with "Today".',
    ({"kind": "starts_with", "phrase": "Today"},),
    complete=True,
    topic="a wall clock",
)


def test_enough_topics_and_forms() -> None:
    assert len(set(TOPICS)) == len(TOPICS) >= 120
    assert len(set(FORMS)) == len(FORMS) >= 8
    assert all("{topic}" in form for form in (*FORMS, *STORY_FORMS))


def test_splits_share_no_topic_and_leave_none_out() -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(topics_of(one)) & set(topics_of(other))
    assert sorted(t for split in SPLITS for t in topics_of(split)) == sorted(TOPICS)


def test_same_seed_same_tasks() -> None:
    first = compose(3, 80, kinds=EVERY)
    assert first == compose(3, 80, kinds=EVERY)
    assert first != compose(4, 80, kinds=EVERY)
    assert [task.id for task in first[:2]] == ["train-0000", "train-0001"]
    # Written down, so that a change of the drawing is noticed: published runs depend on it.
    assert compose(0, 1, kinds=("starts_with",), per_prompt=(1, 1)) == [FIRST]


def test_start_continues_the_same_series() -> None:
    assert compose(3, 30, kinds=EVERY, start=50) == compose(3, 80, kinds=EVERY)[50:]
    assert compose(3, 0, kinds=EVERY) == []


@pytest.mark.parametrize("split", SPLITS)
def test_many_tasks_keep_the_promises(split: str) -> None:
    tasks = compose(2, 600, kinds=EVERY, per_prompt=(1, 3), split=split)
    assert len({task.text for task in tasks}) == len({task.id for task in tasks}) == 600
    assert {c["kind"] for task in tasks for c in task.constraints} == set(KINDS)
    assert {len(task.constraints) for task in tasks} == {1, 2, 3}
    for task in tasks:
        rules = rules_of(task)
        assert not any(conflict(a, b) for a, b in itertools.combinations(rules, 2))
        for constraint in rules:
            assert any(phrasing in task.text for phrasing in constraint.phrasings())
        assert opening(task) in allowed_openings(task, split)


def rules_of(task: Prompt) -> list[Constraint]:
    return [from_json(data) for data in task.constraints]


def opening(task: Prompt) -> str:
    """The task's text before its first constraint."""
    phrasings = [p for c in rules_of(task) for p in c.phrasings() if p in task.text]
    return task.text[: min(task.text.index(phrasing) for phrasing in phrasings)].strip()


def allowed_openings(task: Prompt, split: str) -> set[str]:
    if any(constraint.standalone for constraint in rules_of(task)):
        return {""}
    if any(constraint.kind == "story_bookends" for constraint in rules_of(task)):
        forms = STORY_FORMS
    else:
        # "Write one sentence" would quarrel with "exactly 3 sentences".
        roomy = any(constraint.roomy for constraint in rules_of(task))
        forms = OPEN_FORMS if roomy else OPEN_FORMS + BRIEF_FORMS
    return {form.format(topic=topic) for form in forms for topic in topics_of(split)}


def test_no_text_is_in_two_splits() -> None:
    texts = [
        {task.text for task in compose(5, 150, kinds=("char_sequence", "no_commas"), split=split)}
        for split in SPLITS
    ]
    for one, other in itertools.combinations(texts, 2):
        assert not one & other


def test_a_keyword_is_not_in_the_topic() -> None:
    kinds = ("keyword_include", "keyword_exclude")
    for task in compose(2, 400, kinds=kinds, per_prompt=(1, 1)):
        assert task.constraints[0]["word"] not in task.topic.lower().split()


def test_held_out_values() -> None:
    for split in SPLITS:
        starts = VALUES.part(heldout=split == "heldout").starts
        for task in compose(1, 50, kinds=("starts_with",), per_prompt=(1, 1), split=split):
            assert task.constraints[0]["phrase"] in starts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("start_with",)}, 'Did you mean "starts_with"'),
        ({"kinds": EVERY, "split": "heldut"}, 'Did you mean "heldout"'),
        ({"kinds": ()}, "at least one kind"),
        ({"kinds": EVERY, "per_prompt": (2, 1)}, "per_prompt"),
        ({"kinds": ("no_commas",), "per_prompt": (2, 2)}, "allow more kinds"),
    ],
)
def test_bad_requests_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(1, 3, **arguments)  # type: ignore[arg-type]


def test_a_spent_supply_is_an_error_not_a_loop() -> None:
    with pytest.raises(ValueError, match="ask for fewer tasks"):
        compose(1, 5000, kinds=("no_commas",), per_prompt=(1, 1), split="heldout")
