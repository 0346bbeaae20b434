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
from spar_lite.errors import SparError, StoreError
from spar_lite.evaluation.runner import (
    Card,
    Job,
    Task,
    decoding_settings,
    evaluate,
    kinds_named,
    tag,
)
from spar_lite.evaluation.stats import Interval, bootstrap, f1, f1_score, macro_mean, wilson
from spar_lite.judge import judge_answer
from spar_lite.recipe import Judge
from spar_lite.records import Cost, Prompt, Response, Vote, stable_seed
from spar_lite.steps import collect
from spar_lite.store import StageFile
from spar_lite.warmup import good_and_bad, whole_sentences

HUB = "princeton-nlp/LLMBar"


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


def llmbar_cases(path: Path) -> list[JudgeCase]:
    """Read LLMBar: a dataset.json, or a folder with one below each subset's folder.

    Raises:
        StoreError: no such file, or one of another shape; what was wanted is named.
    """
    if path.is_dir():
        files = sorted(path.rglob("dataset.json"))
        if not files:
            raise StoreError(f"{path} holds no dataset.json; wanted LLMBar's Dataset folder.")
        names = ["/".join(f.parent.relative_to(path).parts) or path.name for f in files]
    else:
        files, names = [path], [path.parent.name]
    return [case for f, name in zip(files, names, strict=True) for case in _read(f, name)]


def _read(path: Path, subset: str) -> list[JudgeCase]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError(f"wanted a list, found {type(rows).__name__}")
        return [case for n, row in enumerate(rows) for case in llmbar_pair(row, n, subset)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f'{path} is not LLMBar\'s: {error!r}. Wanted [{{"input", "output_1", "output_2", '
            '"label": 1 or 2}, …].'
        ) from None


def llmbar_pair(row: Mapping[str, Any], number: int, subset: str) -> list[JudgeCase]:
    """The two cases of one LLMBar row."""
    if row["label"] not in (1, 2):
        raise ValueError(f"row {number + 1}: label wants 1 or 2, found {row['label']!r}")
    pair = f"{subset}-{number:04d}"
    return [
        JudgeCase(
            f"{pair}-{side}",
            pair,
            subset,
            str(row["input"]),
            str(row[f"output_{side}"]),
            row["label"] == side,
        )
        for side in (1, 2)
    ]


def minimal_pairs(
    prompts: Sequence[Prompt], answers: Iterable[Response], seed: int
) -> list[JudgeCase]:
    """Two cases a prompt: an answer that meets every constraint, and one that a small edit parts
    from it and that misses at least one; none where the program finds no such edit.

    The subset is the kind of the first constraint missed.
    """
    by_prompt = {answer.prompt_id: answer for answer in answers}
    cases = []
    for prompt in prompts:
        known = requirements(prompt)
        answer = by_prompt.get(prompt.id)
        pair = good_and_bad(known, whole_sentences(answer.text), seed) if answer else None
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
    prompt = Prompt(case.id, case.instruction)
    found = await judge_answer(engine, prompt, case.answer, case.id, settings)
    score = float(found.verdict is case.truth)
    return JudgeResult(
        case.id,
        case.pair,
        case.subset,
        case.truth,
        found.votes,
        found.value,
        found.verdict,
        score,
        found.cost,
    )


