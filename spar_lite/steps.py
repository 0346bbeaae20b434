"""A step: a line of a loop that survives a kill.

A step makes its records, or finds them made: ``StepFolder.each`` one at a time, resumed by id,
``once`` all together, ``train`` an adapter, ``report`` a summary alone. When it is finished, it
notes the values of the recipe's keys that it depends on, and a digest of every file of the run that
it is made from. One rule for staleness: where either differs today, that is an
error which says what differs. And one for reuse: where both are equal in a sibling run, its files
are copied.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from spar_lite.errors import SparError, StoreError
from spar_lite.recipe import Recipe, Training, is_private, recipe_slice
from spar_lite.records import Role
from spar_lite.run import FRESH, ROLES, Adapters, Run, Screen, Step, Summary, saved_recipe
from spar_lite.store import (
    Marker,
    StageFile,
    copy_whole,
    json_text,
    read_json,
    read_lines,
    write_lines,
    write_text,
)
from spar_lite.tracking import send

if TYPE_CHECKING:
    from spar_lite.train import TrainingReport

T = TypeVar("T")

Items = Mapping[str, Callable[[], Awaitable[T]]]
"""A coroutine function for each record's id, in the order of the finished file."""

MODEL = (
    "seed", "model.id", "model.quantization", "model.lora", "model.trust_remote_code",
    "model.chat_template", "engine.extra",
)  # fmt: skip
"""Recipe keys that decide what the model answers; device and threads may change on the way."""


WAIT = 0.2
"""Seconds between two looks of a run that follows another at whether a step is finished."""


class Records(Sequence[T], Generic[T]):
    """A finished step's records, read from their file when somebody looks at them."""

    def __init__(self, file: StageFile[T]) -> None:
        self.path = file.path
        self._file = file

    @cached_property
    def _list(self) -> list[T]:
        return self._file.load()

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[T]:
        return iter(self._list)

    def __getitem__(self, place: Any) -> Any:
        return self._list[place]

    @cached_property
    def by_id(self) -> dict[str, T]:
        """The records by their ids."""
        return {record.id: record for record in self}  # type: ignore[attr-defined]

    def release(self) -> None:
        """Forget what was read: a training needs the memory."""
        for name in ("_list", "by_id"):
            self.__dict__.pop(name, None)


Input = Records[Any] | Adapters | Path
"""What a step is made from: an earlier step's records, adapters, or a file."""


