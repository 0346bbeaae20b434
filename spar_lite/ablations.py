"""What the loop learns from instead, where a recipe asks whether a part of it is needed.

The paper's ablation without refinement (table 4), Self-Rewarding's pairing, and others that later
work compares with: other sides of a pair (``pairs.source``), other rejected answers
(``dpo.rejected``), and less of everything (``iterate.tokens``, ``iterate.pairs``).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from spar_lite.constraints import from_json as read_constraint
from spar_lite.judge import judge_answer, share_met
from spar_lite.pairs import Sides, choose_negatives, preference_pairs, refined
from spar_lite.recipe import Recipe
from spar_lite.records import Judgement, PreferencePair, Prompt, Response, Tree, stable_seed
from spar_lite.run import Run, Summary, adapters_after
from spar_lite.sample import sample_answer
from spar_lite.steps import Records, StepFolder


class Played(NamedTuple):
    """What an iteration's self-play made, a prompt's records in each of them."""

    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    judgements: Sequence[Judgement]
    trees: Sequence[Tree]

    @property
    def asked(self) -> dict[str, Prompt]:
        """The prompts by their ids."""
        return {prompt.id: prompt for prompt in self.prompts}

    @property
    def judged(self) -> dict[str, Judgement]:
        """The judgements by their answers' ids."""
        return {judgement.id: judgement for judgement in self.judgements}

    def tokens(self, others: Others | None = None) -> Counter[str]:
        """Generated tokens by prompt."""
        spent = Counter[str]()
        made: list[Response | Judgement | Tree] = [*self.responses, *self.judgements, *self.trees]
        for record in [*made, *itertools.chain(*(others or ()))]:
            spent[_prompt_of(record)] += record.cost.completion_tokens
        return spent

    def within(self, limit: int, others: Others | None = None) -> Played:
        """Of the first prompts alone that took at most ``limit`` generated tokens (0: of all)."""
        if not limit:
            return self
        spent = self.tokens(others)
        inside: set[str] = set()
        for prompt in self.prompts:
            limit -= spent[prompt.id]
            if limit < 0:
                break
            inside.add(prompt.id)
        return Played(
            [p for p in self.prompts if p.id in inside],
            [r for r in self.responses if r.prompt_id in inside],
            [j for j in self.judgements if _prompt_of(j) in inside],
            [t for t in self.trees if t.prompt_id in inside],
        )


class Others(NamedTuple):
    """Answers that are rejected in place of the actor's own failed ones, and their judgements."""

    answers: Records[Response]
    judgements: Records[Judgement]

    @property
    def failed(self) -> dict[str, Response]:
        """Those that a judge let fail, by prompt."""
        judged = self.judgements.by_id
        return {r.prompt_id: r for r in self.answers if judged[r.id].verdict is False}


def other_answers(at: StepFolder, number: int, prompts: Records[Prompt]) -> Others | None:
    """The two steps by which they are made; None where the recipe takes the actor's own.

    Of the actor before iteration 1 where ``dpo.rejected`` is initial; to a prompt that lacks one
    of its constraints where ``pairs.source`` is constraint-drop. Judged by the whole prompt.
    """
    run, recipe = at.run, at.run.recipe
    dropped = recipe.pairs.source == "constraint-drop"
    initial = recipe.dpo.rejected == "initial" and number > 1
    if not dropped and not initial:
        return None
    now = adapters_after(recipe, run.folder, number - 1)
    seed = stable_seed(recipe.seed, at.name)
    asked = partial(without_one, seed=seed) if dropped else lambda prompt: prompt
    answers = at.each(
        "other_answers",
        Response,
        lambda: {
            (id := f"{p.id}/other"): partial(sample_answer, run.engine, short, id, recipe.sample)
            for p in prompts
            if (short := asked(p)) is not None
        },
        keys=["pairs.source", "dpo.rejected", "sample"],
        inputs=[prompts],
        adapters=adapters_after(recipe, run.folder, 0) if initial else now,
        summary=partial(_asked, run),
    )
    judgements = at.each(
        "other_judgements",
        Judgement,
        lambda: {
            r.id: partial(
                judge_answer, run.engine, prompts.by_id[r.prompt_id], r.text, r.id, recipe.judge
            )
            for r in answers
        },
        keys=["judge"],
        inputs=[prompts, answers],
        adapters=now,
        summary=lambda found: {"failed": sum(j.verdict is False for j in found)},
    )
    return Others(answers, judgements)


