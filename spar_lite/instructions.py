"""Where prompts come from: built-in tasks with checkable constraints, or a JSONL file.

Iterations take consecutive blocks, so they share no prompt. Knows constraints and files; nothing of
models or stages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.errors import RecipeError
from spar_lite.recipe import Prompts
from spar_lite.records import Prompt


def builtin_prompts(
    settings: Prompts, seed: int, split: str, count: int, start: int = 0
) -> list[Prompt]:
    """Compose prompts of one split ("warmup", "train" or "heldout"; no topic is in two).

    Raises:
        RecipeError: an unknown constraint kind, or more prompts asked for than can be made.
    """
    try:
        tasks = constraints.compose(
            seed,
            count,
            kinds=settings.kinds,
            per_prompt=settings.per_prompt,
            split=split,
            start=start,
        )
    except ValueError as error:
        raise RecipeError(f"prompts: {error}") from None
    return [
        Prompt(task.id, task.text, tuple(c.to_json() for c in task.constraints), complete=True)
        for task in tasks
    ]


def iteration_prompts(settings: Prompts, seed: int, iteration: int) -> list[Prompt]:
    """The prompts of one iteration, counted from 1."""
    start = (iteration - 1) * settings.count
    if settings.source == "builtin":
        return builtin_prompts(settings, seed, "train", settings.count, start)
    prompts = read_prompts(Path(settings.source))
    if len(prompts) < start + settings.count:
        raise RecipeError(
            f"prompts.count: iteration {iteration} wants prompts {start + 1} to "
            f"{start + settings.count}, {settings.source} has {len(prompts)}. "
            "Lower prompts.count or iterations."
        )
    return prompts[start : start + settings.count]


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL file of prompts: "text", optionally "id", "constraints" and "complete".

    Raises:
        RecipeError: naming file, line and what was wanted.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"prompts.source: {path} cannot be read ({error}).") from None
    prompts = [_prompt(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise RecipeError(f'prompts.source: {path} has the id "{prompt.id}" twice.')
        seen.add(prompt.id)
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    where = f"prompts.source: {path} line {number}"
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise RecipeError(f'{where}: wanted {{"text": "…"}}, found {line[:80]}')
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