@dataclass(frozen=True)
class StepFolder:
    """A folder of a run, and the steps that write there."""

    run: Run
    name: str

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    def each(
        self,
        name: str,
        kind: type[T],
        items: Callable[[], Items[T]],
        *,
        keys: Sequence[str],
        inputs: Sequence[Input],
        adapters: Adapters | None = None,
        unit: str = "answers",
        summary: Callable[[Records[T]], Summary] = lambda _: {},
    ) -> Records[T]:
        """Make one record per item, all in flight at once; keep each as it comes, resume by id.

        ``keys``: the recipe's keys or sections that it depends on; ``inputs``: what it is made of.
        ``adapters``: those that answer, and so part of both, or None where no model does.
        """
        file = StageFile(self.folder, name, kind)
        records = Records(file)

        def work() -> Summary:
            if adapters is not None:
                self.run.use_adapters(adapters)
            wanted = list(items().items())
            label = f"{self.name}/{name}"
            records._list = collect(self.run.screen, label, file, wanted, unit)
            return summary(records)

        if adapters is not None:
            keys, inputs = (*MODEL, *keys), [*inputs, adapters]
        self._step(name, keys, inputs, work, file, leaves=[file.path])
        return records

    def once(
        self,
        name: str,
        kind: type[T],
        make: Callable[[], Iterable[T]],
        *,
        keys: Sequence[str] = (),
        inputs: Sequence[Input] = (),
        unit: str = "",
        summary: Callable[[Records[T]], Summary] | None = None,
    ) -> Records[T]:
        """Make all records together."""
        file = StageFile(self.folder, name, kind)
        records = Records(file)

        def work() -> Summary:
            made = list(make())
            self.run.screen.start(f"{self.name}/{name}", len(made), unit or name)
            file.finish(made)
            records._list = made
            return {unit or name: len(made)} if summary is None else summary(records)

        self._step(name, keys, inputs, work)
        return records

    def report(
        self,
        name: str,
        work: Callable[[], Summary],
        *,
        keys: Sequence[str] = (),
        inputs: Sequence[Input] = (),
        unit: str = "",
        leaves: Sequence[Path] = (),
    ) -> None:
        """Do something whose summary is all that stays; without a unit it shows its progress.

        ``leaves``: patterns of files that stay too, where it is long enough to be worth a copy.
        """

        def begin() -> Summary:
            if unit:
                self.run.screen.start(f"{self.name}/{name}", 1, unit)
            return work()

        self._step(name, keys, inputs, begin, leaves=leaves)

    def train(
        self,
        role: Role,
        learn: Callable[[], Summary],
        *,
        keys: Sequence[str],
        inputs: Sequence[Input],
        adapters: Adapters,
        name: str = "",
    ) -> Path:
        """Train one adapter from a checkpoint's, save it, and note both adapters' fingerprints.

        It is made of its own adapter alone; the other one is in place too. ``name``: of the step
        and its folder, where it is not the role's.
        """
        name = name or role

        def work() -> Summary:
            run, folder = self.run, self.folder / name
            run.use_adapters(adapters)
            summary = learn()
            if not run.follows:
                run.policy.save(role, folder)
            run.trained(role, folder)
            return summary | {"fingerprints": {r: run.policy.fingerprint(r) for r in ROLES}}

        own = adapters.actor if role == "actor" else adapters.refiner
        made_of, leaves = [*inputs, Adapters(own, None)], [self.folder / name]
        self._step(name, (*MODEL, *keys), made_of, work, leaves=leaves, joins=True)
        return self.folder / name

    def copy(self, role: Role, source: Path | None) -> Path:
        """Have a role's adapter here too, where nothing trains it; None: a fresh one."""

        def work() -> Summary:
            self.run.screen.start(f"{self.name}/{role}", 1, "copy")
            if source is not None:
                copy_whole(source, self.folder / role)
            else:
                self.run.use_adapters(FRESH)
                self.run.policy.save(role, self.folder / role)
            return {"copied": 1}

        self._step(role, ["refiner"], [Adapters(source, None)], work)
        return self.folder / role

    def write_metrics(self, kind: str, found: Mapping[str, Any]) -> None:
        """Put one line of this kind into the folder's metrics.jsonl, in place of an older one."""
        path = self.folder / "metrics.jsonl"
        others = [line for line in read_lines(path) if line.get("kind") != kind]
        write_lines(path, [*others, {"checkpoint": self.name, "kind": kind, **found}])

    # --- What all steps have in common ------------------------------------------------------------

    def _step(
        self,
        name: str,
        keys: Sequence[str],
        inputs: Sequence[Input],
        work: Callable[[], Summary],
        file: StageFile[Any] | None = None,
        leaves: Sequence[Path] = (),
        joins: bool = False,
    ) -> None:
        """Find a step finished, and check that it still is, or do it and mark it, last of all.

        ``file``: to which it adds records one by one. Then its beginning is noted too, so that they
        are never mixed with those of another recipe. ``leaves``: see ``_reuse``. ``joins``: whether
        a run that follows another takes part.
        """
        run, label, marker = self.run, f"{self.name}/{name}", Marker(self.folder, name)
        if run.follows:
            if joins and not marker.path.exists():
                work()
            while not marker.path.exists():
                time.sleep(WAIT)
            return
        found, note = marker.read(), self.folder / f"{name}.part.json"
        if found is not None and not run.lenient:
            _check(run, label, found, keys, inputs)
        recorded = file is not None and (file.part.exists() or file.path.exists())
        begun = read_json(note) if found is None and recorded and not run.lenient else None
        if begun is not None:
            _check(run, label, begun, keys, inputs, "begun")
        if run.listing is not None:
            run.listing.append(Step(label, found is not None, keys, inputs))
        if found is not None or run.listing is not None:
            return
        made = {"recipe": recipe_slice(run.recipe, keys), "inputs": _digests(run.folder, inputs)}
        if file:
            write_text(note, json_text(made))
        if leaves and begun is None and (equal := self._reuse(name, made, leaves)):
            if file:  # all records are there, so it only says what is to be said of them
                work()
            marker.write(equal)
            note.unlink(missing_ok=True)
            return
        begin = time.perf_counter()
        run.take_usage()
        run.ledger(stage=label, event="start")
        summary = work()
        cost: Summary = {"seconds": round(time.perf_counter() - begin, 2), **run.take_usage()}
        cost |= run.costs_of_machine()
        marker.write({**made, **summary, **cost})
        note.unlink(missing_ok=True)
        run.ledger(stage=label, event="done", **summary, **cost)
        run.screen.end(describe(summary))
        if fault := send(run.recipe.log, run.folder, label, summary | cost):
            run.screen.say(fault)

    def _reuse(self, name: str, made: Summary, leaves: Sequence[Path]) -> Summary | None:
        """Copy what a sibling's step left that was made alike; return its marker, costs included.

        ``leaves``: patterns of all its files and folders. Steps without any are done again: they
        take a moment, and may write elsewhere.
        """
        run, label = self.run, f"{self.name}/{name}"
        for other in run.siblings:
            found = Marker(other / self.name, name).read()
            if found is None or None in made["inputs"].values():
                continue
            if any(found.get(key) != value for key, value in made.items()):
                continue
            left = [list(other.glob(str(leaf.relative_to(run.folder)))) for leaf in leaves]
            if not all(left):  # somebody made room
                continue
            for path in itertools.chain(*left):
                copy_whole(path, run.folder / path.relative_to(other))
            where = os.path.relpath(other, run.folder)
            noted = {key: value for key, value in found.items() if key not in made}
            run.ledger(stage=label, event="done", reused_from=where, **noted)
            run.screen.say(f"{label}: the same as in {where}, copied")
            return found
        return None


