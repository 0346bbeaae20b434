"""Steps 3, 5 and 7 as pure functions: negatives, preference pairs, the refiner's examples.

Records in, records out (paper, sections 2.3.1 to 2.3.4); no engine, no files, no randomness that
does not follow from coordinates.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from spar_lite.constraints import Answer
from spar_lite.data.prompts import requirements
from spar_lite.recipe import Rft
from spar_lite.records import (
    Judgement,
    PreferencePair,
    Prompt,
    Response,
    TrainingExample,
    Tree,
    stable_seed,
)
from spar_lite.templates import answer_messages, judge_messages, refine_messages

SIZES = frozenset({"length", "layout"})
"""What a constraint claims that is mended by making an answer shorter or longer."""

LOOPS = "says it twice"

REWRITTEN = 0.3
"""Similarity below which two answers are two answers, and not one and its refinement."""


def choose_negatives(
    prompts: Sequence[Prompt],
    responses: Iterable[Response],
    judgements: Mapping[str, Judgement],
    seed: object,
) -> list[tuple[Prompt, Response]]:
    """Draw one failed answer for each prompt that has any; ``judgements`` by response id."""
    failed: dict[str, list[Response]] = {}
    for response in responses:
        judgement = judgements.get(response.id)
        if judgement and judgement.verdict is False:
            failed.setdefault(response.prompt_id, []).append(response)
    return [
        (p, random.Random(stable_seed(seed, "negative", p.id)).choice(failed[p.id]))
        for p in prompts
        if p.id in failed
    ]


class Sides(NamedTuple):
    """Two answers to a prompt, of which one is better."""

    prompt: Prompt
    chosen: str
    rejected: Response


def refined(
    prompts: Mapping[str, Prompt], responses: Mapping[str, Response], trees: Iterable[Tree]
) -> list[Sides]:
    """Of each accepted tree: chosen = the accepted refinement, rejected = the root's answer."""
    found = []
    for tree in trees:
        if tree.accepted is not None:
            rejected, chosen = responses[tree.response_id], tree.node(tree.accepted).text
            assert chosen is not None and rejected.text == tree.node("").text
            found.append(Sides(prompts[tree.prompt_id], chosen, rejected))
    return found


def preference_pairs(sides: Iterable[Sides]) -> list[PreferencePair]:
    """One pair a prompt; its id is the prompt's, as a tree's is.

    Two answers that are equal teach nothing and make no pair.
    """
    return [
        PreferencePair(
            prompt.id,
            prompt.id,
            answer_messages(prompt.text),
            chosen,
            rejected.text,
            interference(prompt, rejected, chosen),
            cut_off=not rejected.finished,
        )
        for prompt, chosen, rejected in sides
        if chosen.strip() != rejected.text.strip()
    ]


def passed_answers(
    prompts: Mapping[str, Prompt],
    responses: Iterable[Response],
    judgements: Mapping[str, Judgement],
    cap: int,
    seed: object,
) -> list[TrainingExample]:
    """Draw at most ``cap`` sampled answers that passed and ended, the first of a prompt.

    Pairs alone teach a small model not to stop: many a rejected answer lacks an ending phrase, so
    that it is its end token that is rejected.
    """
    found = [
        TrainingExample(r.id, "passed answer", answer_messages(prompts[r.prompt_id].text), r.text)
        for r in responses
        if r.finished and r.id in judgements and judgements[r.id].verdict
    ]
    return _draw(found, cap, set(), seed, "passed")


def interference(prompt: Prompt, rejected: Response, chosen: str) -> tuple[str, ...]:
    """In what a pair differs beside what was mended (paper, section 1: interfering factors).

    "cut off": the rejected answer ran into the token limit, the chosen one ended; of one that goes
    round in circles that is the fault itself. "shorter", "longer": by more than half, or more than
    double, though no length was asked for. "rewritten": hardly a word in common. The last three are
    how a text that was no answer is mended, so there they do not count.
    """
    known = requirements(prompt)
    circles = any(isinstance(r, Answer) and LOOPS in r.faults(rejected.text) for r in known)
    found = [] if rejected.finished or circles else ["cut off"]
    missed = [rule for rule in known if not rule.check(rejected.text)]
    if not any(isinstance(r, Answer) or r.claims & SIZES for r in missed):
        before, after = len(rejected.text.split()), len(chosen.split())
        found += ["shorter"] if 2 * after < before else ["longer"] if after > 2 * before else []
        found += ["rewritten"] if similarity(rejected.text, chosen) < REWRITTEN else []
    return tuple(found)


