"""What the stages share: their shape, their files, their checkpoints, the training wrapper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spar_lite.recipe import Recipe, Training
from spar_lite.records import Role, TrainingExample, stable_seed
from spar_lite.run import Run
from spar_lite.store import StageFile, json_text, read_lines, write_text
from spar_lite.target import kept_after

Summary = dict[str, Any]

MODEL = (
    "seed", "model.id", "model.quantization", "model.lora", "model.trust_remote_code",
    "model.chat_template",
)  # fmt: skip
"""Recipe keys that decide what the model answers; device and threads may change on the way."""

TASKS = (*MODEL, "prompts.kinds", "prompts.per_prompt")
"""Keys of the built-in prompts on top."""


@dataclass(frozen=True)
class Stage:
    """One step of a run: where it writes, which recipe keys it depends on, and its work."""

    folder: str
    name: str
    keys: tuple[str, ...]
    work: Callable[[Run], Summary]

    @property
    def label(self) -> str:
        """Name on the screen and in the ledger, such as "iteration-1/trees"."""
        return f"{self.folder}/{self.name}"


def checkpoint(recipe: Recipe, folder: Path, role: Role, iteration: int) -> Path | None:
    """The adapter that ``role`` has after ``iteration`` (0: after the warm-up); None: fresh.

    An iteration that made the answers worse leaves those of the one before.
    """
    iteration = kept_after(recipe, folder, iteration)
    if iteration > 0:
        return folder / f"iteration-{iteration}" / role
    if recipe.bootstrap.start_from:
        copied = folder / "bootstrap" / role
        return copied if copied.exists() else None  # the other run may have warmed only one up
    warmed = recipe.bootstrap.source != "none" and (role != "actor" or recipe.bootstrap.actor)
    return folder / "bootstrap" / role if warmed else None


def start_folder(recipe: Recipe) -> str:
    """Where the checkpoint lies that iteration 1 starts from."""
    warmed = recipe.bootstrap.source != "none" or recipe.bootstrap.start_from
    return "bootstrap" if warmed else "base"


def standing(recipe: Recipe, folder: Path, iteration: int) -> str:
    """The checkpoint that stands after ``iteration`` (0: after the warm-up), if there is one."""
    number = kept_after(recipe, folder, iteration)
    return f"iteration-{number}" if number else start_folder(recipe)


def file_of(run: Run, folder: str, name: str, kind: type[Any]) -> StageFile[Any]:
    """A stage's records in this run."""
    return StageFile(run.folder / folder, name, kind)


def write_metrics(folder: Path, kind: str, found: Summary) -> None:
    """Put one line of this kind into a checkpoint's metrics.jsonl, in place of an older one."""
    path = folder / "metrics.jsonl"
    others = [line for line in read_lines(path) if line.get("kind") != kind]
    lines = [*others, {"checkpoint": folder.name, "kind": kind, **found}]
    write_text(path, "".join(json_text(line) + "\n" for line in lines))


def kinds(rows: list[TrainingExample]) -> Summary:
    """Examples in all and by kind."""
    counts: Summary = {"examples": len(rows)}
    for kind in sorted({row.kind for row in rows}):
        counts[kind.replace(" ", "_") + "s"] = sum(row.kind == kind for row in rows)
    return counts


def fit(
    run: Run, folder: str, role: Role, *parts: list[TrainingExample], settings: Training
) -> Summary:
    """Supervised training of one adapter on each part in turn, then save it."""
    from spar_lite.train import train_on_examples

    label = f"{folder}/{role}"
    summary: Summary = {"examples": 0}
    step = step_counter(run, label, [len(rows) for rows in parts], settings)
    for number, rows in enumerate(filter(None, parts)):
        seed = stable_seed(run.recipe.seed, folder, role, *([number] if number else []))
        found = report(train_on_examples(run.policy, role, rows, settings, seed, step))
        for key in ("examples", "dropped", "steps", "tokens"):
            found[key] += summary.get(key, 0)
        found["loss_first"] = summary.get("loss_first", found["loss_first"])
        summary = found
    if not any(parts):
        run.screen.say(f"no examples: the {role} stays as it is")
    return summary | keep(run, folder, role)


def keep(run: Run, folder: str, role: Role) -> Summary:
    """Save a trained adapter and note both adapters' fingerprints."""
    run.policy.save(role, run.folder / folder / role)
    run.trained(role, run.folder / folder / role)
    other: Role = "refiner" if role == "actor" else "actor"
    return {"fingerprints": {r: run.policy.fingerprint(r) for r in (role, other)}}


def report(training: Any) -> Summary:
    """A training report without its seconds, which the stage measures itself."""
    return {k: v for k, v in asdict(training).items() if k != "seconds"}


def step_counter(
    run: Run, label: str, parts: Sequence[int], settings: Training
) -> Callable[[int, int, int], None]:
    """Turn a trainer's (step, its steps in all, tokens so far) into one bar for all its parts.

    ``parts``: examples of each. A part whose steps begin anew goes on where the last one ended;
    where examples are dropped as too long, the bar ends early.
    """
    steps = sum(settings.epochs * math.ceil(size / settings.batch_size) for size in parts)
    run.screen.start(label, steps, "steps")
    seen = {"step": 0, "tokens": 0}

    def count(step: int, total: int, tokens: int) -> None:
        if step <= seen["step"]:
            seen.update(step=0, tokens=0)
        run.screen.advance(step - seen["step"])
        run.screen.tokens(tokens - seen["tokens"])
        seen.update(step=step, tokens=tokens)

    return count
