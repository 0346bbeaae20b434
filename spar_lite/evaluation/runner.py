"""How every task is run: settings first, results that resume by id, scores last, all on disk.

A ``Task`` says what is its own: its settings, how its results are made, what they are scored by.
``evaluate`` does the rest and never does anything twice; the model is loaded only if something is
left to ask. ``NAME.settings.done.json`` is written first, so that results of other settings are
never mixed in; ``NAME.jsonl`` has one record a prompt; ``NAME.done.json`` is the scorecard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import click

from spar_lite.constraints import kind_named
from spar_lite.data.prompts import builtin_prompts
from spar_lite.engines.base import LazyEngine
from spar_lite.engines.served import RoleServer
from spar_lite.errors import StoreError
from spar_lite.evaluation.inference_search import (
    WAYS,
    Final,
    Plan,
    Way,
    final_answer,
    first_answers,
    greedy_final,
    make_plan,
)
from spar_lite.evaluation.stats import Interval
from spar_lite.evaluation.target import Target
from spar_lite.recipe import Decoding
from spar_lite.records import Cost, Prompt, Response, Role, stable_seed
from spar_lite.run import Screen
from spar_lite.steps import collect
from spar_lite.store import Marker, StageFile, read_lines

if TYPE_CHECKING:
    from spar_lite.model import RolloutEngine

T = TypeVar("T")
Card = dict[str, Any]


class Task(Generic[T]):
    """One evaluation: ``name`` for people, ``file`` of its files, ``kind`` of its results.

    A result has an ``id``, a ``score`` between 0 and 1 where runs are compared by it, and a
    ``cost`` where the engine was asked.
    """

    name: ClassVar[str]
    file: str
    kind: type[T]

    def settings(self, job: Job) -> dict[str, Any]:
        """All that decides the results, but for who answers."""
        raise NotImplementedError

    def prepare(self, job: Job) -> None:
        """Fetch what may be missing, before anything is written."""

    def results(self, job: Job, file: StageFile[T]) -> list[T]:
        """Make the results, finish ``file`` with them; what it has already is not made again."""
        raise NotImplementedError

    def scores(self, results: Sequence[T], seed: int) -> dict[str, Interval]:
        """The results' scores, each with n and an interval."""
        raise NotImplementedError

    def more(self, results: Sequence[T]) -> dict[str, Any]:
        """What else the scorecard says."""
        return {}


@dataclass
class Job:
    """One target being evaluated.

    ``folder``: for the results. ``open`` makes the engine, the target's own if None. ``shared``:
    where the bare base's answers are kept, ``folder`` if None. ``bar``: what the screen calls
    its answers. ``claim`` makes the folder and keeps other processes out; called before anything is
    written there.
    """

    target: Target
    folder: Path
    screen: Screen
    open: Callable[[], Any] | None = None
    shared: Path | None = None
    bar: str = "answers"
    claim: Callable[[], object] = lambda: None
    begin: float = field(default_factory=time.perf_counter)

    @cached_property
    def engine(self) -> RolloutEngine | RoleServer:
        """The engine, opened on first use."""
        engine: RolloutEngine | RoleServer
        engine = self.open() if self.open else self.target.open(self.screen)
        return engine

    @property
    def lazy(self) -> LazyEngine:
        """The engine, opened when it is first asked."""
        return LazyEngine(lambda: self.engine)

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.target.recipe.seed

    def prompts(self, count: int, kinds: Sequence[str] = ()) -> list[Prompt]:
        """Held-out builtin prompts, of these kinds if any are given."""
        settings = self.target.recipe.prompts
        if kinds:
            settings = settings.model_copy(update={"kinds": tuple(kinds)})
        return builtin_prompts(settings, self.seed, "heldout", count)

    @property
    def role(self) -> Role:
        """Who answers: the actor if the target has one."""
        return "actor" if "actor" in self.target.adapters else "base"

    def plan(self, way: Way, budget: int, max_new_tokens: int) -> Plan:
        """How answers are decoded, for this target's recipe and role."""
        if budget < 1:
            raise StoreError(f"--budget wants 1 or more, found {budget}.")
        return make_plan(self.target.recipe, way, budget, self.role, max_new_tokens)

    def answers(self, name: str, prompts: Sequence[Prompt], plan: Plan) -> list[Final]:
        """Both phases of decoding, each with a file of its own."""
        by_prompt: dict[str, list[Response]] = {}
        for response in self._first(self.folder, f"{name}.answers", prompts, plan, self.bar):
            by_prompt.setdefault(response.prompt_id, []).append(response)
        if plan.way == "greedy":
            return [greedy_final(by_prompt[p.id][0]) for p in prompts]
        file, engine = StageFile(self.folder, f"{name}.finals", Final), self.lazy
        items = [(p.id, partial(final_answer, engine, p, by_prompt[p.id], plan)) for p in prompts]
        return collect(self.screen, plan.way, file, items, "prompts")

    def base_answers(self, count: int, kinds: Sequence[str]) -> list[tuple[Prompt, Response]]:
        """Held-out prompts with the bare base's greedy answers: the same for all of one base."""
        self.claim()
        recipe, prompts = self.target.recipe, self.prompts(count, kinds)
        tokens = recipe.evaluate.max_new_tokens
        plan = make_plan(recipe, "greedy", 1, "base", tokens)
        folder, name = self.shared or self.folder, f"base_answers{tag(kinds)}-{count}-{tokens}"
        answers = self._first(folder, name, prompts, plan, "base answers")
        return list(zip(prompts, answers, strict=True))

    def _first(
        self, folder: Path, name: str, prompts: Sequence[Prompt], plan: Plan, bar: str
    ) -> list[Response]:
        asked = first_answers(self.lazy, prompts, plan)
        return collect(self.screen, bar, StageFile(folder, name, Response), asked, "answers")


