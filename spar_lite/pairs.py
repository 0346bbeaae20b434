"""Steps 3, 5 and 7 as pure functions: negatives, preference pairs, the refiner's examples.

Records in, records out (paper, sections 2.3.2 to 2.3.4); no engine, no files, no randomness that
does not follow from coordinates.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from spar_lite.prompts import answer_messages, judge_messages, refine_messages
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


def preference_pairs(prompts: Mapping[str, Prompt], trees: Iterable[Tree]) -> list[PreferencePair]:
    """One pair per accepted tree: chosen = the accepted refinement, rejected = the root's answer.

    A refinement equal to the answer it came from teaches nothing and makes no pair.
    """
    pairs = []
    for tree in trees:
        if tree.accepted is None:
            continue
        chosen, rejected = tree.node(tree.accepted).text, tree.node("").text
        assert chosen is not None and rejected is not None
        if chosen != rejected:
            messages = answer_messages(prompts[tree.prompt_id].text)
            pairs.append(PreferencePair(tree.id, tree.prompt_id, messages, chosen, rejected))
    return pairs


def refiner_examples(
    prompts: Mapping[str, Prompt],
    responses: Iterable[Response],
    judgements: Mapping[str, Judgement],
    trees: Sequence[Tree],
    settings: Rft,
    seed: object,
) -> list[TrainingExample]:
    """Assemble step 7's data under the paper's caps, deduplicated by first message.

    (a) accepted refinements as two-turn chats; (b) critiques of tree nodes and (c) critiques of
    sampled answers where the votes did not agree among themselves or with the verdict of record,
    whose critique is the target.
    """
    refined = [_refinement(prompts[tree.prompt_id], tree) for tree in trees if tree.accepted]
    nodes = [
        (prompts[tree.prompt_id], node.text, node.judgement)
        for tree in trees
        for node in tree.nodes
        if node.path and node.text is not None and node.judgement
    ]
    answers = [
        (prompts[r.prompt_id], r.text, judgements[r.id]) for r in responses if r.id in judgements
    ]
    caps = {
        ("tree critique", True): settings.tree_positive,
        ("tree critique", False): settings.tree_negative,
        ("answer critique", True): settings.answer_positive,
        ("answer critique", False): settings.answer_negative,
    }
    groups = [_draw(refined, settings.refinements, seed, "refinement")]
    for (kind, verdict), cap in caps.items():
        source = nodes if kind == "tree critique" else answers
        found = [
            TrainingExample(f"{j.id}/{kind}", kind, judge_messages(p.text, text), j.critique)
            for p, text, j in source
            if j.verdict is verdict and j.critique and contested(j)
        ]
        groups.append(_draw(found, cap, seed, kind, verdict))
    return [example for group in groups for example in group]


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
    return TrainingExample(f"{tree.id}/{node.path}/refinement", "refinement", messages, node.reply)


def _draw(
    examples: Sequence[TrainingExample], cap: int, *coordinates: object
) -> list[TrainingExample]:
    """At most ``cap`` examples, none sharing a first message, in their old order."""
    first = {example.prompt[0].content: example for example in reversed(examples)}
    unique = [example for example in examples if first[example.prompt[0].content] is example]
    if len(unique) <= cap:
        return unique
    rng = random.Random(stable_seed("draw", *coordinates))
    return [unique[i] for i in sorted(rng.sample(range(len(unique)), cap))]
