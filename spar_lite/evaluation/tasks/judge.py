"""How good the refiner is as a judge, each answer judged by itself (paper, section 3.3).

Two sources of cases with a known truth: LLMBar, whose preferred output counts as following the
instruction and the other as not; and minimal pairs that a program made from a model's own answers,
half of which meet every constraint. Either way half of the truth is Yes, so a judge that always
says the same word is right half of the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from spar_lite.data.prompts import requirements
from spar_lite.engines.base import Engine
from spar_lite.errors import StoreError
from spar_lite.evaluation.runner import (
    Card,
    Job,
    Task,
    decoding_settings,
    evaluate,
    kinds_named,
    tag,
)
from spar_lite.evaluation.stats import Interval, bootstrap, f1, macro_mean, mean, share
from spar_lite.evaluation.tasks import by_group, from_hub
from spar_lite.judge import judge_answer
from spar_lite.lessons import good_and_bad, whole_sentences
from spar_lite.recipe import Judge
from spar_lite.records import Cost, Prompt, Response, Vote, stable_seed
from spar_lite.steps import collect
from spar_lite.store import StageFile


@dataclass(frozen=True, slots=True)
class JudgeCase:
    """One answer with its truth. Cases of one pair share ``pair``; ``subset`` groups the table."""

    id: str
    pair: str
    subset: str
    instruction: str
    answer: str
    truth: bool


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """What the refiner said. ``score``: 1 right, 0 wrong or no judgement at all."""

    id: str
    pair: str
    subset: str
    truth: bool
    votes: tuple[Vote, ...]
    value: float | None
    verdict: bool | None
    score: float
    cost: Cost


def llmbar_cases(path: Path | None) -> list[JudgeCase]:
    """LLMBar: a dataset.json, a folder with one below each subset's folder, or the Hub's (None).

    Raises:
        SparError: no such file, or one of another shape; what was wanted is named.
    """
    if path is None:
        advice = "LLMBar's Dataset folder, from github.com/princeton-nlp/LLMBar: --data FOLDER"
        found = from_hub("princeton-nlp/LLMBar", "LLMBar", advice)
        return [case for name, rows in found.items() for case in _row_pairs(rows, name)]
    files, root = [path], path.parent
    if path.is_dir():
        files, root = sorted(path.rglob("dataset.json")), path
    if not files:
        raise StoreError(f"{path} holds no dataset.json; wanted LLMBar's Dataset folder.")
    cases = []
    for file in files:
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise TypeError(f"wanted a list, found {type(rows).__name__}")
            cases += _row_pairs(rows, "/".join(file.parent.relative_to(root).parts) or root.name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f'{file} is not LLMBar\'s: {error!r}. Wanted [{{"input", "output_1", "output_2", '
                '"label": 1 or 2}, …].'
            ) from None
    return cases


def _row_pairs(rows: Iterable[Mapping[str, Any]], subset: str) -> list[JudgeCase]:
    """The two cases of each of LLMBar's rows."""
    cases = []
    for n, row in enumerate(rows):
        if row["label"] not in (1, 2):
            raise ValueError(f"row {n + 1}: label wants 1 or 2, found {row['label']!r}")
        pair, asked = f"{subset}-{n:04d}", str(row["input"])
        for side in (1, 2):
            answer, truth = str(row[f"output_{side}"]), row["label"] == side
            cases.append(JudgeCase(f"{pair}-{side}", pair, subset, asked, answer, truth))
    return cases


def minimal_pairs(answered: Iterable[tuple[Prompt, Response]], seed: int) -> list[JudgeCase]:
    """Two cases a prompt: an answer that meets every constraint, and one that a small edit parts
    from it and that misses at least one; none where the program finds no such edit.

    The subset is the kind of the first constraint missed.
    """
    cases = []
    for prompt, answer in answered:
        known = requirements(prompt)
        pair = good_and_bad(known, whole_sentences(answer.text), seed)
        if pair is None:
            continue
        missed = next(rule.kind for rule in known if not rule.check(pair[1]))
        for text, truth in zip(pair, (True, False), strict=True):
            id = f"{prompt.id}-{'good' if truth else 'bad'}"
            cases.append(JudgeCase(id, prompt.id, missed, prompt.text, text, truth))
    return cases


async def judge_case(engine: Engine, case: JudgeCase, settings: Judge) -> JudgeResult:
    """N votes on one case; the program has no say, whatever the recipe's mode."""
    settings = settings.model_copy(update={"mode": "llm"})
    asked = Prompt(case.id, case.instruction)
    found = await judge_answer(engine, asked, case.answer, case.id, settings)
    return JudgeResult(
        id=case.id,
        pair=case.pair,
        subset=case.subset,
        truth=case.truth,
        votes=found.votes,
        value=found.value,
        verdict=found.verdict,
        score=float(found.verdict is case.truth),
        cost=found.cost,
    )


