"""What one run holds while its stages work: recipe, folder, model, ledger and screen.

The model is loaded at the first stage that needs it, and each stage finds in place the adapters
that it starts from, whatever was done before or in an earlier process.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from spar_lite.bootstrap import released_rows
from spar_lite.engine import Engine
from spar_lite.errors import ModelError, SparError
from spar_lite.recipe import Recipe
from spar_lite.records import Role, stable_seed
from spar_lite.store import Marker, StageFile, append_line

if TYPE_CHECKING:
    from spar_lite.model import Policy

T = TypeVar("T")
Source = TypeVar("Source")


class Screen(Protocol):
    """Where progress is shown; the CLI brings one for terminals and one for plain lines."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage of ``total`` items begins."""

    def advance(self, items: int) -> None:
        """Some items are done."""

    def tokens(self, count: int) -> None:
        """Some tokens were generated or trained on."""

    def end(self, note: str) -> None:
        """The stage is over; ``note`` is its result in a few words."""

    def say(self, text: str) -> None:
        """Something that the user should know, in one line."""


EngineFactory = Callable[["Run"], Engine]


@dataclass
class Run:
    """A run in progress.

    ``make_engine`` replaces the model's engine in tests (a scripted one); the training stages
    always use the real model.
    """

    recipe: Recipe
    folder: Path
    screen: Screen
    make_engine: EngineFactory | None = None
    _policy: Policy | None = None
    _fault: SparError | None = None
    _engine: Any = None
    _loaded: dict[Role, Path | None] = field(default_factory=dict)
    _wanted: dict[Role, Path | None] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        """The model, loaded on first use.

        Raises:
            ModelError: it cannot be loaded, or trained as it answers; it is tried once, however
                many ask.
        """
        if self._fault is not None:
            raise self._fault
        if self._policy is None:
            from spar_lite.model import Policy

            self.screen.say(f"loading {self.recipe.model.id}")
            try:
                policy = Policy.load(self.recipe.model, stable_seed(self.recipe.seed, "lora"))
                # Before the first answer, not at the first training:
                if thinks := policy.chat.thoughts_when_training:
                    raise ModelError(thinks)
                self._try_warmup_chats(policy)
            except SparError as fault:
                self._fault = fault
                raise
            self._policy = policy
            for role, folder in self._wanted.items():
                self._restore(role, folder)
            device = self._policy.device
            weights = "4-bit NF4" if self._policy.quantized else str(self._policy.inner.dtype)
            self.screen.say(f"{self.recipe.model.id} on {device}, {weights.replace('torch.', '')}")
        return self._policy

    def _try_warmup_chats(self, policy: Policy) -> None:
        """Have the template refuse now what it would refuse of a warm-up file's rows."""
        warmup = self.recipe.bootstrap
        read = Marker(self.folder / "bootstrap", "examples").read() is not None
        if read or warmup.source in ("constraints", "none") or warmup.start_from:
            return
        chats = {tuple(m.role for m in r.prompt): r for r in released_rows(Path(warmup.source))}
        for row in chats.values():  # one of each sequence of turns
            policy.encode(row.prompt)

    @property
    def engine(self) -> Engine:
        """The engine that answers, made on first use."""
        if self._engine is None:
            if self.make_engine is not None:
                self._engine = self.make_engine(self)
            else:
                from spar_lite.model import RolloutEngine

                engine = RolloutEngine(
                    self.policy,
                    self.recipe.engine,
                    self.recipe.seed,
                    self.screen.say,
                    self.recipe.model.memory_fraction,
                )
                engine.on_tokens = self.screen.tokens
                self._engine = engine
        engine_: Engine = self._engine
        return engine_

    def use_adapters(self, actor: Path | None, refiner: Path | None) -> None:
        """Put the adapters of a checkpoint in place (None: fresh ones, which change nothing)."""
        self._wanted = {"actor": actor, "refiner": refiner}
        if self.make_engine is not None and self._policy is None:
            return  # a scripted engine needs no model; a training that follows loads them with it
        for role, folder in self._wanted.items():
            self._restore(role, folder)

    def _restore(self, role: Role, folder: Path | None) -> None:
        if self._loaded.get(role) != folder and folder is not None:
            self.policy.restore(role, folder)
        self._loaded[role] = folder

    def trained(self, role: Role, folder: Path) -> None:
        """Note that the adapter in memory is the one just saved in ``folder``."""
        self._loaded[role] = folder

    def take_usage(self) -> dict[str, Any]:
        """What the engine did since the last call, for the ledger."""
        take = getattr(self._engine, "take_usage", None)
        if take is None:
            return {}
        usage = take()
        return {
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "occupancy": round(usage.occupancy, 3),
        }

    @property
    def device(self) -> str | None:
        """Where the model runs ("cuda" or "cpu"); None before it is loaded."""
        return self._policy.device.type if self._policy is not None else None

    def peak_memory(self) -> int:
        """Peak bytes so far: the card's allocations on CUDA, else the process's resident set."""
        if self._policy is not None and self._policy.device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated())
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

    def ledger(self, **entry: Any) -> None:
        """Add a line to the run's cost ledger."""
        append_line(self.folder / "ledger.jsonl", {"time": round(time.time(), 3), **entry})

    def collect(
        self,
        name: str,
        file: StageFile[T],
        items: Sequence[tuple[str, Callable[[], Awaitable[T]]]],
        unit: str,
    ) -> list[T]:
        """``collect`` with this run's screen."""
        return collect(self.screen, name, file, items, unit)


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


def by_id(records: Iterable[T]) -> dict[str, T]:
    """Index records by their id."""
    return {record.id: record for record in records}  # type: ignore[attr-defined]
