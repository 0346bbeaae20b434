"""The warm-up before iteration 1, without a teacher: a program writes the lessons.

The base model answers short prompts whose constraints a program can check; the program then breaks
or mends the answer minimally, critiques it with quoted evidence, and so writes what a teacher would
have written: judgements ending in a verdict, refinements, and answers that meet their constraints.
It teaches both adapters the formats and as much of the task as they can take.

Knows constraints, templates and the engine protocol; no model, no files but the one it is given.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.constraints import Constraint
from spar_lite.errors import RecipeError
from spar_lite.prompts import (
    answer_messages,
    judge_messages,
    judge_reply,
    parse_verdict,
    refine_messages,
    refine_reply,
)
from spar_lite.records import Message, Prompt, Response, TrainingExample, stable_seed


def lessons(
    prompts: Sequence[Prompt], answers: Iterable[Response], seed: int, minimal: int = 0
) -> list[TrainingExample]:
    """Write the warm-up rows for a model's own answers.

    Each answer that can be broken or mended gives three rows: the good answer; its judgement, a
    Yes; and a chat that judges the bad answer, a No, and refines it, the loss falling on both
    replies. So Yes and No are balanced whatever the model answers. ``minimal`` asks for so many
    more pairs of judgement and chat, each about an answer that a small edit parts from a good one
    and that misses another constraint, or the same in another way.
    """
    by_prompt = {prompt.id: prompt for prompt in prompts}
    rows: list[TrainingExample] = []
    for response in answers:
        prompt = by_prompt[response.prompt_id]
        known = [constraints.from_json(data) for data in prompt.constraints]
        pair = good_and_bad(known, whole_sentences(response.text), seed)
        if pair is None:
            continue
        rows.append(
            TrainingExample(
                f"{response.id}/answer", "answer", answer_messages(prompt.text), pair[0]
            )
        )
        rows += _rows(prompt, known, *pair, response.id)
        for n, (good, bad) in enumerate(more_pairs(known, *pair, seed, minimal), 1):
            rows += _rows(prompt, known, good, bad, f"{response.id}/{n}")
    return rows


def more_pairs(
    known: Sequence[Constraint], good: str, bad: str, seed: int, count: int
) -> list[tuple[str, str]]:
    """Up to ``count`` further (good, bad) of a good text: each bad one breaks one constraint of it.

    The good text of each is what mending the bad one gives, where that is another one.
    """
    order = random.Random(stable_seed(seed, "minimal", good)).sample(list(known), len(known))
    found: list[tuple[str, str]] = []
    seen = {bad}
    for rule in order:
        spoiled = rule.spoil(good)
        if spoiled and spoiled not in seen and len(found) < count:
            seen.add(spoiled)
            found.append((constraints.mend_all(known, spoiled) or good, spoiled))
    return found


def good_and_bad(known: Sequence[Constraint], text: str, seed: int) -> tuple[str, str] | None:
    """Turn one text into (meets all, misses at least one), by minimal edits.

    A text that fails by itself is the bad one; a text that passes is broken in one constraint,
    drawn by seed. None where the program finds no edit.
    """
    good = constraints.mend_all(known, text) if text else None
    if good is None:
        return None
    if good != text and not all(constraints.check_all(known, text)):
        return good, text
    order = random.Random(stable_seed(seed, "spoil", text)).sample(list(known), len(known))
    bad = next((spoiled for rule in order if (spoiled := rule.spoil(good))), None)
    return (good, bad) if bad else None


def whole_sentences(text: str) -> str:
    """Drop a last sentence that was cut off, unless it is all there is."""
    text = text.strip()
    end = max(text.rfind(mark) for mark in ".!?")
    return text if end <= 0 or text[-1] in ".!?\"')]}" else text[: end + 1]


def reflection(known: Sequence[Constraint], text: str) -> str:
    """What a refinement must change: the names of the constraints that the text misses."""
    missed = [rule.label() for rule in known if not rule.check(text)]
    return "To change: " + "; ".join(missed) + "."


def _rows(
    prompt: Prompt, known: Sequence[Constraint], good: str, bad: str, id: str
) -> list[TrainingExample]:
    """A Yes, and a No with its refinement."""
    passed = judge_reply(constraints.critique(known, good), True)
    failed = judge_reply(constraints.critique(known, bad), False)
    mended = refine_reply(reflection(known, bad), good)
    chat = refine_messages(prompt.text, bad, failed)
    judged = judge_messages(prompt.text, good)
    return [
        TrainingExample(f"{id}/judge", "judgement", judged, passed),
        TrainingExample(f"{id}/refine", "refinement", chat, mended, every_reply=True),
    ]


def by_hardness(
    rows: Sequence[TrainingExample], hardness: Mapping[str, int]
) -> list[list[TrainingExample]]:
    """Rows in groups by the number of constraints of their prompt, the fewest first.

    ``hardness`` by prompt id, which each row's id begins with.
    """
    groups: dict[int, list[TrainingExample]] = {}
    for row in rows:
        groups.setdefault(hardness.get(row.id.partition("/")[0], 0), []).append(row)
    return [groups[level] for level in sorted(groups)]


def judgements_first(rows: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
    """First every judgement alone, the chats' ones too; then all rows as they are.

    A refinement is mostly copying, and its many easy tokens drown the few on which a judgement
    turns: taught together from the start, a small model learns to copy and not to judge.
    """
    alone = [
        TrainingExample(f"{row.id}/judgement", "judgement", row.prompt[:1], row.prompt[1].content)
        if row.kind == "refinement" and row.every_reply
        else row
        for row in rows
    ]
    return [[row for row in alone if row.kind == "judgement"], list(rows)]


def actor_rows(rows: Iterable[TrainingExample]) -> list[TrainingExample]:
    """The rows that teach the actor."""
    return [row for row in rows if row.kind == "answer"]


def refiner_rows(rows: Iterable[TrainingExample]) -> list[TrainingExample]:
    """The rows that teach the refiner."""
    return [row for row in rows if row.kind != "answer"]


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
