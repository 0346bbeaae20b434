"""The warm-up before iteration 1, without a teacher: a program writes the lessons.

The base model answers short prompts several times; a program knows which answers meet everything,
breaks those minimally, critiques both with quoted evidence, and so writes what a teacher would have
written: judgements ending in a verdict, refinements, and answers that meet their constraints. It
teaches both adapters the formats and as much of the task as they can take.

Knows constraints, templates and the engine protocol; no model, no files but the one it is given.
"""

from __future__ import annotations

import difflib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spar_lite import constraints
from spar_lite.constraints import Answer, Requirement
from spar_lite.constraints.text import sentence_spans, words
from spar_lite.errors import RecipeError
from spar_lite.instructions import requirements
from spar_lite.prompts import (
    answer_messages,
    judge_messages,
    judge_reply,
    refine_messages,
    refine_reply,
)
from spar_lite.records import Message, Prompt, Response, TrainingExample, stable_seed
from spar_lite.verdict import parse_verdict

OWN_ANSWERS = 2
"""Good answers of its own per prompt that the actor is taught, at most."""

REFINABLE = 0.5
"""Share of a bad text's words that a good one must keep for a refinement to be taught."""

PHRASE_ALONE = 0.4
"""Share of the texts without an answer that are a required phrase alone: what models say first."""


def lessons(
    prompts: Sequence[Prompt], answers: Iterable[Response], seed: int, minimal: int = 0
) -> list[TrainingExample]:
    """Write the warm-up rows from a model's own answers, several a prompt.

    What teaches well is what the model can say itself: answers that meet everything are taught as
    they are, and the bad text beside each is a small corruption of it. Where a prompt has no such
    answer, one that fails is repaired, if that leaves an answer. Of each prompt with a good text:

    1. the good answers themselves, for the actor;
    2. a pair (good, bad) whose bad text misses a constraint;
    3. one whose bad text meets the constraints and is no answer: said twice, the phrase alone, the
       request read back, cut off, or about another topic;
    4. ``minimal`` more pairs of sort 2: first an own answer that failed and can be repaired, then
       texts that miss another constraint, or the same in another way.

    Each pair gives a judgement of the good text, a Yes, and a chat that judges the bad one, a No,
    and refines it, the loss falling on both replies. Where the good text keeps little of the bad
    one there is nothing to refine, and the No stands alone.
    """
    prompts, own = list(prompts), dict[str, list[str]]()
    for response in answers:
        own.setdefault(response.prompt_id, []).extend(shorter(whole_sentences(response.text)))
    # The shorter first: easier to say, to judge and to copy.
    own = {id: sorted(texts, key=lambda text: len(text.split())) for id, texts in own.items()}
    good = {p.id: good_texts(requirements(p), own.get(p.id, [])) for p in prompts}
    rows: list[TrainingExample] = []
    for place, prompt in enumerate(prompts):
        if not (texts := good[prompt.id]):
            continue
        asked = answer_messages(prompt.text)
        rows += [
            TrainingExample(f"{prompt.id}/{n}/answer", "answer", asked, text)
            for n, text in enumerate(texts[:OWN_ANSWERS])
        ]
        others = [text for p in prompts[place + 1 :] + prompts[:place] for text in good[p.id][:1]]
        pairs = list(_pairs(requirements(prompt), texts, own[prompt.id], others, seed, minimal))
        for n, (fine, bad) in enumerate(pairs):
            rows += _rows(prompt, fine, bad, f"{prompt.id}/{n}")
    return rows


def good_texts(known: Sequence[Requirement], texts: Sequence[str]) -> list[str]:
    """The texts that meet everything; if there is none, the first that a repair makes meet it."""
    found = [text for text in dict.fromkeys(texts) if all(constraints.check_all(known, text))]
    if found:
        return found
    failing = sorted(filter(None, texts), key=lambda t: -sum(constraints.check_all(known, t)))
    mended = (constraints.mend_all(known, text) for text in failing)
    return [text for text in mended if text][:1]


