"""Benchmarks whose instructions a program verifies: all that IFEval and IFBench share.

A benchmark says where its data and verifiers are; here its prompts and responses are read, the
verdicts become results, and the results scores at prompt and instruction level, strict and loose.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import click

from spar_lite.errors import SparError, StoreError, did_you_mean
from spar_lite.evaluation.inference_search import Final, Way
from spar_lite.evaluation.runner import Card, Job, evaluate, with_decoding
from spar_lite.evaluation.stats import Interval, bootstrap, clustered_mean, share
from spar_lite.evaluation.tasks import INSTALL, Decoded, from_hub
from spar_lite.records import Cost, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPrompt(Prompt):
    """One prompt with the names and arguments of its instructions; ``kwargs`` one each.

    ``key``: the data set's own, a number in IFEval, a text in IFBench. ``constraints`` are none:
    nothing that a judge could peek at.
    """

    key: int | str
    names: tuple[str, ...]
    kwargs: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class VerifiedResult:
    """One response with the verifiers' word on each instruction; ``score``: strict, all of them."""

    id: str
    key: int | str
    response: str
    instructions: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    score: float
    picked: str
    finished: bool
    cost: Cost


class Verified(Decoded[VerifiedResult]):
    """A benchmark's prompts on a target's answers.

    ``title``: its name for people. ``by``: whose verifiers they are. ``hub``: its data set there.
    ``source``: its file and where that is found. ``package``: whose version is one of its settings.
    """

    kind = VerifiedResult
    title: ClassVar[str]
    by: ClassVar[str]
    hub: ClassVar[str]
    source: ClassVar[str]
    package: ClassVar[str] = ""

    @staticmethod
    def known() -> Mapping[str, Any]:
        """The verifiers by the names of their instructions.

        Raises:
            SparError: they are not installed, or data of theirs are missing.
        """
        raise NotImplementedError

    @staticmethod
    def verdicts(prompt: VerifiedPrompt, text: str) -> tuple[Iterable[bool], Iterable[bool]]:
        """Whether each instruction is met, strictly and loosely."""
        raise NotImplementedError

    @classmethod
    def check(cls, prompt: VerifiedPrompt, final: Final) -> VerifiedResult:
        """The verifiers' word on one response."""
        # An argument that is missing or odd is drawn by the verifier (IFEval's keys 1122 and 1129
        # ask for the "letters" # and !; the draws that others make hang on what ran before).
        state = random.getstate()
        random.seed(0)
        try:
            strict, loose = (tuple(map(bool, met)) for met in cls.verdicts(prompt, final.text))
        finally:
            random.setstate(state)
        return VerifiedResult(
            id=prompt.id,
            key=prompt.key,
            response=final.text,
            instructions=prompt.names,
            strict=strict,
            loose=loose,
            score=float(all(strict)),
            picked=final.picked,
            finished=final.finished,
            cost=final.cost,
        )

    @staticmethod
    def scores(results: Sequence[VerifiedResult], seed: int) -> dict[str, Interval]:
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

        def mean(cases: Sequence[VerifiedResult]) -> float:
            total = 0.0
            for met in ([r.strict for r in cases], [r.loose for r in cases]):
                total += sum(map(all, met)) / len(met) + sum(map(sum, met)) / sum(map(len, met))
            return total / 4

        return scores | {"mean": bootstrap(results, mean, seed, draws=1000)}

    def more(self, results: Sequence[VerifiedResult]) -> dict[str, Any]:
        return {"cut_off": sum(not result.finished for result in results)}


def load_verifiers(title: str, module: str, data: Mapping[str, str]) -> Any:
    """Import a module of verifiers once all that it would fetch, unasked, is on disk.

    ``data``: NLTK's packages, each with a path that it holds.

    Raises:
        SparError: the extra is not installed, or some of NLTK's data are missing.
    """
    missing = []
    try:
        import nltk

        for name, path in data.items():
            try:
                nltk.data.find(path)
            except LookupError:
                missing.append(name)
        if not missing:
            return importlib.import_module(module)
    except ImportError as error:
        raise SparError(
            f"{title}'s verifiers come with the extra eval ({error}): {INSTALL}"
        ) from None
    names, paths = " ".join(missing), ", ".join(data[name] for name in missing)
    raise SparError(
        f"{title}'s verifiers need data of NLTK. Fetch them once with "
        f"python -m nltk.downloader {names}, or set NLTK_DATA to a folder that holds {paths}."
    )


