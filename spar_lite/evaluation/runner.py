"""How every task is run: settings first, results that resume by id, scores last, all on disk.

A ``Task`` says what is its own: its settings, how its results are made, what they are scored by.
``evaluate`` does the rest and never does anything twice; the model is loaded only if something is
left to ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import click

from spar_lite.data.prompts import builtin_prompts
from spar_lite.engines.base import LazyEngine
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
from spar_lite.evaluation.scorecard import Scorecard
from spar_lite.evaluation.stats import Interval
from spar_lite.evaluation.target import Target
from spar_lite.recipe import Decoding
from spar_lite.records import Cost, Prompt, Response, Role, stable_seed
from spar_lite.run import Screen
from spar_lite.sample import sample_answer
from spar_lite.steps import collect
from spar_lite.store import StageFile

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
    _engine: RolloutEngine | None = None

    @property
    def engine(self) -> RolloutEngine:
        """The engine, opened on first use."""
        if self._engine is None:
            if self.open is not None:
                self._engine = self.open()
            else:
                self._engine = self.target.open(self.screen.say)
                self._engine.on_tokens = self.screen.tokens
        return self._engine

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.target.recipe.seed

    @property
    def role(self) -> Role:
        """Who answers: the actor if the target has one."""
        return "actor" if "actor" in self.target.adapters else "base"

    def prompts(self, count: int, kinds: Sequence[str] = ()) -> list[Prompt]:
        """Held-out builtin prompts, of these kinds if any are given."""
        settings = self.target.recipe.prompts
        if kinds:
            settings = settings.model_copy(update={"kinds": tuple(kinds)})
        return builtin_prompts(settings, self.seed, "heldout", count)

    def model_settings(self) -> dict[str, Any]:
        """What decides who answers, for the scorecard."""
        model = self.target.recipe.model
        return {
            "model": model.id,
            "quantization": model.quantization,
            "seed": self.seed,
            "adapters": {role: str(path) for role, path in self.target.adapters.items()},
        }

    def plan(self, way: Way, budget: int, max_new_tokens: int) -> Plan:
        """How answers are decoded, for this target's recipe and role."""
        if budget < 1:
            raise StoreError(f"--budget wants 1 or more, found {budget}.")
        recipe = self.target.recipe
        return make_plan(recipe, way, budget, self.role, max_new_tokens)

    def answers(self, name: str, prompts: Sequence[Prompt], plan: Plan) -> list[Final]:
        """Both phases of decoding, each with a file of its own."""
        engine = LazyEngine(lambda: self.engine)
        first: StageFile[Response] = StageFile(self.folder, f"{name}.answers", Response)
        asked = first_answers(engine, prompts, plan)
        found = collect(self.screen, self.bar, first, asked, "answers")
        by_prompt: dict[str, list[Response]] = {}
        for response in found:
            by_prompt.setdefault(response.prompt_id, []).append(response)
        if plan.way == "greedy":
            return [greedy_final(by_prompt[p.id][0]) for p in prompts]
        last: StageFile[Final] = StageFile(self.folder, f"{name}.finals", Final)
        items = [(p.id, partial(final_answer, engine, p, by_prompt[p.id], plan)) for p in prompts]
        return collect(self.screen, plan.way, last, items, "prompts")

    def base_answers(self, count: int, kinds: Sequence[str]) -> list[Response]:
        """The bare base's greedy answers: the same for every checkpoint and task of one base."""
        self.claim()
        prompts, tokens = self.prompts(count, kinds), self.target.recipe.evaluate.max_new_tokens
        name = f"base_answers{tag(kinds)}-{count}-{tokens}"
        greedy = Decoding(temperature=0.0, max_new_tokens=tokens)
        file: StageFile[Response] = StageFile(self.shared or self.folder, name, Response)
        engine = LazyEngine(lambda: self.engine)
        items = [
            (f"{p.id}/0", partial(sample_answer, engine, p, f"{p.id}/0", greedy, "base"))
            for p in prompts
        ]
        return collect(self.screen, "base answers", file, items, "answers")


def evaluate(job: Job, task: Task[Any]) -> Card:
    """Do what is left of a task; return its scorecard.

    Raises:
        StoreError: results are there that were made with other settings, or there are no cases.
    """
    card: Scorecard[Any] = Scorecard(job.folder, task.file, task.kind)
    settings = {**task.settings(job), **job.model_settings()}
    if card.finished() is None:
        task.prepare(job)
    job.claim()
    card.begin(settings)
    if (done := card.finished()) is not None:
        return done
    results = task.results(job, card.results)
    scores = task.scores(results, job.seed)
    more: dict[str, Any] = {}
    if hasattr(task.kind, "cost"):
        more["cost"] = asdict(sum((result.cost for result in results), Cost()))
    more["seconds"], job.begin = round(time.perf_counter() - job.begin, 1), time.perf_counter()
    return card.finish(task.name, job.target.name, settings, scores, **more, **task.more(results))


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
    search = plan.search
    return found | {
        "branch": search.branch,
        "keep": search.keep,
        "depth": search.depth,
        "search": decoding_settings(search),
    }


def decoding_settings(settings: Decoding) -> dict[str, Any]:
    """How tokens are drawn."""
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "reply_tokens": settings.max_new_tokens,
    }


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
    options = (
        click.option("--decode", "way", type=click.Choice(WAYS), default="greedy"),
        click.option("--budget", default=8, show_default=True, help="Answers or refinements each."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def kinds_named(text: str, option: str = "--kinds") -> tuple[str, ...]:
    """Constraint kinds written with commas."""
    from spar_lite.constraints import kind_named

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        return tuple(kind_named(name).kind for name in names)
    except ValueError as error:
        raise StoreError(f"{option}: {error}") from None