def similarity(one: str, other: str) -> float:
    """Share of words in common and in order: difflib's ratio over words (2 x matches / words)."""
    return difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def refiner_examples(
    prompts: Mapping[str, Prompt],
    responses: Iterable[Response],
    judgements: Mapping[str, Judgement],
    trees: Sequence[Tree],
    settings: Rft,
    seed: object,
) -> list[TrainingExample]:
    """Assemble step 7's data under the paper's caps.

    (a) accepted refinements as two-turn chats, the loss on both replies, so that the parent's
    critique, a No, is a target too; (b) critiques of tree nodes, at most one Yes and one No a
    tree; (c) critiques of sampled answers. (b) and (c) are those where the votes did not agree
    among themselves or with the verdict of record, whose critique is the target. What an earlier
    group asks already is not asked again. A refinement that copies the answer teaches to copy,
    so it is no example.
    """
    refined = [
        _refinement(prompts[tree.prompt_id], tree)
        for tree in trees
        if tree.accepted and not _copies(tree)
    ]
    answers = [
        (prompts[r.prompt_id], r.text, judgements[r.id]) for r in responses if r.id in judgements
    ]
    seen: set[str] = set()
    found = _draw(refined, settings.refinements, seen, seed, "refinement")
    caps = {
        ("tree critique", True): settings.tree_positive,
        ("tree critique", False): settings.tree_negative,
        ("answer critique", True): settings.answer_positive,
        ("answer critique", False): settings.answer_negative,
    }
    for (kind, verdict), cap in caps.items():
        nodes = [_contested_node(prompts, tree, verdict) for tree in trees]
        source = list(filter(None, nodes)) if kind == "tree critique" else answers
        critiques = [
            TrainingExample(f"{j.id}/{kind}", kind, judge_messages(p.text, text), j.critique)
            for p, text, j in source
            if j.verdict is verdict and j.critique and contested(j)
        ]
        found += _draw(critiques, cap, seen, seed, kind, verdict)
    return found


def _contested_node(
    prompts: Mapping[str, Prompt], tree: Tree, verdict: bool
) -> tuple[Prompt, str, Judgement] | None:
    """The tree's first refinement with this verdict whose votes did not agree."""
    for node in tree.nodes:
        judgement = node.judgement
        if not node.path or node.text is None or judgement is None:
            continue
        if judgement.verdict is verdict and contested(judgement):
            return prompts[tree.prompt_id], node.text, judgement
    return None


def _copies(tree: Tree) -> bool:
    """Whether the accepted refinement is its parent's text, or the root's, again."""
    assert tree.accepted is not None
    text = tree.node(tree.accepted).text
    return text in (tree.node("").text, tree.node(tree.accepted.rpartition(".")[0]).text)


def contested(judgement: Judgement) -> bool:
    """Whether some readable vote differs from the verdict of record."""
    readable = {vote.verdict for vote in judgement.votes if vote.verdict is not None}
    return bool(readable - {judgement.verdict})


def _refinement(prompt: Prompt, tree: Tree) -> TrainingExample:
    """The accepted node's reply, in the chat that its parent's critique opened."""
    assert tree.accepted is not None
    node = tree.node(tree.accepted)
    parent = tree.node(tree.accepted.rpartition(".")[0])
    assert parent.text is not None and parent.judgement and parent.judgement.critique
    assert node.reply is not None
    messages = refine_messages(prompt.text, parent.text, parent.judgement.critique)
    id = f"{tree.id}/{node.path}/refinement"
    return TrainingExample(id, "refinement", messages, node.reply, every_reply=True)


def _draw(
    examples: Sequence[TrainingExample], cap: int, seen: set[str], *coordinates: object
) -> list[TrainingExample]:
    """At most ``cap`` examples in their old order, none whose first message was ``seen``.

    ``seen`` grows by those that are drawn.
    """
    fresh: dict[str, TrainingExample] = {}
    for example in examples:
        if (text := example.prompt[0].content) not in seen:
            fresh.setdefault(text, example)
    unique = list(fresh.values())
    if len(unique) > cap:
        rng = random.Random(stable_seed("draw", *coordinates))
        unique = [unique[i] for i in sorted(rng.sample(range(len(unique)), cap))]
    seen.update(example.prompt[0].content for example in unique)
    return unique
