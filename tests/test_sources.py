"""Prompt files as people have them: chats, typed parts, second columns, encodings, empty rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spar_lite.data.files import listed
from spar_lite.data.prompts import iteration_prompts
from spar_lite.data.sources import read_source
from spar_lite.errors import RecipeError
from spar_lite.evaluation.verified import _rows
from spar_lite.recipe import Prompts

JUDGED = (
    "Prompt: \u201cSing.\u201d\n\nOutput: \u201cLa.\u201d\n\n"
    "Please carefully judge it.\nFinal Judgement: (Yes or No)"
)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path: Path | str, **settings: Any) -> list[str]:
    return [prompt.text for prompt in read_source(Prompts(source=str(path), **settings))]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"conversations": ["Name a tree.", "Oak."], "source": "x"}, "conversations"),  # LIMA
        ({"id": "0", "data": ["Name a tree.", "Oak."]}, "data"),  # UltraChat
        ({"conversations": [{"from": "human", "value": "Name a tree."}]}, "conversations"),
        ({"conversations": [{"from": "Human", "value": " Name a tree. "}]}, "conversations"),
        (
            {"m": [{"role": "user", "content": [{"type": "text", "text": "Name a tree."}]}]},
            "m",
        ),
        ({"m": {"role": "user", "content": "Name a tree."}}, "m"),  # one turn without its list
        ({"content": [{"type": "input_text", "text": "Name a tree."}]}, "content"),
        (
            {
                "m": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Name a tree."},
                    {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
                ]
            },
            "m",
        ),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".JSONL", ".json"])
def test_chats_of_every_usual_shape_give_their_first_user_turn(
    row: dict[str, Any], column: str, ending: str, tmp_path: Path
) -> None:
    assert texts(lines(tmp_path / f"rows{ending}", row), column=column) == ["Name a tree."]


def test_rows_without_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    chats: list[Any] = ["Name a tree.", None, "", "  ", [], "a\ud800", "Name a bird.", picture]
    chats += [[{"role": "assistant", "content": "x"}], [{"role": "user", "content": None}], JUDGED]
    file = lines(tmp_path / "rows.jsonl", *({"m": chat} for chat in chats))
    left_out: Counter[str] = Counter()
    found = read_source(Prompts(source=str(file), column="m"), left_out)
    assert [(p.id, p.text) for p in found] == [
        ("prompt-000001", "Name a tree."),
        ("prompt-000007", "Name a bird."),  # numbered by its row, whatever is left out
    ]
    assert left_out == {
        "empty": 5,
        "damaged (half a character)": 1,
        "without a user's turn": 1,
        "not of text alone": 1,
        "judge prompts": 1,
    }
    _, passed = iteration_prompts(Prompts(source=str(file), column="m", count=2), 0, 1)
    assert passed == left_out


def test_one_empty_row_of_our_own_jsonl_refuses_nothing(tmp_path: Path) -> None:
    file = lines(tmp_path / "own.jsonl", {"text": "Sing."}, {"text": None}, {"text": " "})
    assert texts(file) == ["Sing."]
    with pytest.raises(RecipeError, match=r"no prompt, 1 empty\. Its columns are text, x: -o"):
        texts(lines(tmp_path / "none.jsonl", {"text": None, "x": 1}))


def test_other_columns_of_our_own_jsonl_are_passed_over_and_misspelt_ones_are_not(
    tmp_path: Path,
) -> None:
    assert texts(lines(tmp_path / "a.jsonl", {"text": "Sing.", "source": "wiki"})) == ["Sing."]
    with pytest.raises(RecipeError, match=r'unknown key "Constraint". Did you mean "constraints"'):
        texts(lines(tmp_path / "b.jsonl", {"text": "Sing.", "Constraint": []}))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_text(ending: str, tmp_path: Path) -> None:
    text = "text,x\r\nName a tree.,1\r\n" if ending == "csv" else '{"text": "Name a tree."}\n'
    (tmp_path / f"bom.{ending}").write_text(text, encoding="utf-8-sig")
    assert texts(tmp_path / f"bom.{ending}") == ["Name a tree."]


def test_a_byte_order_mark_in_benchmarks_is_none_either(tmp_path: Path) -> None:
    row = {"key": 1, "prompt": "Name a tree."}
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps(row) + "\n", encoding="utf-8-sig")
    assert [found for _, found in _rows(bench)] == [row]
    settings = Prompts(count=1, decontaminate=str(bench))
    assert len(iteration_prompts(settings, 0, 1)[0]) == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_encoding_is_asked_for_and_not_guessed(ending: str, tmp_path: Path) -> None:
    text = "text,x\nNommez un caf\u00e9.,1\n" if ending == "csv" else '{"text": "Un caf\u00e9."}\n'
    file = tmp_path / f"old.{ending}"
    file.write_bytes(text.encode("cp1252"))
    with pytest.raises(RecipeError, match=r"byte 0xe9 is not utf-8.* -o prompts.encoding=cp1252"):
        texts(file)
    assert texts(file, encoding="cp1252")[0].endswith("caf\u00e9.")
    with pytest.raises(RecipeError, match="there is no encoding 'cp125'"):
        texts(file, encoding="cp125")


def test_lists_and_folders_of_files(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", {"text": "Sing."}, {"text": "Hum."})
    two = tmp_path / "more, and more" / "two.csv"
    two.parent.mkdir()
    two.write_text('text\n"Name a tree,\nand a bird."\n')
    (two.parent / ".hidden.json").write_text("[")
    wanted = ["Sing.", "Hum.", "Name a tree,\nand a bird."]
    found = read_source(Prompts(source=(str(one), str(two))))
    assert [p.text for p in found] == wanted
    assert [p.id for p in found] == [f"prompt-{n:06d}" for n in (1, 2, 3)]
    assert texts(two.parent) == wanted[2:], "the comma is the folder's own"
    assert texts(f"{one}, {tmp_path}/one.jsonl".replace("one.jsonl,", "one.jsonl ,")) == [
        *wanted[:2],
        *wanted[:2],
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"empty holds no file that ends with \.jsonl"):
        texts(tmp_path / "empty")


def test_a_file_of_the_hub_is_one_of_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface_hub leaves it there; no network in tests."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "datasets--some--prompts", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit / "sft").mkdir(parents=True)
    lines(place / "snapshots" / commit / "sft" / "a.jsonl", {"text": "Sing."})
    assert texts("hub:some/prompts/sft/a.jsonl") == ["Sing."]
    with pytest.raises(RecipeError, match=r"b.jsonl cannot be fetched.*hf download some/prompts"):
        texts("hub:some/prompts/sft/b.jsonl")


# --- A second column ------------------------------------------------------------------------------

ALPACA = {"instruction": "Pick one.", "input": "spoon, fork", "output": "fork"}
DOLLY = {"instruction": "How long is it?", "context": "It spans 312 m.", "response": "312 m"}
SELF = {"instruction": "Pick one.", "instances": [{"input": "spoon, fork", "output": "fork"}]}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (ALPACA, "Pick one.\n\nspoon, fork"),
        (DOLLY, "How long is it?\n\nIt spans 312 m."),
        (SELF, "Pick one.\n\nspoon, fork"),
        (ALPACA | {"input": ""}, "Pick one."),
        (ALPACA | {"input": "<noinput>"}, "Pick one."),
        (ALPACA | {"input": None}, "Pick one."),
    ],
)
def test_what_an_instruction_speaks_of_is_appended(
    row: dict[str, Any], text: str, tmp_path: Path
) -> None:
    file = lines(tmp_path / "rows.json", row)
    assert texts(file, column="instruction") == [text]
    assert texts(file, column="instruction", input_column="none") == [row["instruction"]]


def test_beside_another_column_it_is_asked_for(tmp_path: Path) -> None:
    row = {"question": "How long is it?", "context": "It spans 312 m.", "title": "Bridge"}
    file = lines(tmp_path / "rows.json", row)
    asks = r'row 1|line 1: beside "question" stands "context".* -o prompts.input_column=context'
    with pytest.raises(RecipeError, match=asks):
        texts(file, column="question")
    for name, wanted in (("context", "\n\nIt spans 312 m."), ("none", ""), ("title", "\n\nBridge")):
        found = texts(file, column="question", input_column=name)
        assert found == [f"How long is it?{wanted}"]
    with pytest.raises(RecipeError, match=r'input_column is "contxt".*Did you mean "context"'):
        texts(file, column="question", input_column="contxt")
    with pytest.raises(RecipeError, match='stands "context"'):
        texts(lines(tmp_path / "own.jsonl", {"text": "How long is it?", "context": "312 m"}))


def test_a_list_longer_than_a_name_may_be_is_a_list() -> None:
    names = [f"{'long' * 20}-{n}.jsonl" for n in range(5)]
    assert listed(", ".join(names)) == names


def test_a_text_that_is_no_text_is_counted(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": {"value": "hidden"}}]
    file = lines(tmp_path / "rows.jsonl", {"text": parts}, {"text": "tea"})
    assert texts(file) == ["tea"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.csv", 'text,x\n"never closed,1\nb,2\n', "row 1 is not CSV: unexpected end of data"),
        ("rows.csv", "text,x\na, b,1\n", "row 1 has more cells than the 2 columns"),
        ("rows.json", "[1]", 'row 1: wanted {"column": "…"}, found 1'),
        ("rows.json", '[{"text": "a"},', "is not JSON: "),
        ("rows.json", '{"text": "a"}\n{"text": ', "line 2 is not JSON: "),
        ("rows.json", '{"text": 7}', "wanted text, or chat turns with a user's; found '7'"),
        (
            "rows.json",
            '{"instruction": "a"}',
            'column is "text", the columns are instruction. Set it: -o',
        ),
    ],
)
def test_what_is_no_row_is_named(name: str, text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(RecipeError) as error:
        texts(file)
    assert says in str(error.value) and str(file) in str(error.value)
