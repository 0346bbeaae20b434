"""Prompts from the built-in tasks and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spar_lite.errors import RecipeError
from spar_lite.instructions import builtin_prompts, iteration_prompts, read_prompts
from spar_lite.recipe import Prompts


def write(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


def test_builtin_iterations_share_no_prompt() -> None:
    settings = Prompts(count=5)
    first, second = (iteration_prompts(settings, 0, n) for n in (1, 2))
    assert [p.id for p in first] == [f"train-000{n}" for n in range(5)]
    assert not {p.text for p in first} & {p.text for p in second}
    assert all(p.complete and p.constraints for p in first)
    assert first == iteration_prompts(settings, 0, 1)


def test_splits_share_no_text() -> None:
    texts = [
        {p.text for p in builtin_prompts(Prompts(), 0, split, 20)}
        for split in ("warmup", "train", "heldout")
    ]
    assert len(set.union(*texts)) == 60


def test_a_file_of_prompts_is_dealt_out_in_blocks(tmp_path: Path) -> None:
    rule = {"kind": "no_commas"}
    file = write(tmp_path, {"text": "a"}, {"id": "x", "text": "b", "constraints": [rule]})
    settings = Prompts(source=str(file), count=1)
    (first,), (second,) = (iteration_prompts(settings, 0, n) for n in (1, 2))
    assert (first.id, first.text, first.constraints) == ("prompt-000001", "a", ())
    assert (second.id, second.constraints, second.complete) == ("x", (rule,), False)
    with pytest.raises(RecipeError, match="iteration 3 wants prompts 3 to 3"):
        iteration_prompts(settings, 0, 3)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"instruction": "a"}, "text"),
        ({"text": " "}, "text"),
        ({"text": "a", "constraint": []}, "constraint"),
        ({"text": "a", "id": "x/0"}, "/"),
        ({"text": "a", "constraints": [{"kind": "no_comas"}]}, "no_commas"),
        ({"text": "a\ud800"}, "surrogate"),
    ],
)
def test_a_bad_row_is_named(row: object, word: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prompts\.jsonl line 1") as error:
        read_prompts(write(tmp_path, row))
    assert word in str(error.value)


def test_an_id_twice_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="twice"):
        read_prompts(write(tmp_path, {"id": "a", "text": "x"}, {"id": "a", "text": "y"}))
    with pytest.raises(RecipeError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.jsonl")


def test_an_unknown_kind_is_the_recipes_fault() -> None:
    with pytest.raises(RecipeError, match="no_commas"):
        builtin_prompts(Prompts(kinds=("no_comas",)), 0, "train", 3)
