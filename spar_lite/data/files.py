"""Rows of files as people have them: JSONL, JSON, CSV, Parquet; one, a list, a folder, of the Hub.

Knows where rows come from, and not what they mean. Each row comes with the words for its place,
which an error begins with. An encoding is never guessed: half a word in another alphabet is a
prompt that nobody wrote.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spar_lite.errors import RecipeError, one_line

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
HUB = "hub:"

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Each row and its place: "prompts.source: rows.csv row 7"."""


def listed(source: str | Sequence[str]) -> list[str]:
    """The names of one source or several: a list, or names with commas between them."""
    if not isinstance(source, str):
        return list(source)
    if "," not in source or _there(source):
        return [source]
    return [name.strip() for name in source.split(",") if name.strip()]


def _there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except OSError:  # longer than any name
        return False


def local_files(source: str | Sequence[str]) -> list[Path]:
    """The files on this disk, there or not; a folder is all files in it that can be read here."""
    found: list[Path] = []
    for name in listed(source):
        path = Path(name).expanduser()
        if name.startswith(HUB):
            continue
        found += _inside(path) if path.is_dir() else [path]
    return found


def source_files(source: str | Sequence[str], key: str) -> Iterator[Path]:
    """Every file of a source, those of the Hub fetched first.

    Raises:
        RecipeError: naming the recipe's ``key`` and what is not there.
    """
    for name in listed(source):
        if name.startswith(HUB):
            yield _from_hub(name, key)
            continue
        files = local_files([name])
        if not files:
            raise RecipeError(f"{key}: {name} holds no file that ends with {', '.join(ENDINGS)}.")
        yield from files


def hub_file(name: str) -> tuple[str, str] | None:
    """(OWNER/NAME, PATH) of hub:OWNER/NAME/PATH; None for a whole data set or a local folder."""
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, path = rest.partition("/")
    whole = not path or Path(name.removeprefix(HUB)).expanduser().exists()
    return None if whole else (f"{owner}/{repository}", path)


def _inside(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _from_hub(name: str, key: str) -> Path:
    import huggingface_hub

    place = hub_file(name)
    if place is None:
        raise RecipeError(f"{key}: wanted hub:OWNER/NAME/PATH, the path of a file, found {name}.")
    repository, path = place
    try:
        return Path(huggingface_hub.hf_hub_download(repository, path, repo_type="dataset"))
    # The HTTP library's errors come through as they are, and it has changed before.
    except Exception as error:  # noqa: BLE001
        raise RecipeError(
            f"{key}: {name} cannot be fetched: {cause(error)}. Where the Hub can be reached: hf "
            f"download {repository} --repo-type dataset --local-dir FOLDER, and then -o "
            f"{key}=FOLDER/{path}"
        ) from None


def file_rows(path: Path, key: str, encoding: str = "utf-8") -> Rows:
    """The rows of one file, by its ending, whatever its case.

    Raises:
        RecipeError: naming the recipe's ``key``, the file, the line or row and the fault.
    """
    kind, where = path.suffix.lower(), f"{key}: {path}"
    if kind not in ENDINGS:
        raise RecipeError(f"{key}: wanted a file that ends with {', '.join(ENDINGS)}, found {path}")
    if not path.is_file():
        raise RecipeError(f"{where}: no such file.")
    if kind == ".parquet":
        failure = f"{where} cannot be read: "
        rows = data_set(failure, "", "parquet", data_files=str(path), split="train")
        yield from ((f"{where} row {n}", row) for n, row in enumerate(rows, 1))
        return
    text = _text(path, key, encoding)
    yield from _csv_rows(text, where) if kind == ".csv" else _json_rows(text, where)


def data_set(
    failure: str, advice: str, *names: str | None, **more: str
) -> Iterable[dict[str, Any]]:
    """Rows that ``datasets`` reads; no code of a data set's own is run.

    Raises:
        RecipeError: ``failure``, the cause in short, ``advice``.
    """
    import datasets

    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(*names, **more)
    except Exception as error:  # noqa: BLE001 - every reader has errors of its own
        raise RecipeError(f"{failure}{cause(error)}.{advice}") from None
    return rows


def cause(error: BaseException) -> str:
    """What was wrong at first, in one line: the outermost error often says only that it is one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(f"{type(error).__name__}: {error}").rstrip(".")


def _text(path: Path, key: str, encoding: str) -> str:
    """A file's text, without a byte order mark."""
    try:
        data = path.read_bytes()
        text = data.decode(encoding).removeprefix("\ufeff")
    except OSError as error:
        raise RecipeError(f"{key}: {path} cannot be read ({error}).") from None
    except LookupError:
        raise RecipeError(f"{key}: there is no encoding {encoding!r}; try cp1252.") from None
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        say = "Save it as UTF-8"
        if key.startswith("prompts."):
            say += ", or say what it is, such as -o prompts.encoding=cp1252 (Windows)"
        fault = f"byte 0x{byte:02x} is not {encoding}"
        raise RecipeError(f"{key}: {path} line {line}: {fault}. {say}.") from None
    return text


def _json_rows(text: str, where: str) -> Rows:
    """A list, one object, or an object a line, whatever the file's ending says."""
    found: Iterable[tuple[str, Any]]
    try:
        whole = json.loads(text)
        rows, unit = (whole, "row") if isinstance(whole, list) else ([whole], "line")
        found = ((f"{where} {unit} {number}", row) for number, row in enumerate(rows, 1))
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise RecipeError(f"{where} is not JSON: {error}") from None
        found = _json_lines(text, where)
    for place, row in found:
        if not isinstance(row, dict):
            raise RecipeError(f'{place}: wanted {{"column": "…"}}, found {json.dumps(row)[:80]}.')
        yield place, row


def _json_lines(text: str, where: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where} line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise RecipeError(f"{place} is not JSON: {error}") from None
            yield place, value


def _csv_rows(text: str, where: str) -> Rows:
    csv.field_size_limit(2**31 - 1)  # its default is shorter than a long prompt
    # Strict: a quotation mark that never closes would swallow the rest of the file.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="\0")
    number = 0
    try:
        for number, row in enumerate(reader, 1):
            if "\0" in row:
                cells = f"row {number} has more cells than the {len(row) - 1} columns"
                raise RecipeError(f"{where} {cells}. Put quotation marks around its text.")
            yield f"{where} row {number}", row
    except csv.Error as error:
        raise RecipeError(f"{where} row {number + 1} is not CSV: {error}.") from None