def _check(
    run: Run,
    label: str,
    found: Summary,
    keys: Sequence[str],
    inputs: Sequence[Input],
    what: str = "made",
) -> None:
    """Refuse a step that was made, or begun, with other recipe values or from other files."""
    now, then = recipe_slice(run.recipe, keys), found["recipe"]
    # A key that came, or moved here, with a version: then it was as the run's own recipe has it,
    # or the default. One that went is nobody's change of mind.
    if now.keys() - then.keys():
        then = recipe_slice(_before(run), keys) | then
    for key in sorted(set(now) & set(then)):
        if now[key] != then[key]:
            old, new = f"{key}: {then[key]!r}", repr(now[key])
            back = f"-o '{key}={_yaml(then[key])}'"
            if is_private(key):
                old, new, back = f"another {key}", "otherwise", "take the old value"
            raise StoreError(
                f"{run.folder}: {label} was {what} with {old}, the recipe now says {new}. To go on "
                f"with this run: {back}. For the new value: another --run folder"
                + (f", or remove {run.folder}/{label}.part.*" if what == "begun" else "")
                + "."
            )
    there, made_of = _digests(run.folder, inputs), found.get("inputs")
    for name in sorted(there.keys() ^ made_of.keys()) if made_of is not None else []:
        how = "without" if name in there else "from"
        raise StoreError(
            f"{run.folder}: {label} was {what} {how} {name}, and the recipe now says otherwise. "
            "Take the recipe of before, or another --run folder."
        )
    for name, digest in there.items():
        if digest and (made_of or {}).get(name, digest) != digest:
            raise StoreError(
                f"{run.folder}: {name} has changed since {label} was {what} from it. Put the "
                f"old file back, or remove {label}.* and all that comes after it to make them "
                "again."
            )


def _before(run: Run) -> Recipe:
    """The recipe that a run was last done with, as far as this version can read it."""
    try:
        return saved_recipe(run.folder)
    except SparError:
        return run.recipe


def _digests(folder: Path, inputs: Sequence[Input]) -> dict[str, str | None]:
    """SHA-256 of each input's file by its name in the run; None where there is no such file yet."""
    return {name: _digest(path) for name, path in input_files(folder, inputs).items()}


def input_files(folder: Path, inputs: Sequence[Input]) -> dict[str, Path]:
    """Each input's file by its name in the run."""
    paths: list[Path] = []
    for source in inputs:
        if isinstance(source, Adapters):
            paths += [path / "adapter_model.safetensors" for path in source if path]
        else:
            paths.append(source.path if isinstance(source, Records) else source)
    inside = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    return dict(zip(map(str, inside), paths, strict=True))


def _digest(path: Path) -> str | None:
    if not path.exists():
        return None
    state = path.stat()
    return _read_digest(path, state.st_size, state.st_mtime_ns)


@cache
def _read_digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file that has this size and time of change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if value is True else str(value)


def describe(summary: Summary) -> str:
    """A summary in a few words, for the screen."""
    words = []
    for key, value in summary.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = f"{value:.3g}" if isinstance(value, float) else str(value)
            words.append(f"{number} {key.replace('_', ' ')}")
    return ", ".join(words)


def collect(
    screen: Screen,
    name: str,
    file: StageFile[T],
    items: Sequence[tuple[str, Callable[[], Awaitable[T]]]],
    unit: str,
) -> list[T]:
    """Make one record per item, all in flight at once; keep each as it comes; resume by id.

    ``items`` are (id, coroutine function) in the order that the finished file will have.
    """
    done = file.resume()
    screen.start(name, len(items), unit)
    screen.advance(sum(id in done for id, _ in items))

    async def work(id: str, make: Callable[[], Awaitable[T]]) -> None:
        record = await make()
        file.append(record)
        done[id] = record
        screen.advance(1)

    async def everything() -> None:
        await asyncio.gather(*(work(id, make) for id, make in items if id not in done))

    asyncio.run(everything())
    records = [done[id] for id, _ in items]
    file.finish(records)
    return records


def training_summary(report: TrainingReport) -> Summary:
    """A training report without its seconds, which the step measures itself."""
    return {k: v for k, v in asdict(report).items() if k != "seconds"}


def training_progress(
    screen: Screen, label: str, parts: Sequence[int], settings: Training
) -> Callable[[int, int, int], None]:
    """Turn a trainer's (step, its steps in all, tokens so far) into one bar for all its parts.

    ``parts``: examples of each. A part whose steps begin anew goes on where the last one ended;
    where examples are dropped as too long, the bar ends early.
    """
    steps = sum(settings.epochs * math.ceil(size / settings.batch_size) for size in parts)
    screen.start(label, steps, "steps")
    seen = {"step": 0, "tokens": 0}

    def count(step: int, total: int, tokens: int) -> None:
        if step <= seen["step"]:
            seen.update(step=0, tokens=0)
        screen.advance(step - seen["step"])
        screen.tokens(tokens - seen["tokens"])
        seen.update(step=step, tokens=tokens)

    return count
