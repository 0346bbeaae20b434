"""The lessons that a program writes: rows that teach both adapters, from a model's own answers.

A program knows which answers meet everything, breaks those minimally, critiques both with quoted
evidence, and so writes what a teacher would have written: judgements ending in a verdict,
refinements, and answers that meet their constraints.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from spar_lite import constraints
from spar_lite.constraints import Answer, Requirement
from spar_lite.constraints.text import sentence_spans, words
from spar_lite.data.prompts import requirements
from spar_lite.records import Prompt, Response, TrainingExample, stable_seed
from spar_lite.templates import (
    answer_messages,
    judge_messages,
    judge_reply,
    refine_messages,
    refine_reply,
)

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
    prompts, own = list(prompts), defaultdict[str, list[str]](list)
    for response in answers:
        own[response.prompt_id] += shorter(whole_sentences(response.text))
    for texts in own.values():  # the shorter first: easier to say, to judge and to copy
        texts.sort(key=lambda text: len(text.split()))
    good = {p.id: good_texts(requirements(p), own[p.id]) for p in prompts}
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
    order = _drawn(asked, seed, good[0])
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
    spoilt = (rule.spoil(good) for rule in _drawn(known, seed, text))
    bad = next(filter(None, spoilt), None)
    return (good, bad) if bad else None


def _drawn(known: Sequence[Requirement], seed: int, text: str) -> list[Requirement]:
    """All of them, in an order drawn by seed and text: the first that can be is spoilt."""
    return random.Random(stable_seed(seed, "spoil", text)).sample(known, len(known))


def whole_sentences(text: str) -> str:
    """Drop a last sentence or list item that was cut off, unless it is all there is."""
    text = re.sub(r"\n\s*(?:\d+[.)]|[-*])\s*$", "", text.strip()).strip()
    end = max(text.rfind(mark) for mark in ".!?")
    return text if end <= 0 or text[-1] in ".!?\"')]}" else text[: end + 1]


def shorter(text: str) -> list[str]:
    """A text and what is left of it after its first sentence, and after its second."""
    ends = [end for _, end in sentence_spans(text)[:2]]
    return list(dict.fromkeys([*(text[:end] for end in ends), text]))


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
    missed = "; ".join(rule.label() for rule in known if not rule.check(bad))
    mended = refine_reply(f"To change: {missed}.", good)
    return [judged, TrainingExample(f"{id}/refine", "refinement", chat, mended, every_reply=True)]


def kept_share(bad: str, good: str) -> float:
    """Share of the bad text's words that stand in the good one, in the same order."""
    before, after = ([w.lower() for w in words(text)] for text in (bad, good))
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(before) if before else 0.0


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
