"""General abilities: any task of lm-evaluation-harness, so that what training costs is seen.

Turns the harness's own figures into scores with intervals, and its samples into one record a
document. Values are the harness's to the last digit; nothing is scored here.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from spar_lite.engines.served import RoleServer
from spar_lite.errors import RecipeError, SparError
from spar_lite.evaluation.runner import Card, Job, Task, evaluate
from spar_lite.evaluation.stats import Z95, Interval, share
from spar_lite.evaluation.tasks import INSTALL
from spar_lite.store import StageFile

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


Documents = dict[str, list[GeneralResult]]


def documents(found: Found) -> Documents:
    """One record a document, by task; the harness has a sample for each document and filter."""
    made: Documents = {}
    for task, samples in found["samples"].items():
        by_number: dict[int, list[Found]] = {}
        for sample in samples:
            by_number.setdefault(sample["doc_id"], []).append(sample)
        made[task] = [_document(f"{task}/{n}", parts) for n, parts in by_number.items()]
    return made


def _document(id: str, parts: Sequence[Found]) -> GeneralResult:
    cells = {f"{m},{part['filter']}": _number(part[m]) for part in parts for m in part["metrics"]}
    metrics = {column: value for column, value in cells.items() if value is not None}
    score = next(iter(metrics.values()), math.nan)
    responses = {part["filter"]: part["filtered_resps"] for part in parts}
    plain = json.loads(json.dumps(responses, default=str))
    return GeneralResult(id, score, str(parts[0]["target"]), plain, metrics)


def _number(value: Any) -> float | None:
    """Python's and numpy's numbers and truths; None for anything else ("N/A", pairs)."""
    value = value.item() if getattr(value, "shape", None) == () else value
    return float(value) if isinstance(value, bool | int | float) else None


def figures(found: Found, by_task: Documents) -> tuple[dict[str, Interval], dict[str, float]]:
    """Every figure, and the harness's own standard errors where it gives them.

    Both by names such as "gsm8k:exact_match,strict-match"; the filter "none" is left out. Shares of
    documents get Wilson's interval (the harness's normal one has no width at 0 and 1); other
    figures value ± 1.96 standard errors, cut at 0 and 1 if they are means of shares; NaN where the
    harness gives no standard error. A group's n is the sum over its tasks.
    """
    scores: dict[str, Interval] = {}
    errors: dict[str, float] = {}
    everything = [result for part in by_task.values() for result in part]
    for task, row in found["results"].items():
        for column, cell in row.items():
            metric, comma, rule = column.partition(",")
            value, stderr = _number(cell), _number(row.get(f"{metric}_stderr,{rule}"))
            if not comma or metric.endswith("_stderr") or value is None:
                continue
            name = f"{task}:{column.removesuffix(',none')}"
            if stderr is not None:
                errors[name] = stderr
            own = [r.metrics[column] for r in by_task.get(task, []) if column in r.metrics]
            # A document may leave a metric out.
            n = len(own) or row.get("sample_count", {}).get(column, row["sample_len"])
            if set(own) <= {0.0, 1.0} and own and math.isclose(value, sum(own) / n, abs_tol=1e-12):
                scores[name] = replace(share(v == 1 for v in own), value=value)
                continue
            reach = Z95 * (math.nan if stderr is None else stderr)
            low, high = value - reach, value + reach
            alike = own or [r.metrics[column] for r in everything if column in r.metrics]
            if alike and all(0 <= v <= 1 for v in alike) and stderr is not None:
                low, high = max(0.0, low), min(1.0, high)
            scores[name] = Interval(value, low, high, n)
    return scores, errors


class General(Task[GeneralResult]):
    """One task of the harness; ``limit`` and ``options`` are those of ``run_harness``."""

    name = "general"
    kind = GeneralResult

    def __init__(self, manager: Any, task: str, limit: int, **options: Any) -> None:
        self.manager, self.task, self.limit, self.options = manager, task, limit, options
        self.file = "general-" + re.sub(r"[^\w.-]+", "-", task)
        self.requests = 0

    def settings(self, job: Job) -> dict[str, Any]:
        return {
            "tasks": self.task,
            "limit": self.limit,
            "chat_template": self.options["chat"],
            "role": job.role,
            "lm_eval": version("lm_eval"),
        }

    def prepare(self, job: Job) -> None:
        """A task that cannot be had leaves no settings behind."""
        if job.target.recipe.engine.kind != "local":
            raise RecipeError(
                "eval general wants the model in this process, for log probabilities; found "
                "engine.kind openai. Add -o engine.kind=local."
            )
        from spar_lite.model.harness import load_task

        self.loaded = load_task(self.manager, self.task, self.options["allow_code"])

    def results(self, job: Job, file: StageFile[GeneralResult]) -> list[GeneralResult]:
        from spar_lite.model.harness import run_harness

        def answered(count: int) -> None:
            self.requests += count
            job.screen.advance(count)

        engine = job.engine
        assert not isinstance(engine, RoleServer)
        job.screen.start(self.task, 0, "requests")
        found = run_harness(
            engine.policy, job.role, self.loaded, answered, limit=self.limit, **self.options
        )
        by_task = documents(found)
        self.figures, self.errors = figures(found, by_task)
        job.screen.end(f"{len(self.figures)} figures")
        # No perplexities: their first metric is no share.
        results = [r for part in by_task.values() for r in part if 0 <= r.score <= 1]
        file.finish(results)
        return results

    def scores(self, results: Sequence[GeneralResult], seed: int) -> dict[str, Interval]:
        return self.figures

    def more(self, results: Sequence[GeneralResult]) -> dict[str, Any]:
        return {"requests": self.requests, "stderr": self.errors}


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
    job: Job, words: str, include: Path | None, no_chat_template: bool, **options: Any
) -> Card:
    """General abilities: tasks of lm-evaluation-harness.

    With the actor's adapter if there is one. The harness batches by itself, so this is slower than
    the other tasks. Each task has a scorecard of its own, so a list of tasks goes on where it
    stopped.
    """
    names = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not names:
        raise SparError(f"wanted --tasks NAME,NAME…, found {words!r}.")
    if importlib.util.find_spec("lm_eval") is None:
        raise SparError(f"the general tasks come with the extra eval: {INSTALL}")
    if options["allow_code"]:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    from spar_lite.model.harness import find_tasks

    job.screen.say("reading the list of tasks")
    manager = find_tasks(names, include)
    tasks = [General(manager, name, chat=not no_chat_template, **options) for name in names]
    cards = [evaluate(job, task) for task in tasks]
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