def evaluate(job: Job, task: Task[Any]) -> Card:
    """Do what is left of a task; return its scorecard.

    Raises:
        StoreError: results are there that were made with other settings, or there are no cases.
    """
    file = StageFile(job.folder, task.file, task.kind)
    done, noted = Marker(job.folder, task.file), Marker(job.folder, f"{task.file}.settings")
    model = job.target.recipe.model
    settings = {
        **task.settings(job),
        "model": model.id,
        "quantization": model.quantization,
        "seed": job.seed,
        "adapters": {role: str(path) for role, path in job.target.adapters.items()},
    }
    if done.read() is None:
        task.prepare(job)
    job.claim()
    before = noted.read()
    if before is None:
        noted.write(settings)
        before = settings
    for key in sorted({*before, *settings}):
        if before.get(key) != settings.get(key):
            raise StoreError(
                f"{file.path} was made with {key}: {before.get(key)!r}, now it is "
                f"{settings.get(key)!r}. Keep both with --out FOLDER, or remove the old files."
            )
    if (finished := done.read()) is not None:
        return finished
    results = task.results(job, file)
    card: Card = {
        "task": task.name,
        "target": job.target.name,
        "settings": settings,
        "scores": {name: asdict(score) for name, score in task.scores(results, job.seed).items()},
        "results_file": file.path.name,
    }
    if hasattr(task.kind, "cost"):
        card["cost"] = asdict(sum((result.cost for result in results), Cost()))
    now = time.perf_counter()
    card["seconds"], job.begin = round(now - job.begin, 1), now
    done.write({**card, **task.more(results)})
    written = done.read()  # as a later call reads it: a figure there is none of is None
    assert written is not None
    return written


def scorecards(folder: Path) -> Iterator[tuple[str, str, Card]]:
    """Finished evaluations under a folder: ("iteration-1", "ifeval-greedy", card), in order."""
    for path in sorted(folder.glob("*/*.done.json")):
        name = path.name.removesuffix(".done.json")
        card = Marker(path.parent, name).read()
        if card is not None and not name.endswith(".settings"):
            yield path.parent.name, name, card


def points(folder: Path, card: Mapping[str, Any]) -> dict[str, float]:
    """Score by prompt id of an evaluation whose files lie in ``folder``."""
    return {line["id"]: line["score"] for line in read_lines(folder / card["results_file"])}


# --- What settings are made of --------------------------------------------------------------------


def plan_settings(plan: Plan) -> dict[str, Any]:
    """What decides decoded answers."""
    found: dict[str, Any] = {"decode": plan.way, "max_new_tokens": plan.sample.max_new_tokens}
    if plan.way == "greedy":
        return found
    judge = decoding_settings(plan.judge)
    found |= {"budget": plan.budget, "votes": plan.judge.votes, "judge": judge}
    if plan.way == "best-of-n":
        return found | {"sample": decoding_settings(plan.sample)}
    found |= plan.search.model_dump(include={"branch", "keep", "depth"})
    return found | {"search": decoding_settings(plan.search)}


def decoding_settings(settings: Decoding) -> dict[str, Any]:
    """How tokens are drawn."""
    drawn = settings.model_dump(include={"temperature", "top_p"})
    return drawn | {"reply_tokens": settings.max_new_tokens}


def texts_digest(prompts: Sequence[Prompt]) -> int:
    """What tells these prompts from others under the same ids."""
    return stable_seed(*(p.text for p in prompts))


def tag(kinds: Sequence[str]) -> str:
    """Kinds as a part of a file's name."""
    more = f"-and-{len(kinds) - 3}-more" if len(kinds) > 3 else ""
    return "".join(f"-{kind}" for kind in kinds[:3]) + more


# --- What commands have in common -----------------------------------------------------------------


def with_decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of tasks that decode answers."""
    way = click.option("--decode", "way", type=click.Choice(WAYS), default="greedy")
    budget = click.option(
        "--budget", default=8, show_default=True, help="Answers or refinements each."
    )
    return way(budget(command))


def kinds_named(text: str, option: str = "--kinds") -> tuple[str, ...]:
    """Constraint kinds written with commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        return tuple(kind_named(name).kind for name in names)
    except ValueError as error:
        raise StoreError(f"{option}: {error}") from None
