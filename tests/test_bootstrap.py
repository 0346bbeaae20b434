"""The warm-up's lessons: right by construction, balanced, and the released rows' shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spar_lite import bootstrap, constraints
from spar_lite.constraints import EndsWith, StartsWith
from spar_lite.errors import RecipeError
from spar_lite.prompts import parse_refinement, parse_verdict
from spar_lite.records import Cost, Prompt, Response

WELL = {"kind": "starts_with", "phrase": "Well"}
ASK = Prompt("w-0", 'Describe tea. Begin your answer with "Well".', (WELL,), complete=True)


def answer(text: str, id: str = "w-0") -> Response:
    return Response(f"{id}/0", id, text, True, Cost())


@pytest.mark.parametrize("text", ["Tea is warm.", "Well, tea is warm."])
def test_lessons_hold_one_yes_one_no_and_one_right_refinement(text: str) -> None:
    """Whether the model's own answer fails (mended) or passes (spoiled), the rows are the same."""
    rows = {row.kind: row for row in bootstrap.lessons([ASK], [answer(text)], seed=0)}
    rule = StartsWith("Well")
    assert rule.check(rows["answer"].completion)
    assert parse_verdict(rows["judgement"].completion) is True
    ask, critique, _ = rows["refinement"].prompt
    assert ask.role == "user" and parse_verdict(critique.content) is False
    refined = parse_refinement(rows["refinement"].completion)
    assert refined is not None and rule.check(refined)
    assert rows["refinement"].every_reply and not rows["judgement"].every_reply
    assert bootstrap.actor_rows(rows.values()) == [rows["answer"]]
    assert len(bootstrap.refiner_rows(rows.values())) == 2


def test_an_answer_that_cannot_be_mended_gives_no_lesson() -> None:
    assert bootstrap.lessons([ASK], [answer("")], seed=0) == []
    assert bootstrap.lessons([ASK], [], seed=0) == []


def test_the_bad_text_differs_from_the_good_in_one_constraint_only() -> None:
    known = [StartsWith("Well"), EndsWith("That is all")]
    good, bad = bootstrap.good_and_bad(known, "Well: tea is warm. That is all.", seed=1) or ("", "")
    assert all(constraints.check_all(known, good))
    assert sorted(constraints.check_all(known, bad)) == [False, True]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Tea is warm. It also", "Tea is warm."),  # cut off by the token limit
        ("Tea is warm.", "Tea is warm."),
        ("tea is", "tea is"),  # all there is
        ('He said "tea."', 'He said "tea."'),
        ("  ", ""),
    ],
)
def test_whole_sentences(text: str, kept: str) -> None:
    assert bootstrap.whole_sentences(text) == kept


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_released_rows_are_told_apart_by_shape(tmp_path: Path) -> None:
    rows = [
        {"messages": [turn("user", "Hi"), turn("assistant", "Hello")]},
        {"messages": [turn("user", "Check"), turn("assistant", "Fine.\nFinal Judgement: Yes")]},
        {
            "messages": [
                turn("user", "Check"),
                turn("assistant", "Bad. Final Judgement: No"),
                turn("user", "Refine"),
                turn("assistant", "So.\n[[start]] x [[end]]"),
            ]
        },
    ]
    for name, text in (
        ("rows.jsonl", "\n".join(map(json.dumps, rows))),
        ("rows.json", json.dumps(rows)),
    ):
        file = tmp_path / name
        file.write_text(text)
        found = bootstrap.released_rows(file)
        assert [row.kind for row in found] == ["answer", "judgement", "refinement"]
        assert found[2].completion.startswith("So.") and len(found[2].prompt) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        '{"instruction": "a", "output": "b"}',
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "b"}]}',
    ],
)
def test_other_rows_are_an_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"rows\.jsonl"):
        bootstrap.released_rows(file)
