"""Stage files survive a kill at any byte; the expectations are counted by hand."""

import math
from pathlib import Path

import pytest

from spar_lite.errors import StoreError
from spar_lite.records import Prompt
from spar_lite.store import Marker, StageFile, append_line, read_lines, write_text

# One plain record, one with every character that some reader takes for a line end, one with
# letters of two, three and four bytes.
RECORDS = [
    Prompt("p0", "Say hi."),
    Prompt("p1", "a\nb\rc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i"),
    Prompt("p2", "\u00e9\u8336\U0001f375", ({"kind": "no_commas"},), True),
]


def stage(folder: Path) -> StageFile[Prompt]:
    return StageFile(folder, "prompts", Prompt)


def written(folder: Path) -> bytes:
    """The bytes of an uninterrupted part file."""
    whole = stage(folder / "whole")
    for record in RECORDS:
        whole.append(record)
    return whole.part.read_bytes()


def test_records_come_back(tmp_path: Path):
    file = stage(tmp_path)
    for record in RECORDS:
        file.append(record)
    assert file.resume() == {record.id: record for record in RECORDS}
    file.finish(RECORDS)
    assert file.load() == RECORDS
    assert not file.part.exists()
    assert file.path.read_bytes().count(b"\n") == 3, "one line a record"


def test_a_fresh_stage_has_nothing(tmp_path: Path):
    assert stage(tmp_path / "no such folder").resume() == {}


def test_a_kill_at_every_byte_loses_only_the_torn_record(tmp_path: Path):
    whole = written(tmp_path)
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    file = stage(tmp_path)
    for cut in range(len(whole) + 1):
        file.part.write_bytes(whole[:cut])
        # a record is whole as soon as its closing brace is there, one byte before the line end
        kept = [record for record, end in zip(RECORDS, ends, strict=True) if end - 1 <= cut]
        done = file.resume()
        assert list(done.values()) == kept, f"cut at byte {cut}"
        for record in RECORDS:
            if record.id not in done:
                file.append(record)
        assert file.part.read_bytes() == whole, f"cut at byte {cut}"
        assert list(file.resume()) == ["p0", "p1", "p2"]


def test_appending_without_resuming_never_merges_lines(tmp_path: Path):
    whole = written(tmp_path)
    file = stage(tmp_path)
    for cut in range(len(whole) + 1):
        file.part.write_bytes(whole[:cut])
        file.append(Prompt("new", "x"))
        ids = list(file.resume())
        assert ids[-1] == "new" and ids[:-1] == ["p0", "p1", "p2"][: len(ids) - 1], cut


def test_finished_bytes_do_not_depend_on_the_order_of_arrival(tmp_path: Path):
    found = set()
    for n, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 2, 0])):
        file = stage(tmp_path / str(n))
        for index in order:
            file.append(RECORDS[index])
        done = file.resume()
        file.finish(done[id] for id in ("p0", "p1", "p2"))
        found.add(file.path.read_bytes())
    assert len(found) == 1


def test_a_kill_between_finish_and_marker_loses_nothing(tmp_path: Path):
    file = stage(tmp_path)
    file.finish(RECORDS)
    assert Marker(tmp_path, "prompts").read() is None
    assert list(file.resume().values()) == RECORDS, "the part file is gone, its records are not"
    # killed before the part file was dropped: both hold the same records, none counts twice
    file.append(RECORDS[1])
    assert list(file.resume().values()) == RECORDS
    file.append(Prompt("p3", "more"))
    assert list(file.resume()) == ["p0", "p1", "p2", "p3"]


def test_a_kill_while_finishing_leaves_the_old_file_whole(tmp_path: Path):
    file = stage(tmp_path)
    file.append(RECORDS[0])
    (tmp_path / "prompts.jsonl.tmp").write_text('{"id": "p')
    assert list(file.resume()) == ["p0"]
    file.finish([RECORDS[0]])
    assert file.load() == [RECORDS[0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl"]


@pytest.mark.parametrize("line", ['{"id": "p1"', '{"id": "p1", "texts": "x"}', "[]", "null", "7"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    file = stage(tmp_path)
    file.append(RECORDS[0])
    good = file.part.read_text()
    text = f"{good}{line}\n{good}"
    for read, path in ((file.resume, file.part), (file.load, file.path)):
        path.write_text(text)
        with pytest.raises(StoreError) as caught:
            read()
        assert f"{path} line 2 is not a Prompt record" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path):
    file = stage(tmp_path)
    file.part.write_bytes(b'{"id": "\xff", "text": "x"}\n')
    with pytest.raises(StoreError, match="line 1 is not a Prompt record"):
        file.resume()


def test_the_marker(tmp_path: Path):
    marker = Marker(tmp_path / "new", "trees")
    assert marker.read() is None
    marker.write({"count": 3, "recipe": {"seed": 0}, "note": "\u2028\u8336"})
    assert marker.path == tmp_path / "new" / "trees.done.json"
    assert marker.read() == {"count": 3, "recipe": {"seed": 0}, "note": "\u2028\u8336"}
    assert [path.name for path in marker.path.parent.iterdir()] == ["trees.done.json"]


@pytest.mark.parametrize("text", ["", "{", "7", "[]"])
def test_a_damaged_marker_is_named(tmp_path: Path, text: str):
    marker = Marker(tmp_path, "trees")
    marker.path.write_text(text)
    with pytest.raises(StoreError, match=r"trees\.done\.json is damaged"):
        marker.read()


def test_a_number_that_there_is_none_of_is_null(tmp_path: Path):
    marker = Marker(tmp_path, "x")
    marker.write({"a": [math.nan, 1.5], "b": {"c": (math.inf, "NaN")}})
    assert marker.read() == {"a": [None, 1.5], "b": {"c": [None, "NaN"]}}
    append_line(tmp_path / "x.jsonl", {"a": math.nan})
    assert (tmp_path / "x.jsonl").read_text() == '{"a": null}\n'


def test_write_text_replaces_the_whole_file(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "a long first text")
    write_text(path, "short")
    assert path.read_text() == "short"


LEDGER = [{"stage": "sample", "note": "\u8336\u2028\x85"}, {"stage": "judge"}]


def test_the_ledger_comes_back(tmp_path: Path):
    path = tmp_path / "run" / "ledger.jsonl"
    assert list(read_lines(path)) == []
    for data in LEDGER:
        append_line(path, data)
    assert list(read_lines(path)) == LEDGER


def test_a_torn_ledger_line_is_passed_over_and_never_merges(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    for data in LEDGER:
        append_line(path, data)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # a line is whole as soon as its closing brace is there, one byte before the line end
        kept = LEDGER[: (cut >= first - 1) + (cut >= len(whole) - 1)]
        assert list(read_lines(path)) == kept, f"cut at byte {cut}"
        append_line(path, {"stage": "next"})
        assert list(read_lines(path)) == [*kept, {"stage": "next"}], f"cut at byte {cut}"


def test_a_damaged_ledger_line_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(StoreError, match=r"ledger\.jsonl line 2 is not JSON"):
        list(read_lines(path))
