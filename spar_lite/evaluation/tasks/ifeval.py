"""IFEval (arXiv 2311.07911): 541 prompts whose instructions a program verifies.

The verifiers and their strict and loose rules are lm-evaluation-harness's own (extra ``eval``).
This file reads prompts and responses, calls them, and adds intervals; values equal the harness's
own aggregate to the last digit. NLTK's data are looked up on disk and never fetched.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from spar_lite.errors import SparError, StoreError, did_you_mean
from spar_lite.evaluation.inference_search import Plan, Way
from spar_lite.evaluation.runner import (
    Card,
    Job,
    Task,
    evaluate,
    plan_settings,
    texts_digest,
    with_decoding,
)
from spar_lite.evaluation.stats import Interval, bootstrap, wilson
from spar_lite.records import Cost, Prompt
from spar_lite.store import StageFile

HUB = "google/IFEval"
INSTALL = "pip install 'spar-lite[eval]'"
PUNKT = "tokenizers/punkt_tab/english/"


@dataclass(frozen=True, slots=True)
class IfevalPrompt:
    """One prompt with the names and arguments of its instructions; ``kwargs`` one each."""

    key: int
    prompt: str
    instruction_id_list: tuple[str, ...]
    kwargs: tuple[dict[str, Any], ...]

    def as_prompt(self) -> Prompt:
        """The prompt as the loop knows it; nothing that a judge could peek at."""
        return Prompt(f"ifeval-{self.key}", self.prompt)


@dataclass(frozen=True, slots=True)
class IfevalResult:
    """One response with the verifiers' word on each instruction; ``score``: strict, all of them."""

    id: str
    key: int
    response: str
    instructions: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    score: float
    picked: str
    finished: bool
    cost: Cost


# --- Reading --------------------------------------------------------------------------------------


def read_ifeval(path: Path) -> list[IfevalPrompt]:
    """Read the original JSONL: key, prompt, instruction_id_list, kwargs.

    Raises:
        StoreError: naming file, line and what was wanted.
    """
    prompts = [_prompt(row, f"{path} line {n}") for n, row in _rows(path)]
    seen: set[int] = set()
    for prompt in prompts:
        if prompt.key in seen:
            raise StoreError(f"{path} has key {prompt.key} twice.")
        seen.add(prompt.key)
    if not prompts:
        raise StoreError(f"{path} is empty: wanted IFEval's input_data.jsonl.")
    return prompts


def hub_ifeval(option: str = "--data FILE") -> list[IfevalPrompt]:
    """Load the Hub's copy through ``datasets``.

    Raises:
        SparError: it cannot be reached; ``option`` is the way then.
    """
    import datasets

    try:
        rows = datasets.load_dataset(HUB, split="train")
    except Exception as error:  # noqa: BLE001 - offline, gated, changed: the hint is the same
        raise SparError(
            f"{HUB} cannot be loaded ({type(error).__name__}). Give the original "
            f"input_data.jsonl (google-research, instruction_following_eval): {option}"
        ) from None
    return [_prompt(row, f"{HUB} row {n}") for n, row in enumerate(rows, 1)]


def read_responses(path: Path, prompts: Sequence[IfevalPrompt], limit: int = 0) -> dict[int, str]:
    """Read a JSONL of {"key" or "prompt", "response"}; return responses by key.

    ``limit``: only the first prompts (0: all) need a response; the others' are checked no further.

    Raises:
        StoreError: a line of another shape, an unknown or repeated prompt, or missing ones.
    """
    by_text = {p.prompt: p.key for p in prompts}
    by_key = {str(p.key): p.key for p in prompts}
    found: dict[int, str] = {}
    for n, row in _rows(path):
        where = f"{path} line {n}"
        if not isinstance(row.get("response"), str) or not {"key", "prompt"} & row.keys():
            raise StoreError(f'{where}: wanted "key" or "prompt", and "response" as text.')
        key = by_key.get(str(row["key"])) if "key" in row else by_text.get(str(row["prompt"]))
        if key is None:
            shown = row.get("key", str(row.get("prompt"))[:60])
            raise StoreError(f"{where}: {shown!r} is none of the {len(prompts)} prompts.")
        if key in found:
            raise StoreError(f"{where}: the prompt with key {key} has a response already.")
        found[key] = row["response"]
    wanted = [p.key for p in prompts[: limit or None]]
    left = [key for key in wanted if key not in found]
    if left:
        raise StoreError(
            f"{path} has {len(found)} responses, wanted {len(wanted)}: {len(left)} are missing, "
            f"such as key {left[0]}. To score a part: --limit N, or its prompts with --data FILE."
        )
    return found