class Judging(Task[JudgeResult]):
    """The refiner as a judge of cases; ``source`` says where they come from, ``own`` how."""

    name = "judge"
    kind = JudgeResult

    def __init__(self, cases: Sequence[JudgeCase], source: str, **own: Any) -> None:
        self.cases, self.source, self.own = cases, source, own
        self.file = f"judge-{source}"

    def settings(self, job: Job) -> dict[str, Any]:
        judge = job.target.recipe.judge
        return {
            "source": self.source,
            "cases": len(self.cases),
            "texts": stable_seed(*(t for c in self.cases for t in (c.instruction, c.answer))),
            **decoding_settings(judge),
            "votes": judge.votes,
            "early_stop": judge.early_stop,
            **self.own,
        }

    def results(self, job: Job, file: StageFile[JudgeResult]) -> list[JudgeResult]:
        if not self.cases:
            raise StoreError("no cases to judge: the data held none, or no answer could be used.")
        judge = job.target.recipe.judge
        items = [(c.id, partial(judge_case, job.lazy, c, judge)) for c in self.cases]
        return collect(job.screen, "judgements", file, items, "cases")

    @staticmethod
    def scores(results: Sequence[JudgeResult], seed: int) -> dict[str, Interval]:
        """The scores of one judge.

        accuracy counts a missing judgement as wrong, accuracy_judged leaves it out; f1 is that of
        Yes; macro and macro_f1 are the means over the subsets, which follow; preferred_higher: of
        the pairs whose values differ, those where the better answer has the higher one.
        """
        judged = [r for r in results if r.verdict is not None]
        values = {(r.pair, r.truth): r.value for r in results if r.value is not None}
        goods = [pair for pair, truth in values if truth and (pair, False) in values]
        both = [(values[pair, True], values[pair, False]) for pair in goods]
        scores = {
            "accuracy": share(r.score == 1 for r in results),
            "accuracy_judged": share(r.score == 1 for r in judged),
            "f1": bootstrap(results, _f1, seed),
            "says_yes": share(r.verdict is True for r in judged),
            "preferred_higher": share(good > bad for good, bad in both if good != bad),
            "no_judgement": share(r.verdict is None for r in results),
            "ties": share(r.value == 0.5 and r.verdict is None for r in results),
            "unreadable_votes": share(v.verdict is None for r in results for v in r.votes),
        }
        subsets = _by_subset(results)
        if len(subsets) > 1:
            right = {name: [r.score for r in part] for name, part in subsets.items()}
            scores["macro"] = macro_mean(right, seed)
            scores["macro_f1"] = bootstrap(results, _macro_f1, seed, draws=1000)
            scores |= by_group("accuracy", ((r.subset, r.score == 1) for r in results))
            for name, part in subsets.items():
                scores[f"f1/{name}"] = bootstrap(part, _f1, seed)
        return scores


def _by_subset(results: Sequence[JudgeResult]) -> dict[str, list[JudgeResult]]:
    names = sorted({r.subset for r in results})
    return {name: [r for r in results if r.subset == name] for name in names}


def _f1(results: Sequence[JudgeResult]) -> float:
    return f1([(r.truth, r.verdict is True) for r in results])


def _macro_f1(results: Sequence[JudgeResult]) -> float:
    return mean([_f1(part) for part in _by_subset(results).values()])


@click.command("judge")
@click.option(
    "--on",
    "source",
    type=click.Choice(("llmbar", "constraints")),
    default="llmbar",
    help="LLMBar, or minimal pairs that a program made of the base's answers [llmbar].",
)
@click.option("--data", type=click.Path(path_type=Path), help="LLMBar's folder or a dataset.json.")
@click.option("--count", default=200, show_default=True, help="Prompts for --on constraints.")
@click.option("--kinds", default="", help="Their constraint kinds, with commas [the recipe's].")
def command(job: Job, source: str, data: Path | None, count: int, kinds: str) -> Card:
    """The refiner as a judge: accuracy and F1.

    Each answer is judged by itself.
    """
    if source == "llmbar":
        return evaluate(job, Judging(llmbar_cases(data), "llmbar"))
    chosen = kinds_named(kinds)
    cases = minimal_pairs(job.base_answers(count, chosen), job.seed)
    source = f"constraints{tag(chosen)}"
    return evaluate(job, Judging(cases, source, kinds=list(chosen), prompts=count))
