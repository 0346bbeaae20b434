"""IFEval (arXiv 2311.07911): 541 prompts whose instructions a program verifies.

The verifiers and their strict and loose rules are lm-evaluation-harness's own (extra ``eval``).
This file reads prompts and responses, calls them, and adds intervals; values equal the harness's
own aggregate to the last digit. NLTK's data are looked up on disk and never fetched.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import click

from spar_lite.errors import SparError, StoreError, did_you_mean
from spar_lite.evaluation.inference_search import Final, Way
from spar_lite.evaluation.runner import Card, Job, evaluate, with_decoding
from spar_lite.evaluation.stats import Interval, bootstrap, clustered_mean, share
from spar_lite.evaluation.tasks import INSTALL, Decoded, from_hub
from spar_lite.records import Cost, Prompt

HUB = "google/IFEval"
PUNKT = "tokenizers/punkt_tab/english/"


@dataclass(frozen=True, slots=True, kw_only=True)
class IfevalPrompt(Prompt):
    """One prompt with the names and arguments of its instructions; ``kwargs`` one each.

    ``constraints`` are none: nothing that a judge could peek at.
    """

    key: int
    names: tuple[str, ...]
    kwargs: tuple[dict[str, Any], ...]


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


class Ifeval(Decoded[IfevalResult]):
    """IFEval's prompts on a target's answers."""

    name = "ifeval"
    kind = IfevalResult

    @staticmethod
    def check(prompt: IfevalPrompt, final: Final) -> IfevalResult:
        """The verifiers' word on one response."""
        utils, state = verifiers(), random.getstate()
        doc = {
            "key": prompt.key,
            "prompt": prompt.text,
            "instruction_id_list": list(prompt.names),
            "kwargs": [dict(kwargs) for kwargs in prompt.kwargs],
        }
        # An argument that is missing or odd is drawn by the verifier: a letter for keys 1122 and
        # 1129, whose "letters" are # and !. What the harness draws there hangs on the tasks loaded
        # with it.
        random.seed(0)
        try:
            found = utils.process_results(doc, [final.text])
        finally:
            random.setstate(state)
        return IfevalResult(
            id=prompt.id,
            key=prompt.key,
            response=final.text,
            instructions=prompt.names,
            strict=tuple(map(bool, found["inst_level_strict_acc"])),
            loose=tuple(map(bool, found["inst_level_loose_acc"])),
            score=float(found["prompt_level_strict_acc"]),
            picked=final.picked,
            finished=final.finished,
            cost=final.cost,
        )

    @staticmethod
    def scores(results: Sequence[IfevalResult], seed: int) -> dict[str, Interval]:
        """The four metrics under the harness's names, and their mean.

        Prompt level: Wilson. Instruction level and the mean: bootstrap over prompts, since the
        instructions of one prompt are not independent. n counts prompts, at instruction level
        instructions.
        """
        scores = {}
        for rule in ("strict", "loose"):
            met = [getattr(r, rule) for r in results]
            scores[f"prompt_level_{rule}_acc"] = share(map(all, met))
            by_prompt = clustered_mean(met, seed)
            scores[f"inst_level_{rule}_acc"] = replace(by_prompt, n=sum(map(len, met)))

        def mean(cases: Sequence[IfevalResult]) -> float:
            total = 0.0
            for met in ([r.strict for r in cases], [r.loose for r in cases]):
                total += sum(map(all, met)) / len(met) + sum(map(sum, met)) / sum(map(len, met))
            return total / 4

        return scores | {"mean": bootstrap(results, mean, seed, draws=1000)}

    def more(self, results: Sequence[IfevalResult]) -> dict[str, Any]:
        return {"cut_off": sum(not result.finished for result in results)}


@cache
def verifiers() -> Any:
    """lm-evaluation-harness's own IFEval task.

    Raises:
        SparError: the extra is not installed, or NLTK's sentence splitter is not on disk.
    """
    try:
        import langdetect
        import nltk

        nltk.data.find(PUNKT)  # the harness would fetch it, unasked
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise SparError(
            f"IFEval's verifiers come with the extra eval ({error}): {INSTALL}"
        ) from None
    except LookupError:
        raise SparError(
            "IFEval's verifiers need NLTK's punkt_tab. Fetch it once with "
            "python -m nltk.downloader punkt_tab, or set NLTK_DATA to a folder that holds "
            f"{PUNKT}."
        ) from None
    # A text without letters is no error of ours, and its line would tear the screen.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    langdetect.DetectorFactory.seed = 0  # else short texts change their language between runs
    return utils


# --- Reading --------------------------------------------------------------------------------------