# --- Reading --------------------------------------------------------------------------------------


def read_prompts(
    kind: type[Verified], path: Path | None, option: str = "--data FILE"
) -> tuple[VerifiedPrompt, ...]:
    """The prompts of the original JSONL, or of the Hub's copy (None); the verifiers take them all.

    Raises:
        SparError: naming file, line and what was wanted, or ``option`` where the Hub is not there.
    """
    known = kind.known()  # what is missing is said before anything is read
    rows: Iterable[tuple[str, Any]]
    if path is None:
        splits = from_hub(kind.hub, None, f"the original {kind.source}: {option}").values()
        found = (row for split in splits for row in split)
        rows = ((f"{kind.hub} row {n}", row) for n, row in enumerate(found, 1))
    else:
        rows = _rows(path)
    prompts: dict[str, VerifiedPrompt] = {}
    for where, row in rows:
        prompt = _prompt(kind, known, row, where)
        if prompt.id in prompts:
            raise StoreError(f"{path or kind.hub} has key {prompt.key} twice.")
        prompts[prompt.id] = prompt
    if not prompts:
        raise StoreError(f"{path or kind.hub} is empty: wanted {kind.title}'s {kind.source}.")
    return tuple(prompts.values())


def _prompt(
    kind: type[Verified], known: Mapping[str, Any], row: Mapping[str, Any], where: str
) -> VerifiedPrompt:
    try:
        names, kwargs = tuple(row["instruction_id_list"]), tuple(row["kwargs"])
        if len(names) != len(kwargs) or not all(isinstance(k, Mapping) for k in kwargs):
            raise ValueError(f"{len(names)} instructions, {len(kwargs)} kwargs")
        key, text = row["key"], row["prompt"]
        if not names or not isinstance(text, str) or type(key) not in (int, str):
            raise ValueError("a key, a text and at least one instruction")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where} is not {kind.title}'s ({error!r}): wanted key, prompt, instruction_id_list, "
            "kwargs."
        ) from None
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise StoreError(f"{kind.title} prompt {key}: unknown instruction {name!r}.{hint}")
    prompt = VerifiedPrompt(f"{kind.name}-{key}", text, key=key, names=names, kwargs=kwargs)
    try:  # now, and not after an hour of answers
        kind.check(prompt, Final(prompt.id, "", "", True, None, Cost()))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise StoreError(
            f"{kind.title} prompt {key}: the kwargs do not fit the instructions ({error})."
        ) from None
    return prompt


def read_responses(
    path: Path, prompts: Sequence[VerifiedPrompt], limit: int = 0
) -> list[tuple[VerifiedPrompt, Final]]:
    """Read a JSONL of {"key" or "prompt", "response"}; return each prompt with its response.

    ``limit``: only the first prompts (0: all) need a response; the others' are checked no further.

    Raises:
        StoreError: a line of another shape, an unknown or repeated prompt, or missing ones.
    """
    keys = {"key": {str(p.key): p.key for p in prompts}, "prompt": {p.text: p.key for p in prompts}}
    found: dict[int | str, str] = {}
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


# --- The command ----------------------------------------------------------------------------------


def make_command(kind: type[Verified]) -> click.Command:
    """The click command of a benchmark."""

    @click.option("--data", type=click.Path(path_type=Path), help=f"{kind.source} [Hub].")
    @click.option(
        "--responses", type=click.Path(path_type=Path), help="Score this JSONL; no model."
    )
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
        if (job is None) == (responses is None):
            raise StoreError("wanted a TARGET or --responses FILE, and not both.")
        prompts, package = read_prompts(kind, data), kind.package
        settings = {"verifiers": f"{package} {version(package)}"} if package else {}
        if job is not None:
            plan = job.plan(way, budget, max_new_tokens)
            return evaluate(job, kind(prompts[: limit or None], plan, **settings))
        assert responses is not None
        results = [kind.check(*pair) for pair in read_responses(responses, prompts, limit)]
        return {
            "task": kind.name,
            "target": str(responses),
            "settings": {"prompts": len(results), "responses": str(responses), **settings},
            "scores": {name: asdict(score) for name, score in kind.scores(results, 0).items()},
        }

    about = (
        f"{kind.title}, by {kind.by} verifiers.\n\n"
        "Prompt and instruction level, strict and loose. TARGET's answers, or a file of "
        '--responses with "key" or "prompt", and "response", on each line.'
    )
    return click.command(kind.name, help=about)(command)
