"""The prompts of a run: built-in tasks with checkable constraints, or a source's.

Iterations take consecutive blocks, so they share no prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spar_lite import constraints
from spar_lite.data.decontaminate import read_benchmark
from spar_lite.data.sources import read_source
from spar_lite.errors import RecipeError
from spar_lite.recipe import Prompts
from spar_lite.records import Prompt


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


def iteration_prompts(settings: Prompts, seed: int, iteration: int) -> tuple[list[Prompt], int]:
    """The prompts of one iteration, counted from 1, and how many were dropped on the way to them.

    With ``decontaminate`` what is too close to a benchmark is dropped and the next one taken up.
    """
    end = iteration * settings.count
    bench = read_benchmark(Path(settings.decontaminate)) if settings.decontaminate else None
    found: list[Prompt] = []
    dropped = 0
    for prompt in _series(settings, seed, end):
        if bench is not None and bench.holds(prompt.text):
            dropped += 1
        else:
            found.append(prompt)
        if len(found) == end:
            return found[end - settings.count :], dropped
    gone = f", and {dropped} were too close to the benchmark" if dropped else ""
    raise RecipeError(
        f"prompts.count: iteration {iteration} wants prompts {end - settings.count + 1} to "
        f"{end}, {settings.source} has {len(found)}{gone}. Lower prompts.count or iterations."
    )


def _series(settings: Prompts, seed: int, wanted: int) -> Iterator[Prompt]:
    """All prompts there are, in order; the built-in ones in blocks, since they hardly end."""
    if settings.source != "builtin":
        yield from read_source(settings)
        return
    start = 0
    while True:
        yield from builtin_prompts(settings, seed, "train", wanted, start)
        start += wanted