def _rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}).") from None
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise StoreError(f"{path} line {n} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise StoreError(f"{path} line {n}: wanted an object, found {type(row).__name__}.")
            yield n, row


def _prompt(row: Mapping[str, Any], where: str) -> IfevalPrompt:
    try:
        names, kwargs = tuple(row["instruction_id_list"]), tuple(row["kwargs"])
        if len(names) != len(kwargs) or not all(isinstance(k, Mapping) for k in kwargs):
            raise ValueError(f"{len(names)} instructions, {len(kwargs)} kwargs")
        if not names or not isinstance(row["prompt"], str) or type(row["key"]) is not int:
            raise ValueError("a number, a text and at least one instruction")
        return IfevalPrompt(row["key"], row["prompt"], names, tuple(map(dict, kwargs)))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where} is not IFEval's ({error!r}): wanted key, prompt, instruction_id_list, kwargs."
        ) from None


# --- Verifying ------------------------------------------------------------------------------------


def verifiers() -> Any:
    """lm-evaluation-harness's own IFEval task.

    Raises:
        SparError: the extra is not installed, or NLTK's sentence splitter is not on disk.
    """
    try:
        import langdetect
        import nltk
    except ImportError:
        raise SparError(f"IFEval's verifiers come with the extra eval: {INSTALL}") from None
    try:
        nltk.data.find(PUNKT)
    except LookupError:
        # The harness would fetch it here, unasked.
        raise SparError(
            "IFEval's verifiers need NLTK's punkt_tab. Fetch it once with "
            "python -m nltk.downloader punkt_tab, or set NLTK_DATA to a folder that holds "
            f"{PUNKT}."
        ) from None
    try:
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise SparError(f"lm_eval cannot be loaded ({error}): {INSTALL}") from None
    # A text without letters is no error of ours, and its line would tear the screen.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    langdetect.DetectorFactory.seed = 0  # else short texts change their language between runs
    return utils


def check_prompts(utils: Any, prompts: Sequence[IfevalPrompt]) -> None:
    """Make sure that the verifiers take every prompt, before an hour of answers.

    Raises:
        StoreError: an instruction that they do not know, or arguments that it does not take.
    """
    known = utils.instructions_registry.INSTRUCTION_DICT
    for prompt in prompts:
        for name in prompt.instruction_id_list:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise StoreError(f"IFEval prompt {prompt.key}: unknown instruction {name!r}.{hint}")
        try:
            verify(utils, prompt, "")
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise StoreError(
                f"IFEval prompt {prompt.key}: the kwargs do not fit the instructions ({error})."
            ) from None


def verify(
    utils: Any,
    prompt: IfevalPrompt,
    response: str,
    picked: str = "",
    finished: bool = True,
    cost: Cost = Cost(),  # noqa: B008 - frozen
) -> IfevalResult:
    """The verifiers' word on one response."""
    doc = {
        "key": prompt.key,
        "prompt": prompt.prompt,
        "instruction_id_list": list(prompt.instruction_id_list),
        "kwargs": [dict(kwargs) for kwargs in prompt.kwargs],
    }
    state = random.getstate()
    # An argument that is missing or odd is drawn by the verifier: a letter for keys 1122 and 1129,
    # whose "letters" are # and !. What the harness draws there hangs on the tasks loaded with it.
    random.seed(0)
    try:
        found = utils.process_results(doc, [response])
    finally:
        random.setstate(state)
    return IfevalResult(
        id=f"ifeval-{prompt.key}",
        key=prompt.key,
        response=response,
        instructions=prompt.instruction_id_list,
        strict=tuple(map(bool, found["inst_level_strict_acc"])),
        loose=tuple(map(bool, found["inst_level_loose_acc"])),
        score=float(found["prompt_level_strict_acc"]),
        picked=picked,
        finished=finished,
        cost=cost,
    )


