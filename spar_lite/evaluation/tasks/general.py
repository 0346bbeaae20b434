"""General abilities: any task of lm-evaluation-harness, so that what training costs is seen.

Turns the harness's own figures into scores with intervals, and its samples into one record a
document. Values are the harness's to the last digit; nothing is scored here.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite.errors import SparError
from spar_lite.evaluation.runner import Card, Job, Task, evaluate
from spar_lite.evaluation.stats import Z95, Interval, wilson
from spar_lite.store import StageFile

if TYPE_CHECKING:
    from spar_lite.model.harness import HarnessTasks

INSTALL = "pip install 'spar-lite[eval]'"
Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GeneralResult:
    """One document of a task.

    ``metrics``: its numbers by "metric,filter"; ``score``: the first of them. ``responses``: by
    filter, what was scored (a text, or a log-likelihood and whether it is greedy for each choice).
    """

    id: str
    score: float
    target: str
    responses: dict[str, Any]
    metrics: dict[str, float]


def need_harness() -> None:
    """Make sure that the extra is there.

    Raises:
        SparError: lm-evaluation-harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SparError(f"the general tasks come with the extra eval: {INSTALL}")


def general_results(found: Found) -> list[GeneralResult]:
    """One record for each document whose first metric is a share (so not for perplexities)."""
    return [
        result
        for task, samples in found["samples"].items()
        for result in _documents(task, samples)
        if 0 <= result.score <= 1
    ]


def general_scores(found: Found) -> dict[str, Interval]:
    """Every figure as "task:metric", with ",filter" behind it where the task has filters.

    Shares of documents get Wilson's interval (the harness's normal one has no width at 0 and 1);
    other figures value ± 1.96 standard errors, cut at 0 and 1 if they are means of shares; NaN
    where the harness gives no standard error. A group's n is the sum over its tasks.
    """
    per_document = {
        (task, name): values
        for task, samples in found["samples"].items()
        for name, values in _columns(samples).items()
    }
    scores = {}
    for task, name, value, stderr, n in _figures(found):
        own = per_document.get((task, name))
        alike = [own] if own else [v for (_, other), v in per_document.items() if other == name]
        share = bool(alike) and all(0 <= v <= 1 for part in alike for v in part)
        scores[score_name(task, name)] = _interval(value, stderr, own or [], share, n)
    return scores


def standard_errors(found: Found) -> dict[str, float]:
    """The harness's own standard errors by the scores' names, where it gives them."""
    return {
        score_name(task, name): stderr
        for task, name, _, stderr, _ in _figures(found)
        if not math.isnan(stderr)
    }


def score_name(task: str, name: str) -> str:
    """ "gsm8k:exact_match,strict-match"; the filter "none" is left out."""
    return f"{task}:{name.removesuffix(',none')}"


def _figures(found: Found) -> Iterator[tuple[str, str, float, float, int]]:
    """Task or group, "metric,filter", value, standard error (NaN: none), n."""
    for task, row in found["results"].items():
        for name, value in row.items():
            metric, comma, rule = name.partition(",")
            if not comma or metric.endswith("_stderr") or (number := _number(value)) is None:
                continue
            stderr = _number(row.get(f"{metric}_stderr,{rule}"))
            n = row.get("sample_count", {}).get(name, row["sample_len"])
            yield task, name, number, math.nan if stderr is None else stderr, n


def _interval(
    value: float, stderr: float, values: Sequence[float], share: bool, n: int
) -> Interval:
    if values:
        n = len(values)  # a document may leave a metric out
        mean = sum(values) / n
        if set(values) <= {0.0, 1.0} and math.isclose(value, mean, abs_tol=1e-12):
            found = wilson(round(sum(values)), n)
            return Interval(value, found.low, found.high, n)
    low, high = value - Z95 * stderr, value + Z95 * stderr
    if share and not math.isnan(stderr):
        low, high = max(0.0, low), min(1.0, high)
    return Interval(value, low, high, n)


def _columns(samples: Sequence[Found]) -> dict[str, list[float]]:
    """The documents' numbers by "metric,filter"; metrics that are no numbers are left out."""
    columns: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in _metrics(sample).items():
            columns.setdefault(name, []).append(value)
    return columns