def _asked(run: Run, answers: Sequence[Response]) -> Summary:
    if not answers:
        run.screen.say(
            "pairs.source: constraint-drop wants prompts whose constraints stand in their text, "
            "such as builtin ones, and found none: there will be no pairs"
        )
    return {"answers": len(answers)}


def pairs_of(
    recipe: Recipe, seed: object, played: Played, others: Others | None
) -> list[PreferencePair]:
    """The pairs that the recipe's ``pairs.source`` makes of what was played, up to its limits."""
    sides = list(_sides(recipe, seed, played))
    if others:
        failed = others.failed
        sides = [
            side._replace(rejected=failed[side.prompt.id])
            for side in sides
            if side.prompt.id in failed
        ]
    pairs, most = preference_pairs(sides), recipe.iterate.pairs
    learnt = [p for p in pairs if recipe.dpo.interfering or not p.interferes]
    # Those that no training takes in stand with the others, to be counted.
    last = pairs.index(learnt[most - 1]) if most and len(learnt) > most else len(pairs)
    return pairs[: last + 1]


def _sides(recipe: Recipe, seed: object, played: Played) -> Iterator[Sides]:
    """Two answers a prompt, where it has two as the source wants them."""
    prompts, responses, _, trees = played
    source, judged = recipe.pairs.source, played.judged
    if source in ("refined", "first-refinement"):
        if source == "first-refinement":
            trees = [replace(t, accepted="0" if _first_passes(t) else None) for t in trees]
        yield from refined(played.asked, {r.id: r for r in responses}, trees)
        return
    own: dict[str, list[Response]] = {p.id: [] for p in prompts}
    for response in responses:
        if response.id in judged:
            own[response.prompt_id].append(response)
    if source == "best-of-n":
        for prompt in prompts:
            ranked = [(rank, r) for r in own[prompt.id] if (rank := _rank(recipe, judged[r.id]))]
            whole = [(rank, r) for rank, r in ranked if r.finished]
            if not whole:  # that it ends there would be learnt of an answer that was cut off
                continue
            # Of equals the first sample is both the best and the worst.
            highest, best = max(whole, key=lambda pair: pair[0])
            lowest, worst = min(ranked, key=lambda pair: pair[0])
            if highest > lowest:
                yield Sides(prompt, best.text, worst)
        return
    failed = {p.id: r for p, r in choose_negatives(prompts, responses, judged, seed)}
    for prompt in prompts:
        passed = [r for r in own[prompt.id] if r.finished and judged[r.id].verdict]
        # Of a constraint dropped, the rejected answer is another one, put in afterwards.
        other = passed[:1] if source == "constraint-drop" else filter(None, [failed.get(prompt.id)])
        for rejected in other if passed else []:
            chosen = random.Random(stable_seed(seed, "chosen", prompt.id)).choice(passed)
            yield Sides(prompt, chosen.text, rejected)


def _first_passes(tree: Tree) -> bool:
    """Whether the first refinement of a tree's answer passes, whatever the others do."""
    first = next((node for node in tree.nodes if node.path == "0"), None)
    return bool(first and first.judgement and first.judgement.verdict)


def _rank(recipe: Recipe, judgement: Judgement) -> tuple[float, float] | None:
    """An answer's value, and the constraints met where a program judges, as in a tree."""
    if judgement.value is None:
        return None
    return judgement.value, share_met(judgement, recipe.judge)


def _prompt_of(record: Response | Judgement | Tree) -> str:
    """The id of a record's prompt, which a judgement's id begins with."""
    return record.id.rpartition("/")[0] if isinstance(record, Judgement) else record.prompt_id


def without_one(prompt: Prompt, seed: object) -> Prompt | None:
    """The prompt without the words that ask for one of its constraints, drawn by seed.

    None where there are none to be found in its text: a model wrote it, or it is a task whose
    whole is its constraint.
    """
    found = [
        words
        for data in prompt.constraints
        for words in read_constraint(data).phrasings()
        if words in prompt.text and prompt.text.strip() != words
    ]
    if not found:
        return None
    words = random.Random(stable_seed(seed, "drop", prompt.id)).choice(found)
    return replace(prompt, text=" ".join(prompt.text.replace(words, " ").split()))
