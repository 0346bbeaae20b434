"""The prompts of a run: built-in tasks with checkable constraints, or a source's.

Iterations take the next ones that were not dealt before, so they share no prompt, whatever a file
has grown by in between; nor do a run and the one it starts from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spar_lite import constraints
from spar_lite.data.decontaminate import read_benchmark
from spar_lite.data.files import listed
from spar_lite.data.sources import in_words, read_source
from spar_lite.errors import RecipeError
from spar_lite.recipe import Prompts
from spar_lite.records import Prompt
from spar_lite.store import StageFile

USED = "used_prompts"
"""Name of a run's file of the prompts that were dealt in the runs it started from."""

TOO_CLOSE = "too close to the benchmark"
DEALT = "dealt before"
TWICE = "twice in the source"
_NUMBERED = re.compile(r"(?:prompt|train)-\d+")
"""Ids that say a place, and not which prompt it is."""


def builtin_prompts(
    settings: Prompts, seed: int, split: str, count: int, start: int = 0
) -> list[Prompt]:
    """Compose prompts of one split ("warmup", "train" or "heldout"; no topic is in two).

    Of "heldout" the phrases and words are its own too, and ``seed`` decides nothing: runs that
    differ in it are scored on the same prompts.

    Raises:
        RecipeError: an unknown constraint kind, or more prompts asked for than can be made.
    """
    try:
        return constraints.compose(
            0 if split == "heldout" else seed,
            count,
            kinds=settings.kinds,
            per_prompt=settings.per_prompt,
            split=split,
            start=start,
        )
    except ValueError as error:
        raise RecipeError(f"prompts: {error}") from None


def requirements(prompt: Prompt) -> list[constraints.Requirement]:
    """All that a program checks of a prompt's answers: its constraints, then that it is one."""
    return constraints.requirements(prompt.text, prompt.topic, prompt.constraints)


def iteration_prompts(
    settings: Prompts, seed: int, iteration: int | str, dealt: Iterable[Prompt] = ()
) -> tuple[list[Prompt], Counter[str]]:
    """The next prompts of the source that are not among ``dealt``, and what was passed over.

    A prompt is known by its text, and by its id where the source gives it one. With
    ``decontaminate`` what is too close to a benchmark is passed over too.
    ``iteration``, such as 2 or "2 to 3", is for the error's words.

    Raises:
        RecipeError: there are too few; how many there are of which kind.
    """
    bench = read_benchmark(Path(settings.decontaminate)) if settings.decontaminate else None
    old = list(dealt)
    texts = {p.text.strip(): DEALT for p in old}
    ids = {p.id for p in old if not _NUMBERED.fullmatch(p.id)}
    found: list[Prompt] = []
    passed: Counter[str] = Counter()
    for prompt in _series(settings, seed, len(old) + settings.count, passed):
        text = prompt.text.strip()
        if text in texts or prompt.id in ids:
            passed[texts.get(text, DEALT)] += 1
        elif bench is not None and bench.holds(prompt.text):
            passed[TOO_CLOSE] += 1
        else:
            found.append(prompt)
            texts[text] = TWICE
        if len(found) == settings.count:
            return found, passed
    name = ", ".join(listed(settings.source))
    why = f"; passed over: {in_words(passed)}" if passed else ""
    again = ", or set bootstrap.reuse_prompts" if passed[DEALT] else ""
    raise RecipeError(
        f"prompts.count: iteration {iteration} wants {settings.count} prompts, {name} has "
        f"{len(found)} left{why}. Add prompts to it, lower prompts.count or iterations{again}."
    )


def dealt_prompts(folder: Path, before: int | None = None, reuse: bool = False) -> list[Prompt]:
    """The prompts that a run's iterations were dealt, as drawn and not as evolved.

    ``before``: those of earlier iterations alone. Without ``reuse`` also those of the runs that it
    started from.
    """
    places = [] if reuse else [StageFile(folder / "bootstrap", USED, Prompt)]
    for place in folder.glob("iteration-*"):
        number = place.name.removeprefix("iteration-")
        if number.isdigit() and (before is None or int(number) < before):
            plain = StageFile(place, "plain_prompts", Prompt)
            places.append(plain if plain.path.exists() else StageFile(place, "prompts", Prompt))
    return [prompt for file in places if file.path.exists() for prompt in file.load()]


def _series(settings: Prompts, seed: int, wanted: int, left_out: Counter[str]) -> Iterator[Prompt]:
    """All prompts there are, in order; the built-in ones in blocks, since they hardly end."""
    if settings.source != "builtin":
        yield from read_source(settings, left_out)
        return
    start = 0
    while True:
        yield from builtin_prompts(settings, seed, "train", wanted, start)
        start += wanted
