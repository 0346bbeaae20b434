"""Prompts from files and the Hub: which column or turn of a row is the instruction.

Our own JSONL ("text", optionally "id", "constraints", "complete") is read strictly; of other rows
only the columns that the recipe names are looked at. Rows without a text are left out and counted;
what a wrong guess would spoil is an error that names the key to set.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from spar_lite import constraints
from spar_lite.data.files import HUB, data_set, file_rows, hub_file, listed, source_files
from spar_lite.data.released import judged_case
from spar_lite.errors import RecipeError, did_you_mean
from spar_lite.recipe import Prompts
from spar_lite.records import Prompt

KEY = "prompts.source"
OWN = ("id", "text", "constraints", "complete")
USERS = ("user", "human", "prompter")
INPUTS = ("input", "context")
"""Columns that hold what an instruction speaks of: Alpaca's and Dolly's."""

NO_INPUT = ("", "<noinput>", "noinput", "no input")


class _LeftOut(Exception):
    """Why a row gives no prompt, in words that follow a number."""


def read_source(settings: Prompts, left_out: Counter[str] | None = None) -> list[Prompt]:
    """Read every prompt of ``prompts.source`` (anything but "builtin").

    ``left_out``: counts the rows that give no prompt, by the reason.

    Raises:
        RecipeError: naming the source, the line or row, and what was wanted.
    """
    dropped: Counter[str] = Counter() if left_out is None else left_out
    found: dict[str, Prompt] = {}
    columns: list[str] = []
    for number, (where, row, own) in enumerate(_rows(settings), 1):
        columns = list(row)
        try:
            prompt = _prompt(row, where, number, settings, own)
        except _LeftOut as why:
            dropped[str(why)] += 1
            continue
        if prompt.id in found:
            raise RecipeError(f'{where}: the id "{prompt.id}" is there twice.')
        found[prompt.id] = prompt
    if not found:
        why_none = f", {in_words(dropped)}" if dropped else ""
        others = f" Its columns are {', '.join(columns)}: -o prompts.column=NAME" if columns else ""
        name = ", ".join(listed(settings.source))
        raise RecipeError(f"{KEY}: {name} has no prompt{why_none}.{others}")
    return list(found.values())


def in_words(left_out: Counter[str]) -> str:
    """Counts by reason: "2 empty, 1 damaged"."""
    return ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))


def _rows(settings: Prompts) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every row, its place, and whether it is of our own JSONL."""
    own_column = settings.column == "text" and not settings.id_column
    for name in listed(settings.source):
        if name.startswith(HUB) and hub_file(name) is None:
            # OWNER/NAME or OWNER/NAME@CONFIG; a local folder works as well.
            place, _, config = name.removeprefix(HUB).partition("@")
            failure = f"{KEY}: {name} (split {settings.split}) cannot be loaded: "
            advice = " Download it elsewhere and give the file instead."
            rows = data_set(failure, advice, place, config or None, split=settings.split)
            yield from ((f"{KEY}: {name} row {n}", row, False) for n, row in enumerate(rows, 1))
            continue
        for path in source_files([name], KEY):
            own = own_column and path.suffix.lower() == ".jsonl"
            for where, row in file_rows(path, KEY, settings.encoding):
                yield where, row, own


def _prompt(row: dict[str, Any], where: str, number: int, settings: Prompts, own: bool) -> Prompt:
    for key, name in (("column", settings.column), ("id_column", settings.id_column)):
        if name and name not in row:
            raise RecipeError(
                f'{where}: prompts.{key} is "{name}", the columns are {", ".join(row)}.'
                f"{did_you_mean(name, row) or f' Set it: -o prompts.{key}=NAME'}"
            )
    text = _text(row[settings.column], f'{where}: column "{settings.column}"')
    if beside := _beside(row, where, settings):
        text = f"{text}\n\n{beside}"
    if judged_case(text) is not None:
        raise _LeftOut("judge prompts")
    given = row[settings.id_column] if settings.id_column else row.get("id") if own else None
    id = numbered(number) if given is None else str(given)
    if "/" in id:
        raise RecipeError(f'{where}: the id "{id}" must not hold a "/" (ids of answers use it).')
    return _own(row, where, Prompt(id, text)) if own else Prompt(id, text)


def numbered(number: int) -> str:
    """The id of a row that has none of its own."""
    return f"prompt-{number:06d}"


def _text(value: Any, where: str) -> str:
    """A text, or that of the first user turn of a chat.

    A chat is a list of turns ("role" and "content", or "from" and "value"), whose content may be in
    typed parts, or of plain texts in turn, the user's first (LIMA, UltraChat).
    """
    if value is None or value == []:
        raise _LeftOut("empty")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _LeftOut("damaged (half a character)") from None
        if not (text := value.strip()):
            raise _LeftOut("empty")
        return text
    turns = [value] if isinstance(value, dict) else value
    if isinstance(turns, list) and isinstance(turns[0], str):
        return _text(turns[0], where)
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        if all("type" in turn and "role" not in turn for turn in turns):
            return _text(_parts(turns), where)
        if all("role" in turn or "from" in turn for turn in turns):
            for turn in turns:
                if str(turn.get("role", turn.get("from"))).lower() in USERS:
                    return _text(turn.get("content", turn.get("value")), where)
            raise _LeftOut("without a user's turn")
    raise RecipeError(
        f"{where} wanted text, or chat turns with a user's; found {str(value)[:80]!r}."
    )


def _parts(parts: list[dict[str, Any]]) -> str:
    """The text of typed parts; an instruction without its picture is another one."""
    if any(part["type"] not in ("text", "input_text") for part in parts):
        raise _LeftOut("not of text alone")
    texts = [part.get("text") or "" for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _LeftOut("not of text alone")
    return "\n".join(texts)


def _beside(row: dict[str, Any], where: str, settings: Prompts) -> str:
    """What the instruction speaks of, from a second column; "" where there is nothing."""
    name, found = settings.input_column, dict[str, str]()
    if name == "none":
        return ""
    if name != "auto" and name not in row:
        raise RecipeError(
            f'{where}: prompts.input_column is "{name}", the columns are {", ".join(row)}.'
            f"{did_you_mean(name, row)}"
        )
    for column in INPUTS if name == "auto" else [name]:
        text = row.get(column)
        if column == "input" and text is None and isinstance(row.get("instances"), list):
            # Self-Instruct's: the first of an instruction's instances.
            text = next((i.get("input") for i in row["instances"] if isinstance(i, dict)), None)
        if column != settings.column and isinstance(text, str):
            text = text.strip()
            if text.lower().rstrip(".") not in NO_INPUT:
                found[column] = text
    if len(found) > 1 or (found and name == "auto" and settings.column != "instruction"):
        other = next(iter(found))
        raise RecipeError(
            f'{where}: beside "{settings.column}" stands "{other}", which the prompt may need. '
            f"-o prompts.input_column={other} appends it, -o prompts.input_column=none leaves it."
        )
    return next(iter(found.values()), "")


def _own(row: dict[str, Any], where: str, prompt: Prompt) -> Prompt:
    """A prompt of our own JSONL; other columns are passed over, misspelt ones are not."""
    for name in set(row) - set(OWN):
        if near := difflib.get_close_matches(name.lower(), OWN, n=1, cutoff=0.85):
            raise RecipeError(f'{where}: unknown key "{name}". Did you mean "{near[0]}"?')
    try:
        known = [constraints.from_json(item) for item in row.get("constraints") or []]
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from None
    rules, complete = tuple(rule.to_json() for rule in known), bool(row.get("complete", False))
    return replace(prompt, constraints=rules, complete=complete)