def _pairs(
    known: Sequence[Requirement],
    good: Sequence[str],
    own: Sequence[str],
    others: Sequence[str],
    seed: int,
    minimal: int,
) -> Iterator[tuple[str, str]]:
    """(good, bad) texts of one prompt, as ``lessons`` says; each good text in turn."""
    turns = itertools.cycle(good)
    asked = [rule for rule in known if not isinstance(rule, Answer)]
    order = random.Random(stable_seed(seed, "spoil", good[0])).sample(asked, len(asked))
    failed = ((constraints.mend_all(known, text), text) for text in own if text not in good)
    repaired = [(mended, text) for mended, text in failed if mended]
    spoilt = [
        (fine, bad)
        for fine, rule in zip(turns, [*order, *order], strict=False)
        if (bad := rule.spoil(fine))
    ]
    # A good text that was made by a repair has its bad one already.
    missing = repaired + spoilt if good[0] not in own else spoilt[:1] + repaired + spoilt[1:]
    missing = list({bad: (fine, bad) for fine, bad in reversed(missing)}.values())[::-1]
    yield from missing[:1]
    if len(asked) < len(known) and (bad := thin_text(known, fine := next(turns), others, seed)):
        yield fine, bad
    yield from missing[1 : 1 + minimal]


def thin_text(
    known: Sequence[Requirement], good: str, others: Sequence[str], seed: int
) -> str | None:
    """A text that is no answer and, where that can be, meets every constraint, drawn by seed.

    It is made of a good one; in one of five cases of another prompt's, so that the topic is wrong.
    Often it is the required phrase alone, which is what models say first.
    """
    asked, rule = known[:-1], known[-1]
    assert isinstance(rule, Answer)
    rng = random.Random(stable_seed(seed, "thin", good))
    if others and rng.random() < 0.2:
        foreign = constraints.mend_all(asked, rng.choice(others))
        if foreign and not rule.check(foreign):
            return foreign
    thin = [bad for bad in rule.spoilt(good) if all(constraints.check_all(asked, bad))]
    alone = [bad for bad in thin if rule.is_phrase(bad)]
    if alone and rng.random() < PHRASE_ALONE:
        return alone[0]
    return rng.choice(thin) if thin else rule.spoil(good)


def good_and_bad(known: Sequence[Requirement], text: str, seed: int) -> tuple[str, str] | None:
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
    """Drop a last sentence or list item that was cut off, unless it is all there is."""
    text = re.sub(r"\n\s*(?:\d+[.)]|[-*])\s*$", "", text.strip()).strip()
    end = max(text.rfind(mark) for mark in ".!?")
    return text if end <= 0 or text[-1] in ".!?\"')]}" else text[: end + 1]


def shorter(text: str) -> list[str]:
    """A text and what is left of it after its first sentence, and after its second."""
    ends = [end for _, end in sentence_spans(text)[:2]]
    return list(dict.fromkeys([*(text[:end] for end in ends), text]))


def reflection(known: Sequence[Requirement], text: str) -> str:
    """What a refinement must change: the names of the constraints that the text misses."""
    missed = [rule.label() for rule in known if not rule.check(text)]
    return "To change: " + "; ".join(missed) + "."


def _rows(prompt: Prompt, good: str, bad: str, id: str) -> list[TrainingExample]:
    """A Yes, and a No with its refinement if the bad text is near enough to the good one."""
    known = requirements(prompt)
    passed = judge_reply(constraints.critique(known, good), True)
    failed = judge_reply(constraints.critique(known, bad), False)
    judged = TrainingExample(f"{id}/judge", "judgement", judge_messages(prompt.text, good), passed)
    if kept_share(bad, good) < REFINABLE:
        asked = judge_messages(prompt.text, bad)
        return [judged, TrainingExample(f"{id}/refuse", "judgement", asked, failed)]
    chat = refine_messages(prompt.text, bad, failed)
    mended = refine_reply(reflection(known, bad), good)
    return [judged, TrainingExample(f"{id}/refine", "refinement", chat, mended, every_reply=True)]


def kept_share(bad: str, good: str) -> float:
    """Share of the bad text's words that stand in the good one, in the same order."""
    before, after = ([w.lower() for w in words(text)] for text in (bad, good))
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(before) if before else 0.0


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
