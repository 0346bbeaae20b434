"""The warm-up's lessons: right by construction, balanced, and the released rows' shape."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from spar_lite import constraints, lessons
from spar_lite.constraints.kinds import KINDS, EndsWith, StartsWith
from spar_lite.constraints.text import sentences
from spar_lite.data.prompts import builtin_prompts, requirements
from spar_lite.recipe import Prompts
from spar_lite.records import Cost, Prompt, Response, TrainingExample
from spar_lite.templates import parse_refinement
from spar_lite.templates.verdict import parse_verdict

WELL = {"kind": "starts_with", "phrase": "Well"}
TEXT = 'Describe {}. Begin your answer with "Well".'
ASK = Prompt("w-0", TEXT.format("tea"), (WELL,), complete=True, topic="tea")
RULE = StartsWith("Well")
WORDS = ("leaves", "herbs", "old men", "kings", "winter", "peace", "many lands", "mornings")
GOOD = "Well, tea is a warm drink made of leaves."
BARE = "Tea is a warm drink made of leaves."


def answer(text: str, k: int = 0, prompt: str = "w-0", finished: bool = True) -> Response:
    return Response(f"{prompt}/{k}", prompt, text, finished, Cost())


def texts(rows: list[TrainingExample]) -> tuple[list[str], list[str], list[str], list[Any]]:
    """(answers taught, texts judged with a Yes, with a No, (bad text, its refinement))."""
    answers = [row.completion for row in rows if row.kind == "answer"]
    passed, failed, mended = [], [], []
    for row in rows:
        shown = row.prompt[0].content.partition("<answer>\n")[2].removesuffix("\n</answer>")
        if row.kind == "judgement":
            assert not row.every_reply
            (passed if parse_verdict(row.completion) else failed).append(shown)
        if row.kind == "refinement":
            assert parse_verdict(row.prompt[1].content) is False and row.every_reply
            refined = parse_refinement(row.completion)
            assert refined is not None
            failed.append(shown)
            mended.append((shown, refined))
    return answers, passed, failed, mended


def test_a_model_is_taught_its_own_good_answers_and_their_small_corruptions() -> None:
    """What it said well is not touched; the bad texts miss the phrase, or are no answer."""
    also = "Well, most people drink tea with a little milk."
    said = [answer(BARE, 0), answer(GOOD, 1), answer(also, 2), answer("", 3)]
    rows = lessons.lessons([ASK], said, seed=0, minimal=1)
    answers, passed, bad, mended = texts(rows)
    assert answers == [GOOD, also], "its own words, the shorter first"
    assert passed == [GOOD, also, "Well: Tea is a warm drink made of leaves."]
    rule = requirements(ASK)[-1]
    missing, thin, _ = bad
    assert not RULE.check(missing) and rule.check(missing)
    assert RULE.check(thin) and not rule.check(thin)
    assert mended[-1] == (BARE, passed[2]), "what it said badly, where a repair helps"
    assert lessons.actor_rows(rows) == [row for row in rows if row.kind == "answer"]
    assert len(lessons.refiner_rows(rows)) == 6


@pytest.mark.parametrize(
    ("bad", "share"),
    [
        (GOOD.replace("Well, tea", "Tea"), 1.0),
        ("Well.", 1.0),  # the phrase alone is something to go on from
        (f"{GOOD} {GOOD}", 0.5),
        ("Well, coffee is brewed of beans.", 3 / 6),
        ("My dog sleeps.", 0.0),
        ("", 0.0),
    ],
)
def test_what_a_good_text_keeps_of_a_bad_one(bad: str, share: float) -> None:
    assert lessons.kept_share(bad, GOOD) == pytest.approx(share)


def test_where_nothing_is_kept_the_no_stands_alone() -> None:
    said = [answer(f"Well, tea is a warm drink of {word}.", n) for n, word in enumerate(WORDS)]
    dogs = replace(ASK, id="w-1", text=TEXT.format("dogs"), topic="dogs")
    said.append(answer("Well, my dogs run all day long.", 0, "w-1"))
    single = 0
    for seed in range(20):
        rows = lessons.lessons([ASK, dogs], said, seed)
        _, _, failed, mended = texts(rows)
        assert len(failed) == 4
        refined = dict(mended)
        for bad in failed:
            single += bad not in refined
        assert all(lessons.kept_share(b, g) >= lessons.REFINABLE for b, g in mended)
    assert single > 0, "the other topic's answers"


def test_without_a_good_answer_one_that_a_repair_makes_good_is_taught() -> None:
    answers, _, _, mended = texts(lessons.lessons([ASK], [answer(BARE)], seed=0))
    assert answers == ["Well: Tea is a warm drink made of leaves."]
    assert (BARE, answers[0]) in mended


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Coffee is a warm drink made of beans.",  # another topic: no repair makes it an answer
        "Tea.",
        'The first words of your answer must be "Well".',
    ],
)
def test_what_no_repair_makes_an_answer_gives_no_lesson(text: str) -> None:
    assert lessons.lessons([ASK], [answer(text)], seed=0) == []
    assert lessons.lessons([ASK], [], seed=0) == []


def test_every_row_is_right_and_no_canned_sentence_comes_more_than_rarely() -> None:
    """Of every kind: good texts meet everything, bad ones do not, and texts are the model's own."""
    facts = [
        "{} gives people joy in many ways every day.",
        "I like {} because it makes the long day shorter and better.",
        "Many old books tell of {} and of the people who love it.",
        "{} costs little, lasts for years and never grows dull",
        "Here is something about {}: nobody knows where it first came from.",
    ]
    kinds = tuple(kind for kind, rule in KINDS.items() if not rule.standalone)
    prompts = builtin_prompts(Prompts(kinds=kinds, per_prompt=(1, 2)), 0, "warmup", 120)
    said = [
        answer(fact.format(p.topic), k, p.id, finished=fact.endswith("."))
        for p in prompts
        for k, fact in enumerate(facts)
    ]
    rows = lessons.lessons(prompts, said, seed=0, minimal=1)
    by_id = {p.id: p for p in prompts}
    for row in rows:
        known = requirements(by_id[row.id.partition("/")[0]])
        answers, passed, failed, mended = texts([row])
        for good in (*answers, *passed, *(refined for _, refined in mended)):
            assert all(constraints.check_all(known, good)), (known, good)
        for bad in failed:
            assert not all(constraints.check_all(known, bad)), (known, bad)
    assert len({row.id for row in rows}) == len(rows)
    own = {s for fact in facts for p in prompts for s in sentences(fact.format(p.topic))}
    good = [row.completion for row in rows if row.kind == "answer"]
    added = Counter(s for text in good for s in sentences(text) if s not in own)
    del added["P.S."]  # which is asked for
    assert len(good) > 80 and max(added.values()) <= len(good) // 20, added.most_common(3)


def test_the_bad_text_differs_from_the_good_in_one_constraint_only() -> None:
    known = [StartsWith("Well"), EndsWith("That is all")]
    good, bad = lessons.good_and_bad(known, "Well: tea is warm. That is all.", seed=1) or ("", "")
    assert all(constraints.check_all(known, good))
    assert sorted(constraints.check_all(known, bad)) == [False, True]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Tea is warm. It also", "Tea is warm."),  # cut off by the token limit
        ("Tea is warm.", "Tea is warm."),
        ("Tea:\n1. It is warm.\n2. ", "Tea:\n1. It is warm."),  # an item that was only numbered
        ("tea is", "tea is"),  # all there is
        ('He said "tea."', 'He said "tea."'),
        ("  ", ""),
    ],
)
def test_whole_sentences(text: str, kept: str) -> None:
    assert lessons.whole_sentences(text) == kept