def ifeval_scores(results: Sequence[IfevalResult], seed: int = 0) -> dict[str, Interval]:
    """The four metrics under the harness's names, and their mean.

    Prompt level: Wilson. Instruction level and the mean: bootstrap over prompts, since the
    instructions of one prompt are not independent. n counts prompts, at instruction level
    instructions.
    """
    strict = [r.strict for r in results]
    loose = [r.loose for r in results]

    def mean(cases: Sequence[IfevalResult]) -> float:
        parts = ([r.strict for r in cases], [r.loose for r in cases])
        return sum(_all_met(p) + _met(p) for p in parts) / 4

    def by_instruction(part: Sequence[tuple[bool, ...]]) -> Interval:
        found = bootstrap(part, _met, seed)
        return Interval(found.value, found.low, found.high, sum(map(len, part)))

    return {
        "prompt_level_strict_acc": wilson(sum(map(all, strict)), len(strict)),
        "inst_level_strict_acc": by_instruction(strict),
        "prompt_level_loose_acc": wilson(sum(map(all, loose)), len(loose)),
        "inst_level_loose_acc": by_instruction(loose),
        "mean": bootstrap(list(results), mean, seed, draws=1000),
    }


def _met(part: Sequence[tuple[bool, ...]]) -> float:
    """Share of instructions met."""
    return sum(map(sum, part)) / sum(map(len, part))


def _all_met(part: Sequence[tuple[bool, ...]]) -> float:
    return sum(map(all, part)) / len(part)


class Ifeval(Task[IfevalResult]):
    """IFEval's prompts on a target's answers; ``file`` is "ifeval-greedy" and the like if ""."""

    name = "ifeval"
    kind = IfevalResult

    def __init__(self, prompts: Sequence[IfevalPrompt], plan: Plan, file: str = "") -> None:
        self.prompts, self.plan = prompts, plan
        self.file = file or f"ifeval-{plan.name}"

    def settings(self, job: Job) -> dict[str, Any]:
        asked = [p.as_prompt() for p in self.prompts]
        return {"prompts": len(asked), "texts": texts_digest(asked), **plan_settings(self.plan)}

    def results(self, job: Job, file: StageFile[IfevalResult]) -> list[IfevalResult]:
        utils, asked = verifiers(), [p.as_prompt() for p in self.prompts]
        finals = job.answers(self.file, asked, self.plan)
        results = [
            verify(utils, p, f.text, f.picked, f.finished, f.cost)
            for p, f in zip(self.prompts, finals, strict=True)
        ]
        file.finish(results)
        return results

    def scores(self, results: Sequence[IfevalResult], seed: int) -> dict[str, Interval]:
        return ifeval_scores(results, seed)

    def more(self, results: Sequence[IfevalResult]) -> dict[str, Any]:
        return {"cut_off": sum(not result.finished for result in results)}


def score_responses(prompts: Sequence[IfevalPrompt], responses: Path, limit: int = 0) -> Card:
    """IFEval on a file of responses; no model is loaded and nothing written."""
    utils, found = verifiers(), read_responses(responses, prompts, limit)
    prompts = prompts[: limit or None]
    results = [verify(utils, p, found[p.key]) for p in prompts]
    scores = {name: asdict(score) for name, score in ifeval_scores(results).items()}
    settings = {"prompts": len(prompts), "responses": str(responses)}
    return {"task": "ifeval", "target": str(responses), "settings": settings, "scores": scores}


@click.command("ifeval")
@click.option("--data", type=click.Path(path_type=Path), help="IFEval's input_data.jsonl [Hub].")
@click.option("--responses", type=click.Path(path_type=Path), help="Score this JSONL; no model.")
@click.option("--max-new-tokens", default=1280, show_default=True, help="Longest answer.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Only the first prompts.")
@click.argument("target", required=False)
@with_decoding
def command(
    job: Job | None,
    data: Path | None,
    responses: Path | None,
    max_new_tokens: int,
    limit: int,
    way: Way,
    budget: int,
) -> Card:
    """IFEval, by lm-evaluation-harness's verifiers.

    Prompt and instruction level, strict and loose. TARGET's answers, or a file of --responses with
    "key" or "prompt", and "response", on each line.
    """
    if (job is None) == (responses is None):
        raise StoreError("wanted a TARGET or --responses FILE, and not both.")
    utils = verifiers()
    prompts = read_ifeval(data) if data else hub_ifeval()
    check_prompts(utils, prompts)
    if job is None:
        assert responses is not None
        return score_responses(prompts, responses, limit)
    plan = job.plan(way, budget, max_new_tokens)
    return evaluate(job, Ifeval(prompts[: limit or None], plan))
