"""Prompts from files and the Hub, with a mapping of columns, and the warm-up rows of a file.

Prompts are JSONL, JSON, CSV or Parquet. Our own JSONL ("text", optionally "id", "constraints",
"complete") is read strictly, every fault with its line; all else goes through ``datasets``, and
only its text and id columns are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.errors import RecipeError, did_you_mean
from spar_lite.recipe import Prompts
from spar_lite.records import Message, Prompt, TrainingExample
from spar_lite.templates.verdict import parse_verdict

KINDS = {".json": "json", ".csv": "csv", ".parquet": "parquet"}
HUB = "hub:"


def read_source(settings: Prompts) -> list[Prompt]:
    """Read every prompt of ``prompts.source`` (anything but "builtin").

    Raises:
        RecipeError: naming the source, the line or row, and what was wanted.
    """
    source = settings.source
    if source.startswith(HUB):
        rows = _hub(source.removeprefix(HUB), settings.split)
    else:
        path = Path(source)
        own = settings.column == "text" and not settings.id_column
        if path.suffix == ".jsonl" and own:
            return _unique(_own_rows(path), source)
        if path.suffix not in (".jsonl", *KINDS):
            raise RecipeError(
                f'prompts.source: wanted "builtin", "hub:OWNER/NAME" or a file that ends with '
                f".jsonl, {', '.join(KINDS)}; found {source}."
            )
        rows = _file(path)
    return _unique(_mapped(rows, settings), source)


def _unique(prompts: Iterable[Prompt], source: str) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        if prompt.id in found:
            raise RecipeError(f'prompts.source: {source} has the id "{prompt.id}" twice.')
        found[prompt.id] = prompt
    return list(found.values())


# --- Other people's columns -----------------------------------------------------------------------


def _file(path: Path) -> Iterable[dict[str, Any]]:
    import datasets

    if not path.is_file():
        raise RecipeError(f"prompts.source: {path}: no such file.")
    kind = KINDS.get(path.suffix, "json")
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(
            kind, data_files=str(path), split="train"
        )
    except Exception as error:  # noqa: BLE001 - every reader has errors of its own
        raise RecipeError(f"prompts.source: {path} cannot be read: {_short(error)}") from None
    return rows


def _hub(name: str, split: str) -> Iterable[dict[str, Any]]:
    """A Hub data set, OWNER/NAME or OWNER/NAME@CONFIG; a local folder works as well."""
    import datasets

    where, _, config = name.partition("@")
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(where, config or None, split=split)
    except Exception as error:  # noqa: BLE001 - offline, missing, gated: the hint is the same
        raise RecipeError(
            f"prompts.source: {HUB}{name} (split {split}) cannot be loaded: {_short(error)} "
            "Download it elsewhere and give the file instead."
        ) from None
    return rows


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _mapped(rows: Iterable[dict[str, Any]], settings: Prompts) -> Iterator[Prompt]:
    for number, row in enumerate(rows, 1):
        where = f"prompts.source: {settings.source} row {number}"
        for key, name in (("column", settings.column), ("id_column", settings.id_column)):
            if name and name not in row:
                raise RecipeError(
                    f'{where}: prompts.{key} is "{name}", the columns are {", ".join(row)}.'
                    f"{did_you_mean(name, row)}"
                )
        text = _text(row[settings.column])
        if text is None:
            raise RecipeError(
                f'{where}: column "{settings.column}" wanted text, or chat turns with a user\'s; '
                f"found {str(row[settings.column])[:80]!r}."
            )
        id = str(row[settings.id_column]) if settings.id_column else f"prompt-{number:06d}"
        if "/" in id:
            raise RecipeError(f'{where}: the id "{id}" must not hold a "/".')
        yield Prompt(id, text)


def _text(value: Any) -> str | None:
    """A text, or the first user turn of a chat ("role"/"content" or "from"/"value")."""
    if isinstance(value, str):
        return value.strip() or None
    turns = value if isinstance(value, list) else []
    for turn in turns:
        if isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human"):
            return _text(turn.get("content", turn.get("value")))
    return None


# --- Our own JSONL --------------------------------------------------------------------------------


def _own_rows(path: Path) -> Iterator[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"prompts.source: {path} cannot be read ({error}).") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _own(path, number, line)


def _own(path: Path, number: int, line: str) -> Prompt:
    where = f"prompts.source: {path} line {number}"
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise RecipeError(
            f'{where}: wanted {{"text": "…"}}, found {line[:80]}. Is the text in another column? '
            "-o prompts.column=NAME"
        )
    unknown = set(row) - {"id", "text", "constraints", "complete"}
    if unknown:
        raise RecipeError(
            f"{where}: unknown keys {sorted(unknown)}; known: id, text, constraints, complete."
        )
    id = str(row.get("id", f"prompt-{number:06d}"))
    if "/" in id:
        raise RecipeError(f'{where}: the id "{id}" must not hold a "/" (ids of answers use it).')
    try:
        known = [constraints.from_json(item) for item in row.get("constraints", [])]
        row["text"].encode("utf-8")
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from None
    complete = bool(row.get("complete", False))
    return Prompt(id, row["text"], tuple(c.to_json() for c in known), complete)


# --- The warm-up's rows ---------------------------------------------------------------------------


def released_rows(path: Path) -> list[TrainingExample]:
    """Read a JSONL or JSON file of rows with "messages", as in the released SPaR data.

    The last turn is the completion. A row of one user and one assistant turn whose reply holds a
    verdict is a judgement; more turns are a refinement; the rest are answers.

    Raises:
        RecipeError: the file or a row has another shape; file, row number and fault are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loaded = json.loads(text) if text.lstrip().startswith("[") else None
        rows = loaded or [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise RecipeError(f"bootstrap.source: {path} is not JSONL that we can read: {error}") from (
            None
        )
    if not rows:
        raise RecipeError(f"bootstrap.source: {path} has no rows.")
    return [_released_row(path, number, row) for number, row in enumerate(rows, 1)]


def _released_row(path: Path, number: int, row: Any) -> TrainingExample:
    turns = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not _is_chat(turns):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise RecipeError(
            f"bootstrap.source: {path} row {number}: wanted "
            '{"messages": [{"role": "user", "content": "…"}, …, {"role": "assistant", …}]}, '
            f"found {found}."
        )
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    kind = _kind(messages)
    return TrainingExample(f"row-{number:06d}", kind, messages[:-1], messages[-1].content)


def _is_chat(turns: list[Any]) -> bool:
    """Whether these are chat turns that end with the assistant's."""
    fine = all(
        isinstance(t, dict)
        and t.get("role") in ("system", "user", "assistant")
        and isinstance(t.get("content"), str)
        for t in turns
    )
    return fine and len(turns) >= 2 and turns[-1]["role"] == "assistant"


def _kind(messages: Sequence[Message]) -> str:
    if len([m for m in messages if m.role == "assistant"]) > 1:
        return "refinement"
    return "answer" if parse_verdict(messages[-1].content) is None else "judgement"
