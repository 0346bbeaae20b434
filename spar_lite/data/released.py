"""Training rows of the released SPaR data (CCCCCC/SPaR), as the loop asks or as the paper did.

Its files are JSON arrays. For supervised training a row is a chat under "messages": instruction and
answer; judge prompt and critique; or both of these, refine prompt and refinement. For preference
training it is the instruction under "messages", and "chosen" and "rejected". Judge and refine
prompts are the paper's own. The loop asks with ours, so that the instruction and answer in them are
put into our templates; what cannot be is left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from spar_lite.data.files import Rows, file_rows, source_files
from spar_lite.errors import RecipeError
from spar_lite.records import Message, PreferencePair, TrainingExample
from spar_lite.templates import JUDGE, REFINE, judge_messages, parse_refinement, refine_messages
from spar_lite.templates.verdict import parse_verdict

# The paper's judge prompt: Prompt: “…” Output: “…” Please carefully judge … Final Judgement …
_HEAD = re.compile(r"^[^\S\n]*Prompt:\s*[\"\u201c]", re.MULTILINE)
_BETWEEN = re.compile(r"[\"\u201d]\s+Output:\s*[\"\u201c]")
_TAIL = re.compile(r"[\"\u201d]\s+Please carefully judge\b")
# Its closing words repeat the question, and "if" there is no condition.
_QUESTION = re.compile(r"(Final Judge?ment)\s*\(if the Output[^()\n]*\)", re.IGNORECASE)
_OURS = JUDGE.partition("<instruction>")[0]


def released_rows(
    source: str | Sequence[str], templates: str = "loop"
) -> tuple[list[TrainingExample], Counter[str]]:
    """The supervised rows of ``bootstrap.source``, and how many were left out, by the reason.

    ``templates``: "loop" rebuilds judge and refine rows, "paper" takes them as they are.

    Raises:
        RecipeError: a file is not there, a row has another shape, or none is left.
    """
    rows: list[TrainingExample] = []
    left_out: Counter[str] = Counter()
    for number, (where, row) in enumerate(_all_rows(source, "bootstrap.source"), 1):
        if "chosen" in row and "rejected" in row:
            left_out["preference pairs (bootstrap.pairs trains on them)"] += 1
            continue
        *prompt, reply = _chat(row, where, "assistant")
        found = _example(f"row-{number:06d}", tuple(prompt), reply.content, templates)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            rows.append(found)
    if not rows:
        raise _nothing("bootstrap.source", source, "rows to train on", left_out)
    return rows, left_out


def released_pairs(source: str | Sequence[str]) -> tuple[list[PreferencePair], Counter[str]]:
    """The preference pairs of ``bootstrap.pairs``, and how many rows were left out and why.

    In what their sides differ besides is not looked at here.

    Raises:
        RecipeError: a file is not there, a row has another shape, or no pair is left.
    """
    pairs: list[PreferencePair] = []
    left_out: Counter[str] = Counter()
    for number, (where, row) in enumerate(_all_rows(source, "bootstrap.pairs"), 1):
        if "chosen" not in row or "rejected" not in row:
            left_out["without two answers (bootstrap.source trains on them)"] += 1
            continue
        prompt, id = _chat(row, where, "user"), f"pair-{number:06d}"
        chosen, rejected = (_reply(row[side], where, side) for side in ("chosen", "rejected"))
        if not chosen.strip() or not rejected.strip() or not prompt[-1].content.strip():
            left_out["empty"] += 1
        elif chosen.strip() == rejected.strip():
            left_out["with two equal answers"] += 1
        else:
            pairs.append(PreferencePair(id, id, tuple(prompt), chosen, rejected))
    if not pairs:
        raise _nothing("bootstrap.pairs", source, "pairs", left_out)
    return pairs, left_out


def judged_case(text: str) -> tuple[str, str] | None:
    """Instruction and answer of a prompt that judges as the paper's does; None for others.

    ("", "") where it is one, and where the instruction ends cannot be said.
    """
    head = _HEAD.search(text)
    tails = list(_TAIL.finditer(text, head.end())) if head else []
    if head is None or not tails or "Final Judg" not in text[tails[-1].end() :]:
        return None
    parts = _BETWEEN.split(text[head.end() : tails[-1].start()])
    return (parts[0], parts[1]) if len(parts) == 2 else ("", "")


def _all_rows(source: str | Sequence[str], key: str) -> Rows:
    for path in source_files(source, key):
        yield from file_rows(path, key)


def _nothing(
    key: str, source: str | Sequence[str], wanted: str, left_out: Counter[str]
) -> RecipeError:
    name = source if isinstance(source, str) else ", ".join(source)
    counts = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "it is empty"
    return RecipeError(f"{key}: {name} has no {wanted}: {counts}.")


def _chat(row: dict[str, Any], where: str, last: str) -> list[Message]:
    """The turns under "messages", the last of which is a user's or an assistant's."""
    turns: Any = row.get("messages")
    chat = isinstance(turns, list) and all(
        isinstance(turn, dict)
        and turn.get("role") in ("system", "user", "assistant")
        and isinstance(turn.get("content"), str)
        for turn in turns
    )
    least = 2 if last == "assistant" else 1
    if not chat or len(turns) < least or turns[-1]["role"] != last:
        raise RecipeError(
            f'{where}: wanted {{"messages": [{{"role": "user", "content": "…"}}, …]}} that ends '
            f"with the {last}'s turn, found {', '.join(sorted(row))}."
        )
    return [Message(turn["role"], turn["content"]) for turn in turns]


def _reply(value: Any, where: str, side: str) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise RecipeError(
            f'{where}: "{side}" wanted {{"role": "assistant", "content": "…"}}, '
            f"found {str(value)[:80]!r}."
        )
    return text


def _example(
    id: str, prompt: tuple[Message, ...], reply: str, templates: str
) -> TrainingExample | str:
    """A row as it is trained on, or why it is left out."""
    users = [message.content for message in prompt if message.role == "user"]
    critiques = [message.content for message in prompt if message.role == "assistant"]
    if not reply.strip() or not users or not users[0].strip():
        return "empty"
    case, ours = judged_case(users[0]), users[0].startswith(_OURS)
    verdict = parse_verdict(_QUESTION.sub(r"\1", critiques[0] if critiques else reply))
    if case is None and verdict is None and not ours:
        if critiques:
            return "chats of several turns"
        return TrainingExample(id, "answer", prompt, reply)
    if verdict is None:
        return "judgements without a verdict"
    if templates == "paper" or (ours and (not critiques or users[-1] == REFINE)):
        kind = "refinement" if critiques else "judgement"
        return TrainingExample(id, kind, prompt, reply, every_reply=bool(critiques))
    if not case or not all(case):
        return "judgements of what cannot be told apart in the prompt"
    instruction, answer = case
    if not critiques:
        asked = judge_messages(instruction, answer)
        return TrainingExample(id, "judgement", asked, _QUESTION.sub(r"\1", reply))
    return _refinement(id, instruction, answer, critiques, verdict, reply)


def _refinement(
    id: str, instruction: str, answer: str, critiques: list[str], verdict: bool, reply: str
) -> TrainingExample | str:
    """A refine row in our templates; the loss falls on the critique too, as the paper's does."""
    better = parse_refinement(reply)
    if len(critiques) != 1 or better is None:
        return "refinements that cannot be read"
    if verdict:
        return "refinements of what was judged to be right"
    if better.strip() == answer.strip():
        return "refinements that copy the answer"
    chat = refine_messages(instruction, answer, _QUESTION.sub(r"\1", critiques[0]))
    return TrainingExample(id, "refinement", chat, reply, every_reply=True)
