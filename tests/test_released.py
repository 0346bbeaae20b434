"""The released data: its shapes told apart, and rebuilt with the templates of the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spar_lite.data.released import judged_case, released_pairs, released_rows
from spar_lite.errors import RecipeError
from spar_lite.templates import REFINE, judge_messages, parse_refinement, refine_messages
from spar_lite.templates.verdict import parse_verdict

ASKED = "Sing, in small letters."
# The released prompts' shape, in words of ours but for what is looked for.
JUDGE_AS_PAPER = (
    "Judge the Output by the given Prompt.\n\nPrompt: \u201c{}\u201d\n\nOutput: \u201c{}\u201d\n\n"
    "Please carefully judge each constraint, in this format:\nStep-by-step verification: xxx\n"
    "Final Judgement (if the Output accurately follows the Prompt): (Yes or No)"
)
REFINE_AS_PAPER = "Refine the Output.\n    Final Refined Output: [[start]] xxx [[end]]"
CLOSING = "Final Judgement (if the Output accurately follows the Prompt): "
NO = f"Step-by-step verification: it shouts.\n{CLOSING}No"
MENDED = (
    "Reflection on how to refine the Output: quieter.\nFinal Refined Output: [[start]] la [[end]]"
)


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": turns, **more}


def judged(answer: str = "LA", reply: str = NO) -> dict[str, Any]:
    return chat(JUDGE_AS_PAPER.format(ASKED, answer), reply)


def refined(answer: str = "LA", critique: str = NO, reply: str = MENDED) -> dict[str, Any]:
    return chat(JUDGE_AS_PAPER.format(ASKED, answer), critique, REFINE_AS_PAPER, reply)


def pair(chosen: Any = "la", rejected: Any = "LA", *, ask: str = ASKED) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    return chat(ask) | {
        side: {"role": "assistant", "content": text} if isinstance(text, str) else text
        for side, text in sides.items()
    }


def array(path: Path, *rows: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=4, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_rows_are_rebuilt_with_the_prompts_that_the_loop_asks_with(tmp_path: Path) -> None:
    yes = NO.replace("shouts", "does not shout").replace("): No", "): Yes")
    rows = [chat(ASKED, "la la"), judged(), judged("la", yes), refined()]
    source = array(tmp_path / "sft.json", *rows)
    (answer, no, good, mended), left_out = released_rows(source)
    assert not left_out
    assert (answer.kind, answer.prompt[0].content, answer.completion) == ("answer", ASKED, "la la")
    assert (no.kind, no.prompt) == ("judgement", judge_messages(ASKED, "LA"))
    assert no.completion == "Step-by-step verification: it shouts.\nFinal Judgement: No"
    assert good.prompt == judge_messages(ASKED, "la") and parse_verdict(good.completion) is True
    assert (mended.kind, mended.every_reply) == ("refinement", True), "the critique is a target too"
    assert mended.prompt == refine_messages(ASKED, "LA", no.completion)
    assert mended.prompt[-1].content == REFINE and parse_refinement(mended.completion) == "la"


def test_the_papers_own_prompts_stay_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = [chat(ASKED, "la la"), judged(), refined()]
    found, left_out = released_rows(array(tmp_path / "sft.json", *rows), "paper")
    assert not left_out and [row.kind for row in found] == ["answer", "judgement", "refinement"]
    for row, example in zip(rows, found, strict=True):
        turns = [turn["content"] for turn in row["messages"]]
        assert [*(m.content for m in example.prompt), example.completion] == turns
    assert found[2].every_reply


def test_what_cannot_be_rebuilt_is_left_out_and_counted(tmp_path: Path) -> None:
    twice = JUDGE_AS_PAPER.format("Say \u201ca\u201d\n\nOutput: \u201cb\u201d.", "LA")
    rows = [
        chat(ASKED, "la"),
        judged(reply="It shouts."),  # no verdict: it must not become an answer to learn
        chat(twice, NO),  # where does the instruction end?
        chat("Is it right?", "So.\nFinal Judgement: Yes"),  # a judge that asks in other words
        refined(reply="la"),
        refined(critique=NO.replace("): No", "): Yes")),
        refined(answer="la"),
        chat("Hi", "Hello", "How are you?", "Fine."),
        chat(ASKED, " "),
        pair(),
    ]
    found, left_out = released_rows(array(tmp_path / "rows.json", *rows))
    assert [row.kind for row in found] == ["answer"]
    assert left_out == {
        "judgements without a verdict": 1,
        "judgements of what cannot be told apart in the prompt": 2,
        "refinements that cannot be read": 1,
        "refinements of what was judged to be right": 1,
        "refinements that copy the answer": 1,
        "chats of several turns": 1,
        "empty": 1,
        "preference pairs (bootstrap.pairs trains on them)": 1,
    }
    with pytest.raises(RecipeError, match=r"has no rows to train on: 1 judgements without"):
        released_rows(array(tmp_path / "none.json", rows[1]))


def test_rows_in_our_own_templates_are_taken_as_they_are(tmp_path: Path) -> None:
    reply = "It shouts.\nFinal Judgement: No"
    judge = judge_messages(ASKED, "LA")[0].content
    rows = [chat(judge, reply), chat(judge, reply, REFINE, "So.\n[[start]] la [[end]]")]
    for templates in ("loop", "paper"):
        found, left_out = released_rows(array(tmp_path / "ours.json", *rows), templates)
        assert not left_out and [row.kind for row in found] == ["judgement", "refinement"]
        assert found[1].prompt == refine_messages(ASKED, "LA", reply)


@pytest.mark.parametrize(
    "text",
    [
        ASKED,
        "Prompt: \u201cSing\u201d",
        JUDGE_AS_PAPER.partition("Please")[0],
        "",
        "Output: \u201c",
    ],
)
def test_what_is_no_judge_prompt(text: str) -> None:
    assert judged_case(text) is None


def test_a_case_keeps_its_lines_and_quotes() -> None:
    ask, answer = 'Say \u201chi\u201d\n\nand "ho".', "\u201chi\u201d\n\nOutput: ho\n"
    assert judged_case(JUDGE_AS_PAPER.format(ask, answer)) == (ask, answer)
    straight = JUDGE_AS_PAPER.replace("\u201c", '"').replace("\u201d", '"').replace("\n\n", "\n ")
    assert judged_case(straight.format("Sing", "La")) == ("Sing", "La")


def test_a_folder_holds_rows_and_pairs(tmp_path: Path) -> None:
    array(tmp_path / "actor" / "dpo.json", pair(), pair("la la"))
    array(tmp_path / "refiner" / "rft.json", judged(), refined())
    rows, others = released_rows(str(tmp_path))
    assert [row.kind for row in rows] == ["judgement", "refinement"]
    assert others == {"preference pairs (bootstrap.pairs trains on them)": 2}
    pairs, others = released_pairs(str(tmp_path))
    assert [(p.chosen, p.rejected) for p in pairs] == [("la", "LA"), ("la la", "LA")]
    assert pairs[0].prompt[0].content == ASKED and len({p.id for p in pairs}) == 2
    assert others == {"without two answers (bootstrap.source trains on them)": 2}


def test_pairs_without_a_difference_are_counted_and_other_shapes_are_errors(
    tmp_path: Path,
) -> None:
    source = array(tmp_path / "a.json", pair(), pair("LA "), pair(" "))
    pairs, left_out = released_pairs(source)
    assert len(pairs) == 1 and left_out == {"with two equal answers": 1, "empty": 1}
    for bad in (
        pair(7),
        {"chosen": "a", "rejected": "b"},
        chat("a", "b", chosen="c", rejected="d"),
    ):
        with pytest.raises(RecipeError, match=r"b\.json row 1"):
            released_pairs(array(tmp_path / "b.json", bad))
    with pytest.raises(RecipeError, match="has no pairs: 1 with two equal answers"):
        released_pairs(array(tmp_path / "c.json", pair("LA")))


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
        released_rows(str(file))


def test_a_whole_data_set_of_the_hub_is_no_file() -> None:
    with pytest.raises(RecipeError, match="wanted hub:OWNER/NAME/PATH, the path of a file, found"):
        released_rows("hub:CCCCCC/SPaR")
