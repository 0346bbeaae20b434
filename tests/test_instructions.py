"""Prompts from the built-in tasks and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spar_lite.data.decontaminate import Benchmark
from spar_lite.data.prompts import builtin_prompts, iteration_prompts
from spar_lite.data.sources import read_source
from spar_lite.errors import RecipeError
from spar_lite.recipe import Prompts


def write(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


def test_builtin_iterations_share_no_prompt() -> None:
    settings = Prompts(count=5)
    first, passed = iteration_prompts(settings, 0, 1)
    second, later = iteration_prompts(settings, 0, 2, first)
    assert [p.id for p in first] == [f"train-000{n}" for n in range(5)]
    assert not {p.text for p in first} & {p.text for p in second}
    assert all(p.complete and p.constraints for p in first)
    assert (first, {}) == iteration_prompts(settings, 0, 1)
    assert not passed and later == {"dealt before": 5}


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
    (first,), _ = iteration_prompts(settings, 0, 1)
    (second,), _ = iteration_prompts(settings, 0, 2, [first])
    assert (first.id, first.text, first.constraints) == ("prompt-000001", "a", ())
    assert (second.id, second.constraints, second.complete) == ("x", (rule,), False)
    with pytest.raises(RecipeError, match=r"iteration 3 wants 1 prompts, .* has 0 left.* 2 dealt"):
        iteration_prompts(settings, 0, 3, [first, second])


def asks(tmp_path: Path, *words: str, ids: bool) -> Prompts:
    """A file that asks for each word, whose rows are ids of their own or numbers."""
    rows = [{"text": f"Describe {word}."} | ({"id": word} if ids else {}) for word in words]
    return Prompts(source=str(write(tmp_path, *rows)), count=2)


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "numbered"])
def test_a_file_that_has_grown_deals_what_was_not_dealt(ids: bool, tmp_path: Path) -> None:
    """New rows stand before and between the old ones: places say nothing."""
    first, _ = iteration_prompts(asks(tmp_path, "tea", "dogs", ids=ids), 0, 1)
    grown = asks(tmp_path, "cats", "tea", "snow", "dogs", "rain", ids=ids)
    second, passed = iteration_prompts(grown, 0, 2, first)
    assert [p.text for p in second] == ["Describe cats.", "Describe snow."]
    assert passed == {"dealt before": 1}
    with pytest.raises(RecipeError, match=r"has 1 left; passed over: 4 dealt before"):
        iteration_prompts(grown, 0, 3, first + second)


def test_an_edited_prompt_is_known_by_its_own_id_and_not_by_a_number(tmp_path: Path) -> None:
    for ids, wanted in ((True, ["rain", "wind"]), (False, ["tea", "rain"])):
        first, _ = iteration_prompts(asks(tmp_path, "tea", "dogs", ids=ids), 0, 1)
        settings = asks(tmp_path, "tea", "dogs", "rain", "wind", ids=ids)
        file = Path(settings.source if isinstance(settings.source, str) else "")
        file.write_text(file.read_text().replace("Describe tea", "Now describe tea"))
        found, _ = iteration_prompts(settings, 0, 2, first)
        assert [p.text.split()[-1].rstrip(".") for p in found] == wanted


def test_builtin_prompts_of_another_seed_have_the_same_ids_and_are_others() -> None:
    first, _ = iteration_prompts(Prompts(count=5), 0, 1)
    same, passed = iteration_prompts(Prompts(count=5), 0, 1, first)
    assert not {p.text for p in same} & {p.text for p in first} and passed["dealt before"] == 5
    other, passed = iteration_prompts(Prompts(count=5), 1, 1, first)
    assert [p.id for p in other] == [p.id for p in first] and not passed


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"instruction": "a"}, "text"),
        ({"text": "a", "constraint": []}, "constraint"),
        ({"text": "a", "id": "x/0"}, "/"),
        ({"text": "a", "constraints": [{"kind": "no_comas"}]}, "no_commas"),
    ],
)
def test_a_bad_row_is_named(row: object, word: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prompts\.jsonl line 1") as error:
        read_source(Prompts(source=str(write(tmp_path, row))))
    assert word in str(error.value)


def test_an_id_twice_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="twice"):
        file = write(tmp_path, {"id": "a", "text": "x"}, {"id": "a", "text": "y"})
        read_source(Prompts(source=str(file)))
    with pytest.raises(RecipeError, match="no such file"):
        read_source(Prompts(source=str(tmp_path / "nowhere.jsonl")))


def test_an_unknown_kind_is_the_recipes_fault() -> None:
    with pytest.raises(RecipeError, match="no_commas"):
        builtin_prompts(Prompts(kinds=("no_comas",)), 0, "train", 3)


# --- Other sources --------------------------------------------------------------------------------


def rows_in(tmp_path: Path, kind: str) -> Path:
    """Two rows of a foreign shape, as a file of each kind."""
    import datasets

    rows = datasets.Dataset.from_dict({"instruction": ["Describe tea.", "Sing."], "key": [7, 8]})
    file = tmp_path / f"rows.{kind}"
    write = {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind]
    write(str(file))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_are_mapped(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = rows_in(tmp_path, kind)
    settings = Prompts(source=str(file), column="instruction", id_column="key")
    assert [(p.id, p.text) for p in read_source(settings)] == [
        ("7", "Describe tea."),
        ("8", "Sing."),
    ]
    wrong = Prompts(source=str(file), column="instructions")
    with pytest.raises(RecipeError, match=r"columns are instruction, key\. Did you mean \"instr"):
        read_source(wrong)


def test_a_chat_column_gives_the_first_user_turn(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    other = [{"from": "human", "value": "Hi!"}, {"from": "gpt", "value": "Hi."}]
    for number, chat in enumerate((turns, other)):
        file = tmp_path / f"chat{number}.json"
        file.write_text(json.dumps([{"messages": chat}]))
        (prompt,) = read_source(Prompts(source=str(file), column="messages"))
        assert prompt.text in ("Hello?", "Hi!")
    file.write_text(json.dumps([{"messages": [{"role": "assistant", "content": "x"}]}]))
    with pytest.raises(
        RecipeError, match=r"no prompt, 1 without a user's turn\. Its columns are messages"
    ):
        read_source(Prompts(source=str(file), column="messages"))


def test_a_local_folder_stands_in_for_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows_in(tmp_path / "data", "parquet")
    settings = Prompts(source=f"hub:{tmp_path / 'data'}", column="instruction")
    assert [p.id for p in read_source(settings)] == ["prompt-000001", "prompt-000002"]
    with pytest.raises(RecipeError, match=r"split test.* cannot be loaded"):
        read_source(settings.model_copy(update={"split": "test"}))


def test_an_unreachable_hub_and_an_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"hub:nobody/nothing .*give the file instead"):
        read_source(Prompts(source="hub:nobody/nothing"))
    with pytest.raises(RecipeError, match=r"ends with \.jsonl, \.json, \.csv, \.parquet"):
        read_source(Prompts(source="prompts.txt"))


# --- Decontamination ------------------------------------------------------------------------------

BENCH = "Write a letter to the mayor of our town about the new park and the old oak trees."


def test_thirteen_words_in_a_row_are_too_many() -> None:
    bench = Benchmark([BENCH])
    words = BENCH.split()
    assert bench.holds(
        "Please: " + " ".join(words[:13]).upper() + " Then stop, sing and rest well!"
    )
    longer = " ".join(f"{word} {n}" for n, word in enumerate(words[:12]))
    assert not bench.holds(longer)


def test_most_words_alike_is_too_close() -> None:
    """a b c d e f g and a b c d e f h share 6 of 8 words, 0.75; with x y 5 of 9, 0.56."""
    bench = Benchmark(["a b c d e f g"])
    assert bench.holds("G? f E d, c b h")
    assert not bench.holds("a b c d e x y")


def test_dropped_prompts_make_room_for_the_next(tmp_path: Path) -> None:
    file = write(tmp_path, {"text": BENCH}, {"text": "Describe tea."}, {"text": "Sing a song."})
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"key": 1, "prompt": BENCH}) + "\n")
    settings = Prompts(source=str(file), count=2, decontaminate=str(bench))
    found, dropped = iteration_prompts(settings, 0, 1)
    assert [p.text for p in found] == ["Describe tea.", "Sing a song."]
    assert dropped == {"too close to the benchmark": 1}
    with pytest.raises(
        RecipeError, match=r"has 0 left.*2 dealt before, 1 too close to the benchmark"
    ):
        iteration_prompts(settings, 0, 2, found)
    bench.write_text('{"key": 1}')
    with pytest.raises(RecipeError, match=r"bench\.jsonl line 1: wanted"):
        iteration_prompts(settings, 0, 1)


def test_builtin_prompts_are_topped_up(tmp_path: Path) -> None:
    first, _ = iteration_prompts(Prompts(count=3), 0, 1)
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"text": first[1].text}) + "\n")
    settings = Prompts(count=3, decontaminate=str(bench))
    found, dropped = iteration_prompts(settings, 0, 1)
    assert dropped.total() >= 1 and len(found) == 3
    assert first[1] not in found and found[0] == first[0]
    later, _ = iteration_prompts(settings, 0, 2, found)
    assert not {p.id for p in later} & {p.id for p in found}
