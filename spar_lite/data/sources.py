"""Prompts from files and the Hub, with a mapping of columns, and the warm-up rows of a file.

Prompts are JSONL, JSON, CSV or Parquet. Our own JSONL ("text", optionally "id", "constraints",
"complete") is read strictly, every fault with its line; all else goes through ``datasets``, and
only its text and id columns are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
    path = Path(source)
    if source.startswith(HUB):
        # OWNER/NAME or OWNER/NAME@CONFIG; a local folder works as well.
        where, _, config = source.removeprefix(HUB).partition("@")
        failure = f"{source} (split {settings.split}) cannot be loaded: "
        advice = " Download it elsewhere and give the file instead."
        rows = _load(failure, advice, where, config or None, split=settings.split)
        prompts = _mapped(rows, settings)
    elif path.suffix == ".jsonl" and settings.column == "text" and not settings.id_column:
        lines = json_lines(path, "prompts.source")
        prompts = (_own(number, line, where) for number, line, where in lines)
    elif path.suffix not in (".jsonl", *KINDS):
        raise RecipeError(
            f'prompts.source: wanted "builtin", "hub:OWNER/NAME" or a file that ends with '
            f".jsonl, {', '.join(KINDS)}; found {source}."
        )
    elif not path.is_file():
        raise RecipeError(f"prompts.source: {path}: no such file.")
    else:
        kind, failure = KINDS.get(path.suffix, "json"), f"{path} cannot be read: "
        rows = _load(failure, "", kind, data_files=str(path), split="train")
        prompts = _mapped(rows, settings)
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        if prompt.id in found:
            raise RecipeError(f'prompts.source: {source} has the id "{prompt.id}" twice.')
        found[prompt.id] = prompt
    return list(found.values())


def json_lines(path: Path, key: str) -> Iterator[tuple[int, str, str]]:
    """The lines of a file that are not blank: number, text, and for errors where it is.

    Raises:
        RecipeError: the file that the recipe's ``key`` names cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{key}: {path} cannot be read ({error}).") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, f"{key}: {path} line {number}"


def _load(failure: str, advice: str, *names: str | None, **more: str) -> Iterable[dict[str, Any]]:
    import datasets

    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(*names, **more)
    except Exception as error:  # noqa: BLE001 - every reader has errors of its own
        short = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RecipeError(f"prompts.source: {failure}{short}{advice}") from None
    return rows


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


def _own(number: int, line: str, where: str) -> Prompt:
    """A prompt of our own JSONL."""
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
    turns: Any = row.get("messages") if isinstance(row, dict) else None
    chat = isinstance(turns, list) and all(
        isinstance(turn, dict)
        and turn.get("role") in ("system", "user", "assistant")
        and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not chat or len(turns) < 2 or turns[-1]["role"] != "assistant":
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise RecipeError(
            f"bootstrap.source: {path} row {number}: wanted "
            '{"messages": [{"role": "user", "content": "…"}, …, {"role": "assistant", …}]}, '
            f"found {found}."
        )
    *prompt, reply = [Message(turn["role"], turn["content"]) for turn in turns]
    kind = "answer" if parse_verdict(reply.content) is None else "judgement"
    if any(message.role == "assistant" for message in prompt):
        kind = "refinement"
    return TrainingExample(f"row-{number:06d}", kind, tuple(prompt), reply.content)