def _documents(task: str, samples: Sequence[Found]) -> Iterator[GeneralResult]:
    """The harness has a sample a document and filter; here the filters lie side by side."""
    by_document: dict[int, list[Found]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    for number, parts in by_document.items():
        metrics = {name: value for part in parts for name, value in _metrics(part).items()}
        yield GeneralResult(
            id=f"{task}/{number}",
            score=next(iter(metrics.values()), math.nan),
            target=str(parts[0]["target"]),
            responses={part["filter"]: _plain(part["filtered_resps"]) for part in parts},
            metrics=metrics,
        )


def _metrics(sample: Found) -> dict[str, float]:
    numbers = {f"{m},{sample['filter']}": _number(sample[m]) for m in sample["metrics"]}
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    """Python's and numpy's numbers and truths; None for anything else ("N/A", pairs)."""
    value = value.item() if getattr(value, "shape", None) == () else value
    return float(value) if isinstance(value, bool | int | float) else None


def _plain(value: Any) -> Any:
    """What JSON can hold: tuples as lists, unknown things as text."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | bool | int | float | None) else str(value)


class General(Task[GeneralResult]):
    """One task of the harness; ``limit``: only so many documents (0: all)."""

    name = "general"
    kind = GeneralResult

    def __init__(
        self, known: HarnessTasks, task: str, limit: int, batch: int, chat: bool, allow_code: bool
    ) -> None:
        self.known, self.task, self.limit = known, task, limit
        self.batch, self.chat, self.allow_code = batch, chat, allow_code
        self.file = "general-" + re.sub(r"[^\w.-]+", "-", task)
        self.loaded: dict[str, Any] = {}
        self.found: Found = {}
        self.figures: dict[str, Interval] = {}
        self.requests = 0

    def settings(self, job: Job) -> dict[str, Any]:
        return {
            "tasks": self.task,
            "limit": self.limit,
            "chat_template": self.chat,
            "role": job.role,
            "lm_eval": version("lm_eval"),
        }

    def prepare(self, job: Job) -> None:
        """A task that cannot be had leaves no settings behind."""
        self.loaded = self.known.load(self.task, self.allow_code)

    def results(self, job: Job, file: StageFile[GeneralResult]) -> list[GeneralResult]:
        from spar_lite.model.harness import run_harness

        def answered(count: int) -> None:
            self.requests += count
            job.screen.advance(count)

        policy = job.engine.policy
        job.screen.start(self.task, 0, "requests")
        self.found = run_harness(
            policy,
            job.role,
            self.loaded,
            limit=self.limit or None,
            batch=self.batch,
            chat=self.chat,
            allow_code=self.allow_code,
            answered=answered,
        )
        results, self.figures = general_results(self.found), general_scores(self.found)
        job.screen.end(f"{len(self.figures)} figures")
        file.finish(results)
        return results

    def scores(self, results: Sequence[GeneralResult], seed: int) -> dict[str, Interval]:
        return self.figures

    def more(self, results: Sequence[GeneralResult]) -> dict[str, Any]:
        return {"requests": self.requests, "stderr": standard_errors(self.found)}


@click.command("general")
@click.option("--tasks", "words", required=True, help="Such as gsm8k,mmlu; see lm-eval ls tasks.")
@click.option("--include", type=click.Path(path_type=Path), help="Folder of your own task YAMLs.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Only the first documents.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Sequences at a time, at most.",
)
@click.option("--no-chat-template", is_flag=True, help="Plain text, as for base models.")
@click.option("--allow-code", is_flag=True, help="Run code that the model writes (humaneval).")
def command(
    job: Job,
    words: str,
    include: Path | None,
    limit: int,
    batch: int,
    no_chat_template: bool,
    allow_code: bool,
) -> Card:
    """General abilities: tasks of lm-evaluation-harness.

    With the actor's adapter if there is one. The harness batches by itself, so this is slower than
    the other tasks. Each task has a scorecard of its own, so a list of tasks goes on where it
    stopped.
    """
    names = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not names:
        raise SparError(f"wanted --tasks NAME,NAME…, found {words!r}.")
    need_harness()
    if allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    from spar_lite.model.harness import HarnessTasks

    job.screen.say("reading the list of tasks")
    known = HarnessTasks(include)
    known.check(names)
    chat = not no_chat_template
    return together(
        [evaluate(job, General(known, name, limit, batch, chat, allow_code)) for name in names]
    )


def together(cards: Sequence[Card]) -> Card:
    """All tasks' scorecards as one."""
    names = [card["settings"]["tasks"] for card in cards]
    return {
        "task": "general",
        "target": cards[0]["target"],
        "settings": {**cards[0]["settings"], "tasks": names},
        "scores": {name: score for card in cards for name, score in card["scores"].items()},
        "stderr": {name: error for card in cards for name, error in card["stderr"].items()},
        "results_files": [card["results_file"] for card in cards],
        "requests": sum(card["requests"] for card in cards),
        "seconds": round(sum(card["seconds"] for card in cards), 1),
    }
