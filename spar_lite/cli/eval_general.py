"""spar-lite eval general: lm-evaluation-harness's tasks on the model in memory.

Each task has a scorecard of its own, so a list of tasks goes on where it stopped.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite.cli.common import make_console
from spar_lite.cli.evaluate import Options, common, job, show
from spar_lite.errors import SparError

if TYPE_CHECKING:
    from spar_lite.evaluation import Job
    from spar_lite.model.harness import HarnessTasks


@click.command("general")
@click.argument("target")
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
@common
def general(
    target: str,
    words: str,
    include: Path | None,
    limit: int,
    batch: int,
    no_chat_template: bool,
    allow_code: bool,
    options: Options,
) -> None:
    """General abilities: tasks of lm-evaluation-harness, with the actor's adapter if there is one.

    The harness batches by itself, so this is slower than the other tasks.
    """
    from spar_lite.evaluate.general import need_harness

    names = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not names:
        raise SparError(f"wanted --tasks NAME,NAME…, found {words!r}.")
    need_harness()
    if allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    with job(target, options) as work:
        from spar_lite.model.harness import HarnessTasks

        work.screen.say("reading the list of tasks")
        known = HarnessTasks(include)
        known.check(names)
        settings = {
            "limit": limit,
            "chat_template": not no_chat_template,
            "role": work.role,
            **work.model_settings(),
        }
        cards = [_one_task(work, known, name, settings, batch, allow_code) for name in names]
    _show(cards, options.as_json, work.folder)


def _one_task(
    work: Job,
    known: HarnessTasks,
    name: str,
    settings: dict[str, Any],
    batch: int,
    allow_code: bool,
) -> dict[str, Any]:
    """One task's scorecard: read if it is finished, else made."""
    from importlib.metadata import version

    from spar_lite.evaluate.general import (
        GeneralResult,
        general_results,
        general_scores,
        standard_errors,
    )
    from spar_lite.evaluate.scorecard import Scorecard
    from spar_lite.model.harness import run_harness

    settings = {"tasks": name, **settings, "lm_eval": version("lm_eval")}
    file = "general-" + re.sub(r"[^\w.-]+", "-", name)
    card = Scorecard(work.folder, file, GeneralResult)
    # Data first: a task that cannot be had leaves no settings behind.
    tasks = {} if card.finished() else known.load(name, allow_code)
    card.begin(settings)
    if (done := card.finished()) is not None:
        return done
    start, requests = time.perf_counter(), 0
    policy = work.engine.policy

    def answered(count: int) -> None:
        nonlocal requests
        requests += count
        work.screen.advance(count)

    work.screen.start(name, 0, "requests")
    found = run_harness(
        policy,
        work.role,
        tasks,
        limit=settings["limit"] or None,
        batch=batch,
        chat=settings["chat_template"],
        allow_code=allow_code,
        answered=answered,
    )
    card.results.finish(general_results(found))
    seconds = round(time.perf_counter() - start, 1)
    more = {"requests": requests, "seconds": seconds, "stderr": standard_errors(found)}
    scores = general_scores(found)
    work.screen.end(f"{len(scores)} figures")
    return card.finish("general", work.target.name, settings, scores, **more)


def _show(cards: list[dict[str, Any]], as_json: bool, folder: Path) -> None:
    """All tasks in one table, or in one JSON object shaped like a scorecard."""
    if as_json:
        show(_together(cards), as_json)
        return
    from spar_lite.report.general import general_table

    console = make_console()
    console.print(general_table(cards))
    for card in cards:
        console.print(f"Each document: {folder / card['results_file']}", highlight=False)


def _together(cards: list[dict[str, Any]]) -> dict[str, Any]:
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
