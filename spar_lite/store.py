"""A stage's records on disk: appended as they come, resumed by id, finished by a marker.

While a stage runs, its records go to ``NAME.part.jsonl``, one line each, flushed at once. At its
end they are written to ``NAME.jsonl`` in the order of the stage's inputs (so that the bytes do not
depend on the order of arrival), then ``NAME.done.json`` is renamed into place, last of all. A kill
at any point leaves either a finished stage or one that resumes by id; a torn last line is dropped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from spar_lite.errors import StoreError
from spar_lite.records import from_json, to_json

T = TypeVar("T")


class StageFile(Generic[T]):
    """The records of one kind that one stage writes; each has an ``id``."""

    def __init__(self, folder: Path, name: str, kind: type[T]) -> None:
        self.path = folder / f"{name}.jsonl"
        self.part = folder / f"{name}.part.jsonl"
        self.kind = kind

    def load(self) -> list[T]:
        """Read the finished records.

        Raises:
            StoreError: a line is damaged; the message names file and line.
        """
        return self._read(self.path)

    def resume(self) -> dict[str, T]:
        """Read what an interrupted run left, by id, and drop a torn last line.

        A run killed after ``finish`` but before the marker left its records in the final file.
        """
        records = self._read(self.path) if self.path.exists() else []
        if self.part.exists():
            with self.part.open("a+b") as file:
                _mend_tail(file)
            records += self._read(self.part)
        return {record.id: record for record in records}  # type: ignore[attr-defined]

    def append(self, record: T) -> None:
        """Add one record and hand it to the operating system at once."""
        _add_line(self.part, _line(record))

    def finish(self, records: Iterable[T]) -> None:
        """Write all records in their final order and drop the partial file."""
        write_text(self.path, "".join(_line(record) for record in records))
        self.part.unlink(missing_ok=True)

    def _read(self, path: Path) -> list[T]:
        return [self._parse(line, path, n) for n, line in enumerate(_lines(path), 1)]

    def _parse(self, line: bytes, path: Path, number: int) -> T:
        try:
            return from_json(self.kind, line)
        except ValueError as error:
            raise StoreError(
                f"{path} line {number} is not a {self.kind.__name__} record ({error}); another "
                f"version may have made it. Restore the file, or start anew with another --run "
                f"folder."
            ) from None


class Marker:
    """The sign that a stage is finished: its count, summary, and the recipe values it used."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.done.json"

    def read(self) -> dict[str, Any] | None:
        """Return what was written, or None where the stage has not finished."""
        return read_json(self.path)

    def write(self, summary: dict[str, Any]) -> None:
        """Finish the stage: written to a temporary file, then renamed."""
        write_text(self.path, json_text(summary, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no file.

    Raises:
        StoreError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"wanted an object, found {type(data).__name__}")
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}). Restore or remove it.") from None
    return data


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: temporary file, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def json_text(data: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that there is none of is null, not NaN."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [plain(value) for value in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(data), indent=indent, ensure_ascii=False, allow_nan=False)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of JSON lines or nothing."""
    write_text(path, "".join(json_text(line) + "\n" for line in lines))


def copy_whole(source: Path, target: Path) -> None:
    """Put a copy of a file or folder in a target's place; of one that is cut off nothing stays."""
    part = target.with_name(target.name + ".tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, part)
    else:
        for old in (part, target):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(source, part)
    part.replace(target)


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Append one JSON line (the ledger's way); a torn line before it is dropped."""
    _add_line(path, json_text(data) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines, passing over a torn last one; nothing where there is no file."""
    lines = _lines(path) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line.decode())
        except ValueError:
            if number < len(lines):
                raise StoreError(f"{path} line {number} is not JSON.") from None


def _line(record: Any) -> str:
    return json.dumps(to_json(record), ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[bytes]:
    """The file's lines. Only \\n ends one: texts hold U+2028 and others that str splits at."""
    lines = path.read_bytes().split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _add_line(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _mend_tail(file)
        file.write(line.encode())


def _mend_tail(file: BinaryIO) -> None:
    """Leave the file at a line's end: a whole last line is ended, a torn one dropped."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    whole = file.read()
    start = whole.rfind(b"\n") + 1
    try:
        json.loads(whole[start:].decode())
        file.write(b"\n")
    except ValueError:
        file.truncate(start)