def judge_scores(results: Sequence[JudgeResult], seed: int = 0) -> dict[str, Interval]:
    """The scores of one judge.

    accuracy counts a missing judgement as wrong, accuracy_judged leaves it out; f1 is that of Yes;
    macro and macro_f1 are the means over the subsets, which follow; preferred_higher: of the pairs
    whose values differ, those where the better answer has the higher one.
    """
    judged = [r for r in results if r.verdict is not None]
    votes = [vote for r in results for vote in r.votes]
    unreadable = sum(vote.verdict is None for vote in votes)
    ties = sum(r.value == 0.5 and r.verdict is None for r in results)
    higher = _pairs(results)
    subsets = sorted({r.subset for r in results})
    by_subset = {name: [r for r in results if r.subset == name] for name in subsets}
    scores = {
        "accuracy": wilson(sum(r.score == 1 for r in results), len(results)),
        "accuracy_judged": wilson(sum(r.score == 1 for r in judged), len(judged)),
        "f1": f1_score(_said(results), seed),
        "says_yes": wilson(sum(r.verdict is True for r in judged), len(judged)),
        "preferred_higher": wilson(sum(higher), len(higher)),
        "no_judgement": wilson(len(results) - len(judged), len(results)),
        "ties": wilson(ties, len(results)),
        "unreadable_votes": wilson(unreadable, len(votes)),
    }
    if len(subsets) > 1:
        shares = {name: [r.score for r in part] for name, part in by_subset.items()}
        scores["macro"] = macro_mean(shares, seed)
        scores["macro_f1"] = bootstrap(results, _macro_f1, seed, draws=1000)
        for name, part in by_subset.items():
            scores[f"accuracy/{name}"] = wilson(sum(r.score == 1 for r in part), len(part))
        for name, part in by_subset.items():
            scores[f"f1/{name}"] = f1_score(_said(part), seed)
    return scores


def _said(results: Sequence[JudgeResult]) -> list[tuple[bool, bool]]:
    """(truth, whether it said Yes) of each case."""
    return [(r.truth, r.verdict is True) for r in results]


def _macro_f1(results: Sequence[JudgeResult]) -> float:
    subsets = {r.subset for r in results}
    return sum(f1(_said([r for r in results if r.subset == s])) for s in subsets) / len(subsets)


def _pairs(results: Sequence[JudgeResult]) -> list[bool]:
    """Whether the better answer has the higher value, for the pairs whose values differ."""
    values: dict[str, dict[bool, float | None]] = {}
    for r in results:
        values.setdefault(r.pair, {})[r.truth] = r.value
    both = [(v.get(True), v.get(False)) for v in values.values()]
    return [
        good > bad for good, bad in both if good is not None and bad is not None and good != bad
    ]


class Judging(Task[JudgeResult]):
    """The refiner as a judge of cases; ``source`` says where they come from, ``own`` how."""

    name = "judge"
    kind = JudgeResult

    def __init__(
        self, cases: Sequence[JudgeCase], source: str, own: Mapping[str, Any] | None = None
    ) -> None:
        self.cases, self.source, self.own = cases, source, own or {}
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
        items = [(c.id, partial(judge_case, job.engine, c, judge)) for c in self.cases]
        return collect(job.screen, "judgements", file, items, "cases")

    def scores(self, results: Sequence[JudgeResult], seed: int) -> dict[str, Interval]:
        return judge_scores(results, seed)


def builtin_cases(job: Job, count: int, kinds: Sequence[str]) -> list[JudgeCase]:
    """Minimal pairs made from the bare base's answers to held-out prompts."""
    return minimal_pairs(job.prompts(count, kinds), job.base_answers(count, kinds), job.seed)


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
        return evaluate(job, Judging(llmbar_cases(data) if data else hub_llmbar(), "llmbar"))
    chosen = kinds_named(kinds)
    own = {"kinds": list(chosen), "prompts": count}
    cases = builtin_cases(job, count, chosen)
    return evaluate(job, Judging(cases, f"constraints{tag(chosen)}", own))


def hub_llmbar() -> list[JudgeCase]:
    """LLMBar as the Hub has it."""
    import datasets

    try:
        found = datasets.load_dataset(HUB, "LLMBar")
    except Exception as error:  # noqa: BLE001 - offline, missing, changed: the hint is the same
        raise SparError(
            f"{HUB} cannot be loaded ({type(error).__name__}). Give LLMBar's Dataset folder, from "
            "github.com/princeton-nlp/LLMBar: --data FOLDER"
        ) from None
    return [
        case
        for name, rows in found.items()
        for n, row in enumerate(rows)
        for case in llmbar_pair(row, n, name)
    ]
