"""The eval commands: one a task, all about one target (a run, an adapter, a base model)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spar_lite.cli.common import closing, locked, make_console, quiet_libraries
from spar_lite.errors import SparError, StoreError
from spar_lite.store import json_text

if TYPE_CHECKING:
    from spar_lite.decode import Plan
    from spar_lite.evaluation import Job

WAYS = ("greedy", "best-of-n", "refine", "bfs", "dfs")


@click.group("eval")
def evaluate() -> None:
    """Score a run's checkpoint, an adapter or a base model; n and a 95 % interval with each.

    TARGET is a run's folder (its last checkpoint, or --checkpoint), an adapter's folder, a recipe
    (its base model) or a model id.
    """


@dataclass(frozen=True)
class Options:
    """What every task takes; ``out`` None: the target's own folder."""

    checkpoint: str | None
    out: Path | None
    as_json: bool
    overrides: tuple[str, ...]


def common(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every task, handed over as one ``Options``."""

    @functools.wraps(command)
    def call(
        *args: Any,
        checkpoint: str | None,
        out: Path | None,
        as_json: bool,
        overrides: tuple[str, ...],
        **rest: Any,
    ) -> None:
        command(*args, options=Options(checkpoint, out, as_json, overrides), **rest)

    given = (
        click.option("--checkpoint", help="Of a run: base, bootstrap or iteration-N [last]."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder for the results."),
        click.option("--json", "as_json", is_flag=True, help="Scores as JSON, and nothing else."),
        click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key."),
    )
    for option in reversed(given):
        call = option(call)
    return call


def decoding(command: Callable[..., None]) -> Callable[..., None]:
    """The options of tasks that decode answers."""
    options = (
        click.option("--decode", "way", type=click.Choice(WAYS), default="greedy"),
        click.option("--budget", default=8, show_default=True, help="Answers or refinements each."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@contextlib.contextmanager
def job(target: str, options: Options) -> Iterator[Job]:
    """An evaluation whose screen is closed and whose folder is locked while it lasts."""
    from spar_lite.evaluation import Job
    from spar_lite.report.progress import make_screen
    from spar_lite.target import find_target

    found = find_target(target, options.checkpoint, options.overrides)
    folder = options.out or found.home
    screen = make_screen(make_console(stderr=options.as_json))
    quiet_libraries()
    with closing(screen), locked(folder):
        yield Job(found, folder, screen)


def show(card: dict[str, Any], as_json: bool, folder: Path | None = None) -> None:
    """A scorecard, as a table or as JSON alone."""
    if as_json:
        click.echo(json_text(card, indent=1))
        return
    from spar_lite.report.evaluation import card_table

    console = make_console()
    console.print(card_table(card))
    if folder is not None:
        console.print(f"Each result: {folder / card['results_file']}", highlight=False)


def plan(job: Job, way: str, budget: int, max_new_tokens: int) -> Plan:
    """The decoding plan, for this target's recipe and role."""
    from spar_lite.decode import make_plan

    if budget < 1:
        raise StoreError(f"--budget wants 1 or more, found {budget}.")
    recipe = job.target.recipe
    return make_plan(recipe, way, budget, job.role, max_new_tokens)  # type: ignore[arg-type]


@evaluate.command("ifeval")
@click.argument("target", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="IFEval's input_data.jsonl [Hub].")
@click.option("--responses", type=click.Path(path_type=Path), help="Score this JSONL; no model.")
@click.option("--max-new-tokens", default=1280, show_default=True, help="Longest answer.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Only the first prompts.")
@decoding
@common
def ifeval(
    target: str | None,
    data: Path | None,
    responses: Path | None,
    max_new_tokens: int,
    limit: int,
    way: str,
    budget: int,
    options: Options,
) -> None:
    """IFEval: prompt and instruction level, strict and loose, by lm-evaluation-harness's verifiers.

    TARGET's answers, or a file of --responses with "key" or "prompt", and "response", on each line.
    """
    from spar_lite.evaluate.ifeval import hub_ifeval, read_ifeval, verifiers

    if (target is None) == (responses is None):
        raise StoreError("wanted a TARGET or --responses FILE, and not both.")
    verifiers()
    prompts = read_ifeval(data) if data else hub_ifeval()
    if responses is not None:
        from spar_lite.evaluation import score_responses

        show(score_responses(prompts, responses, limit), options.as_json)
        return
    from spar_lite.evaluation import eval_ifeval

    prompts = prompts[: limit or None]
    with job(str(target), options) as work:
        card = eval_ifeval(work, prompts, plan(work, way, budget, max_new_tokens))
    show(card, options.as_json, work.folder)


@evaluate.command("constraints")
@click.argument("target")
@click.option("--count", default=0, help="Held-out prompts [the recipe's evaluate.prompts].")
@decoding
@common
def constraints_(
    target: str,
    count: int,
    way: str,
    budget: int,
    options: Options,
) -> None:
    """Answers that count on held-out builtin prompts, and constraints met by kind; by a program."""
    from spar_lite.evaluation import eval_constraints

    with job(target, options) as work:
        settings = work.target.recipe.evaluate
        chosen = plan(work, way, budget, settings.max_new_tokens)
        card = eval_constraints(work, chosen, count or settings.prompts)
    show(card, options.as_json, work.folder)


@evaluate.command("judge")
@click.argument("target")
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
@common
def judge(
    target: str,
    source: str,
    data: Path | None,
    count: int,
    kinds: str,
    options: Options,
) -> None:
    """Accuracy and F1 of the refiner as a judge, each answer judged by itself."""
    from spar_lite.evaluation import builtin_cases, eval_judge

    with job(target, options) as work:
        if source == "llmbar":
            card = eval_judge(work, _llmbar(data), "llmbar")
        else:
            chosen = kinds_named(kinds)
            tokens = work.target.recipe.evaluate.max_new_tokens
            cases = builtin_cases(work, count, chosen, tokens)
            name = "-".join(["constraints", *chosen[:3]])
            card = eval_judge(work, cases, name, {"kinds": list(chosen), "prompts": count})
    show(card, options.as_json, work.folder)


@evaluate.command("refine")
@click.argument("target")
@click.option("--count", default=200, show_default=True, help="Prompts; failed answers are used.")
@click.option("--kinds", default="", help="Constraint kinds, with commas [the recipe's].")
@click.option(
    "--critic",
    type=click.Choice(("program", "own")),
    default="program",
    help="Whose critique is worked from [program].",
)
@common
def refine(
    target: str,
    count: int,
    kinds: str,
    critic: str,
    options: Options,
) -> None:
    """Failed answers truly mended, and believed mended; the gap is self-flattery."""
    from spar_lite.evaluation import eval_refine

    with job(target, options) as work:
        settings = work.target.recipe.evaluate
        card = eval_refine(
            work,
            count,
            kinds_named(kinds),
            critic,  # type: ignore[arg-type]
            settings.max_new_tokens,
            settings.reply_tokens,
        )
    show(card, options.as_json, work.folder)


def kinds_named(text: str, option: str = "--kinds") -> tuple[str, ...]:
    """Constraint kinds written with commas."""
    from spar_lite.constraints import kind_named

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        return tuple(kind_named(name).kind for name in names)
    except ValueError as error:
        raise StoreError(f"{option}: {error}") from None


def _llmbar(data: Path | None) -> list[Any]:
    from spar_lite.evaluate.judge import HUB, llmbar_cases, llmbar_pair

    if data is not None:
        return llmbar_cases(data)
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