@cache
def read_ifeval(path: Path | None, option: str = "--data FILE") -> tuple[IfevalPrompt, ...]:
    """The prompts of the original JSONL, or of the Hub's copy (None); the verifiers take them all.

    Raises:
        SparError: naming file, line and what was wanted, or ``option`` where the Hub is not there.
    """
    rows: Iterable[tuple[str, Any]]
    if path is None:
        source = "(google-research, instruction_following_eval)"
        found = from_hub(HUB, None, f"the original input_data.jsonl {source}: {option}")
        rows = ((f"{HUB} row {n}", row) for n, row in enumerate(found["train"], 1))
    else:
        rows = _rows(path)
    prompts: dict[int, IfevalPrompt] = {}
    for where, row in rows:
        prompt = _prompt(row, where)
        if prompt.key in prompts:
            raise StoreError(f"{path or HUB} has key {prompt.key} twice.")
        prompts[prompt.key] = prompt
    if not prompts:
        raise StoreError(f"{path or HUB} is empty: wanted IFEval's input_data.jsonl.")
    return tuple(prompts.values())


def _prompt(row: Mapping[str, Any], where: str) -> IfevalPrompt:
    try:
        names, kwargs = tuple(row["instruction_id_list"]), tuple(row["kwargs"])
        if len(names) != len(kwargs) or not all(isinstance(k, Mapping) for k in kwargs):
            raise ValueError(f"{len(names)} instructions, {len(kwargs)} kwargs")
        key, text = row["key"], row["prompt"]
        if not names or not isinstance(text, str) or type(key) is not int:
            raise ValueError("a number, a text and at least one instruction")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where} is not IFEval's ({error!r}): wanted key, prompt, instruction_id_list, kwargs."
        ) from None
    known = verifiers().instructions_registry.INSTRUCTION_DICT
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise StoreError(f"IFEval prompt {key}: unknown instruction {name!r}.{hint}")
    prompt = IfevalPrompt(f"ifeval-{key}", text, key=key, names=names, kwargs=kwargs)
    try:  # now, and not after an hour of answers
        Ifeval.check(prompt, Final(prompt.id, "", "", True, None, Cost()))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise StoreError(
            f"IFEval prompt {key}: the kwargs do not fit the instructions ({error})."
        ) from None
    return prompt


def read_responses(
    path: Path, prompts: Sequence[IfevalPrompt], limit: int = 0
) -> list[tuple[IfevalPrompt, Final]]:
    """Read a JSONL of {"key" or "prompt", "response"}; return each prompt with its response.

    ``limit``: only the first prompts (0: all) need a response; the others' are checked no further.

    Raises:
        StoreError: a line of another shape, an unknown or repeated prompt, or missing ones.
    """
    keys = {"key": {str(p.key): p.key for p in prompts}, "prompt": {p.text: p.key for p in prompts}}
    found: dict[int, str] = {}
    for where, row in _rows(path):
        field = "key" if "key" in row else "prompt"
        if field not in row or not isinstance(row.get("response"), str):
            raise StoreError(f'{where}: wanted "key" or "prompt", and "response" as text.')
        key = keys[field].get(str(row[field]))
        if key is None:
            shown = row["key"] if field == "key" else str(row["prompt"])[:60]
            raise StoreError(f"{where}: {shown!r} is none of the {len(prompts)} prompts.")
        if key in found:
            raise StoreError(f"{where}: the prompt with key {key} has a response already.")
        found[key] = row["response"]
    wanted = prompts[: limit or None]
    left = [p.key for p in wanted if p.key not in found]
    if left:
        raise StoreError(
            f"{path} has {len(found)} responses, wanted {len(wanted)}: {len(left)} are missing, "
            f"such as key {left[0]}. To score a part: --limit N, or its prompts with --data FILE."
        )
    return [(p, Final(p.id, found[p.key], "", True, None, Cost())) for p in wanted]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A JSONL file's objects, each with the words for its place."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
            yield f"{path} line {n}", row


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
    verifiers()  # what is missing is said before anything is read
    prompts = read_ifeval(data)
    if job is not None:
        plan = job.plan(way, budget, max_new_tokens)
        return evaluate(job, Ifeval(prompts[: limit or None], plan))
    assert responses is not None
    results = [Ifeval.check(*pair) for pair in read_responses(responses, prompts, limit)]
    scores = {name: asdict(score) for name, score in Ifeval.scores(results, 0).items()}
    settings = {"prompts": len(results), "responses": str(responses)}
    return {"task": "ifeval", "target": str(responses), "settings": settings, "scores": scores}
