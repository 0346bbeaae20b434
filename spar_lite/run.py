"""What a run holds: recipe, folder, screen, model, engine and costs; its steps are in ``steps``.

The model is loaded at the first step that needs it. A loop is a function of a run: the same one,
run with ``listing``, does nothing and lists its steps.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spar_lite.data.released import released_pairs, released_rows
from spar_lite.engines.base import Engine, LazyEngine
from spar_lite.engines.open import open_engine
from spar_lite.engines.served import RoleServer
from spar_lite.errors import ModelError, SparError, StoreError
from spar_lite.recipe import Recipe, dump_recipe, load_recipe
from spar_lite.records import Message, Role, stable_seed
from spar_lite.store import Marker, append_line, write_text

if TYPE_CHECKING:
    from spar_lite.model import Policy

Summary = dict[str, Any]


ROLES: tuple[Role, ...] = ("actor", "refiner")


class Screen:
    """Where progress is shown: this one shows nothing; see ``app.console``."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A step of ``total`` items begins."""

    def advance(self, items: int) -> None:
        """Some items are done."""

    def tokens(self, count: int) -> None:
        """Some tokens were generated or trained on."""

    def end(self, note: str) -> None:
        """The step is over; ``note`` is its result in a few words."""

    def say(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def close(self) -> None:
        """Give the terminal back."""


class Step(NamedTuple):
    """One step of a loop: its name, such as "iteration-1/trees", and whether it is finished.

    ``keys``, ``inputs``: what it depends on, as it says it itself.
    """

    label: str
    done: bool
    keys: Sequence[str]
    inputs: Sequence[Any]


class Adapters(NamedTuple):
    """The folders of a checkpoint's adapters; None: a fresh one, which leaves the base as it is."""

    actor: Path | None
    refiner: Path | None


FRESH = Adapters(None, None)


EngineFactory = Callable[["Run"], Engine]
Loop = Callable[["Run"], object]


@dataclass
class Run:
    """A run in progress.

    ``make_engine`` replaces the model's engine in tests (a scripted one); the training steps
    always use the real model. ``listing``: where steps are listed instead of done. ``lenient``: a
    finished step is taken as it is. ``follows``: another process does this run, and this one takes
    part in its trainings alone (see ``distributed``). ``siblings``: folders of other runs, whose
    finished steps are copied where they are equal to this one's, instead of being done again.
    """

    recipe: Recipe
    folder: Path
    screen: Screen
    make_engine: EngineFactory | None = None
    listing: list[Step] | None = None
    lenient: bool = False
    follows: bool = False
    siblings: Sequence[Path] = ()
    _policy: Policy | None = None
    _fault: SparError | None = None
    _engine: Any = None
    _loaded: dict[Role, Path | None] = field(default_factory=dict)
    _wanted: Adapters = FRESH

    def work(self, loop: Loop) -> None:
        """Do what is left of a loop.

        Raises:
            StoreError: the folder holds a step that was made with other recipe values, or from
                other records, than there are now; said before the first step.
        """
        saved = self.folder / "recipe.yaml"
        if not saved.exists() or self.unfinished(loop):
            write_text(saved, dump_recipe(self.recipe))
        try:
            loop(self)
        finally:
            if isinstance(self._engine, RoleServer):
                self._engine.close()

    def unfinished(self, loop: Loop) -> list[str]:
        """The labels of the steps still to do."""
        return [step.label for step in self.steps(loop, lenient=False) if not step.done]

    def summaries(self, loop: Loop) -> dict[str, Summary]:
        """What every finished step noted when it ended, by label, in the loop's order."""
        labels = [step.label for step in self.steps(loop, lenient=True) if step.done]
        found = {label: Marker(self.folder, label).read() for label in labels}
        return {label: summary for label, summary in found.items() if summary is not None}

    def steps(self, loop: Loop, lenient: bool) -> list[Step]:
        """All steps of a loop in their order, from their marks; nothing is done."""
        found: list[Step] = []
        loop(Run(self.recipe, self.folder, Screen(), listing=found, lenient=lenient))
        return found

    # --- The model --------------------------------------------------------------------------------

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

            if isinstance(self._engine, RoleServer) and self._one_card:
                self._engine.rest()
            self.screen.say(f"loading {self.recipe.model.id}")
            try:
                policy = Policy.load(self.recipe.model, stable_seed(self.recipe.seed, "lora"))
                # Before the first answer, not at the first training:
                if thinks := policy.chat.thoughts_when_training:
                    raise ModelError(thinks)
                self._try_warmup_chats(policy)
                self._policy = policy
                self._restore_wanted()
            except SparError as fault:
                self._policy, self._fault = None, fault
                raise
            device = policy.device
            weights = "4-bit NF4" if policy.quantized else str(policy.inner.dtype)
            self.screen.say(f"{self.recipe.model.id} on {device}, {weights.replace('torch.', '')}")
        return self._policy

    def _try_warmup_chats(self, policy: Policy) -> None:
        """Have the template refuse now what it would refuse of a warm-up file's rows."""
        warm, place = self.recipe.bootstrap, self.folder / "bootstrap"
        prompts: list[tuple[Message, ...]] = []
        taught = warm.source not in ("constraints", "none") and not warm.start_from
        if taught and Marker(place, "examples").read() is None:
            prompts += [row.prompt for row in released_rows(warm.source, warm.templates)[0]]
        if warm.pairs and Marker(place, "pairs").read() is None:
            prompts += [pair.prompt for pair in released_pairs(warm.pairs)[0]]
        for prompt in {tuple(message.role for message in p): p for p in prompts}.values():
            policy.encode(prompt)  # one of each sequence of turns

    @property
    def engine(self) -> Engine:
        """The engine that answers; what it needs is loaded when it is first asked."""
        return LazyEngine(self.open_engine)

    def open_engine(self) -> Engine:
        """The engine itself."""
        if self._engine is None:
            if self.make_engine is not None:
                self._engine = self.make_engine(self)
            else:
                adapters = dict(zip(ROLES, self._wanted, strict=True))
                engine = open_engine(
                    self.recipe,
                    lambda: self.policy,
                    adapters,
                    self.screen.say,
                    self.folder,
                    self._make_room,
                )
                engine.on_tokens = self.screen.tokens
                self._engine = engine
        engine_: Engine = self._engine
        return engine_

    def use_adapters(self, adapters: Adapters) -> None:
        """Put the adapters of a checkpoint in place, now or when the model is loaded."""
        self._wanted = adapters
        if self._policy is not None:
            self._restore_wanted()
        if isinstance(self._engine, RoleServer):
            for role, folder in zip(ROLES, adapters, strict=True):
                self._engine.use(role, folder)

    @property
    def _one_card(self) -> bool:
        """Whether the model here and a server that the run starts would share a card."""
        from spar_lite.model.machine import pick_device

        return pick_device(self.recipe.model.device).type == "cuda"

    def _make_room(self) -> None:
        """Give the card to a server that is about to start; the model is loaded again later."""
        if self._policy is not None and self._one_card:
            from spar_lite.model.machine import give_back

            device, self._policy = self._policy.device, None
            self._loaded.clear()
            give_back(device)

    def trained(self, role: Role, folder: Path) -> None:
        """Note that the adapter in memory is the one just saved in ``folder``."""
        self._loaded[role] = folder

    def _restore_wanted(self) -> None:
        for role, folder in zip(ROLES, self._wanted, strict=True):
            if self._loaded.get(role) != folder:
                self.policy.restore(role, folder)
            self._loaded[role] = folder

    # --- Costs ------------------------------------------------------------------------------------

    def take_usage(self) -> Summary:
        """What the engine did since the last call, for the ledger."""
        take = getattr(self._engine, "take_usage", None)
        if take is None:
            return {}
        usage = take()
        found = {
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if hasattr(usage, "occupancy"):  # a server's batches are its own
            found["occupancy"] = round(usage.occupancy, 3)
        return found

    def costs_of_machine(self) -> Summary:
        """Peak bytes so far (the card's allocations, else the resident set), and the device."""
        device = self._policy.device.type if self._policy is not None else None
        if device == "cuda":
            import torch

            peak = int(torch.cuda.max_memory_allocated())
        else:
            scale = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        return {"peak_memory_bytes": peak, "device": device}

    def ledger(self, **entry: Any) -> None:
        """Add a line to the run's cost ledger."""
        append_line(self.folder / "ledger.jsonl", {"time": round(time.time(), 3), **entry})


# --- The checkpoints of a run ---------------------------------------------------------------------


def saved_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run, with ``key.path=value`` overrides.

    Raises:
        StoreError: there is none.
    """
    if not (folder / "recipe.yaml").is_file():
        raise StoreError(f"{folder} holds no recipe.yaml, so it is not a run folder.")
    return load_recipe(folder / "recipe.yaml", overrides)


def checkpoints(folder: Path) -> dict[str, dict[Role, Path]]:
    """The checkpoints of a run that are there, in order: name to adapters."""
    found: dict[str, dict[Role, Path]] = {"base": {}}
    numbered = sorted(
        (path for path in folder.glob("iteration-*") if path.name[10:].isdigit()),
        key=lambda path: int(path.name[10:]),
    )
    before: dict[Role, Path] = {}
    for place in (folder / "bootstrap", *numbered):
        adapters = {r: place / r for r in ROLES if (place / r / "adapter_config.json").is_file()}
        whole = place.name == "bootstrap" or len(adapters) == len(ROLES)
        if adapters and whole:
            before = {**before, **adapters}
            found[place.name] = before
    return found


def kept_after(recipe: Recipe, folder: Path, iteration: int) -> int:
    """The iteration whose adapters stand after ``iteration``; 0 for those before the first.

    An earlier one where the run kept the better checkpoint.
    """
    if not iteration or recipe.iterate.keep == "always":
        return iteration
    found = Marker(folder / f"iteration-{iteration}", "keep").read()
    return int(found["kept"]) if found else iteration


def adapters_after(recipe: Recipe, folder: Path, iteration: int | None) -> Adapters:
    """The adapters that stand after an iteration (0: after the warm-up; None: those of the base).

    An iteration that made the answers worse leaves those of the one before.
    """
    if iteration is None:
        return FRESH
    iteration = kept_after(recipe, folder, iteration)
    if iteration:
        place = folder / f"iteration-{iteration}"
        return Adapters(place / "actor", place / "refiner")
    warm, place = recipe.bootstrap, folder / "bootstrap"
    if warm.start_from:  # the other run may have warmed only one up
        actor, refiner = (place / role if (place / role).exists() else None for role in ROLES)
    else:
        taught = warm.source != "none"
        actor = place / "actor" if taught and (warm.actor or recipe.refiner == "shared") else None
        refiner = place / "refiner" if taught else None
    return Adapters(place / "actor" if warm.pairs else actor, refiner)


def start_folder(recipe: Recipe) -> str:
    """Where the checkpoint lies that iteration 1 starts from: "base" where nothing is before it."""
    warm = recipe.bootstrap
    return "bootstrap" if warm.source != "none" or warm.start_from or warm.pairs else "base"


def standing(recipe: Recipe, folder: Path, iteration: int) -> str:
    """The checkpoint that stands after ``iteration`` (0: after the warm-up), if there is one."""
    number = kept_after(recipe, folder, iteration)
    return f"iteration-{number}" if number else start_folder(recipe)


def last_checkpoint(recipe: Recipe, path: Path, names: list[str]) -> str:
    """The checkpoint that a run ends with: the last one, or the one that was kept for it."""
    last = names[-1]
    if not last.startswith("iteration-"):
        return last
    kept = kept_after(recipe, path, int(last[10:]))
    found = f"iteration-{kept}" if kept else "bootstrap"
    return found if found in names else "base"
