"""What each eval command does: collect answers through the engine, score them, keep both on disk.

Every task resumes by id and is never done twice with the same settings; the model is loaded only if
something is left to ask. Knows targets, screens and the tasks of ``evaluate``; no command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spar_lite.decode import Final, Plan, final_answer, first_answers, greedy_final
from spar_lite.errors import StoreError
from spar_lite.evaluate.ifeval import (
    IfevalPrompt,
    IfevalResult,
    check_prompts,
    ifeval_scores,
    read_responses,
    verifiers,
    verify,
)
from spar_lite.evaluate.judge import JudgeCase, JudgeResult, judge_case, judge_scores, minimal_pairs
from spar_lite.evaluate.obedience import ConstraintsResult, check_final, constraint_scores
from spar_lite.evaluate.refine import (
    Critic,
    RefineResult,
    failed_answers,
    mend_answer,
    refine_scores,
)
from spar_lite.evaluate.scorecard import Scorecard
from spar_lite.instructions import builtin_prompts
from spar_lite.recipe import Decoding
from spar_lite.records import Cost, Prompt, Response, Role, stable_seed
from spar_lite.run import Screen, collect
from spar_lite.sample import sample_answer
from spar_lite.statistics import Interval
from spar_lite.store import StageFile
from spar_lite.target import Target

if TYPE_CHECKING:
    from spar_lite.model import RolloutEngine

T = TypeVar("T")
Card = dict[str, Any]


@dataclass
class Job:
    """One evaluation of one target.

    ``folder``: for the results. ``open`` makes the engine, the target's own if None. ``shared``:
    where the bare base's answers are kept, ``folder`` if None. ``bar``: what the screen calls
    its answers.
    """

    target: Target
    folder: Path
    screen: Screen
    open: Callable[[Target, Screen], RolloutEngine] | None = None
    shared: Path | None = None
    bar: str = "answers"
    _engine: RolloutEngine | None = None
    _start: float = field(default_factory=time.perf_counter)

    @property
    def engine(self) -> RolloutEngine:
        """The engine, opened on first use."""
        if self._engine is None:
            if self.open is not None:
                self._engine = self.open(self.target, self.screen)
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

    def answers(self, name: str, prompts: Sequence[Prompt], plan: Plan) -> list[Final]:
        """Both phases of decoding, each with a file of its own."""
        first: StageFile[Response] = StageFile(self.folder, f"{name}.answers", Response)
        engine = self.engine
        found = collect(
            self.screen, self.bar, first, first_answers(engine, prompts, plan), "answers"
        )
        by_prompt: dict[str, list[Response]] = {}
        for response in found:
            by_prompt.setdefault(response.prompt_id, []).append(response)
        if plan.way == "greedy":
            return [greedy_final(by_prompt[p.id][0]) for p in prompts]
        last: StageFile[Final] = StageFile(self.folder, f"{name}.finals", Final)
        items = [(p.id, partial(final_answer, engine, p, by_prompt[p.id], plan)) for p in prompts]
        return collect(self.screen, plan.way, last, items, "prompts")

    def base_answers(self, count: int, kinds: Sequence[str], tokens: int) -> list[Response]:
        """The bare base's greedy answers: the same for every checkpoint and task of one base."""
        prompts = self.prompts(count, kinds)
        name = f"base_answers{_tag(kinds)}-{count}-{tokens}"
        greedy = Decoding(temperature=0.0, max_new_tokens=tokens)
        file: StageFile[Response] = StageFile(self.shared or self.folder, name, Response)
        items = [
            (f"{p.id}/0", partial(sample_answer, self.engine, p, f"{p.id}/0", greedy, "base"))
            for p in prompts
        ]
        return collect(self.screen, "base answers", file, items, "answers")

    def finish(
        self,
        card: Scorecard[Any],
        task: str,
        settings: dict[str, Any],
        scores: dict[str, Interval],
        costs: Sequence[Cost],
        **more: Any,
    ) -> Card:
        """Write the scorecard, with what it cost."""
        cost = asdict(sum(costs, Cost()))
        seconds = round(time.perf_counter() - self._start, 1)
        return card.finish(
            task, self.target.name, settings, scores, cost=cost, seconds=seconds, **more
        )


def eval_constraints(job: Job, plan: Plan, count: int) -> Card:
    """Held-out builtin prompts, decoded as the plan says, checked by a program: what counts."""
    name = f"constraints-{plan.name}"
    card = Scorecard(job.folder, name, ConstraintsResult)
    prompts = job.prompts(count)
    kinds = list(job.target.recipe.prompts.kinds)
    settings = {"prompts": count, "kinds": kinds, "texts": _texts(prompts)}
    settings |= {**plan_settings(plan), **job.model_settings()}
    card.begin(settings)
    if (done := card.finished()) is not None:
        return done
    finals = job.answers(name, prompts, plan)
    results = [check_final(p, f) for p, f in zip(prompts, finals, strict=True)]
    card.results.finish(results)
    scores = constraint_scores(results, job.seed)
    return job.finish(card, "constraints", settings, scores, [r.cost for r in results])


def eval_ifeval(job: Job, prompts: Sequence[IfevalPrompt], plan: Plan, name: str = "") -> Card:
    """IFEval on this target's answers, decoded as the plan says; ``name`` is of its files."""
    utils = verifiers()
    check_prompts(utils, prompts)
    name = name or f"ifeval-{plan.name}"
    card = Scorecard(job.folder, name, IfevalResult)
    settings = {"prompts": len(prompts), "texts": _texts([p.as_prompt() for p in prompts])}
    settings |= {**plan_settings(plan), **job.model_settings()}
    card.begin(settings)
    if (done := card.finished()) is not None:
        return done
    finals = job.answers(name, [p.as_prompt() for p in prompts], plan)
    results = [
        verify(utils, p, f.text, f.picked, f.finished, f.cost)
        for p, f in zip(prompts, finals, strict=True)
    ]
    card.results.finish(results)
    scores = ifeval_scores(results, job.seed)
    cut = sum(not r.finished for r in results)
    return job.finish(card, "ifeval", settings, scores, [r.cost for r in results], cut_off=cut)


def score_responses(prompts: Sequence[IfevalPrompt], responses: Path, limit: int = 0) -> Card:
    """IFEval on a file of responses; no model is loaded and nothing written."""
    utils = verifiers()
    check_prompts(utils, prompts)
    found = read_responses(responses, prompts, limit)
    prompts = prompts[: limit or None]
    results = [verify(utils, p, found[p.key]) for p in prompts]
    scores = {name: asdict(score) for name, score in ifeval_scores(results).items()}
    settings = {"prompts": len(prompts), "responses": str(responses)}
    return {"task": "ifeval", "target": str(responses), "settings": settings, "scores": scores}


def eval_judge(
    job: Job, cases: Sequence[JudgeCase], source: str, settings: dict[str, Any] | None = None
) -> Card:
    """The refiner as a judge of cases with a known truth."""
    judge = job.target.recipe.judge
    name = f"judge-{source}"
    card = Scorecard(job.folder, name, JudgeResult)
    settings = {
        "source": source,
        "cases": len(cases),
        "texts": stable_seed(*(text for c in cases for text in (c.instruction, c.answer))),
        **_decoding(judge),
        "votes": judge.votes,
        "early_stop": judge.early_stop,
        **(settings or {}),
        **job.model_settings(),
    }
    card.begin(settings)
    if (done := card.finished()) is not None:
        return done
    if not cases:
        raise StoreError("no cases to judge: the data held none, or no answer could be used.")
    items = [(c.id, partial(judge_case, job.engine, c, judge)) for c in cases]
    results = collect(job.screen, "judgements", card.results, items, "cases")
    scores = judge_scores(results, job.seed)
    return job.finish(card, "judge", settings, scores, [r.cost for r in results])


def builtin_cases(job: Job, count: int, kinds: Sequence[str], tokens: int) -> list[JudgeCase]:
    """Minimal pairs made from the bare base's answers to held-out prompts."""
    answers = job.base_answers(count, kinds, tokens)
    return minimal_pairs(job.prompts(count, kinds), answers, job.seed)


def eval_refine(
    job: Job, count: int, kinds: Sequence[str], critic: Critic, tokens: int, reply_tokens: int
) -> Card:
    """The refiner mends the bare base's failed answers and says what it believes."""
    name = f"refine-{critic}{_tag(kinds)}"
    card = Scorecard(job.folder, name, RefineResult)
    judge = job.target.recipe.judge
    prompts = job.prompts(count, kinds)
    settings = {
        "prompts": count,
        "kinds": list(kinds or job.target.recipe.prompts.kinds),
        "texts": _texts(prompts),
        "critic": critic,
        "answer_tokens": tokens,
        "reply_tokens": reply_tokens,
        "judge": _decoding(judge),
        "votes": judge.votes,
        **job.model_settings(),
    }
    card.begin(settings)
    if (done := card.finished()) is not None:
        return done
    failed = failed_answers(prompts, job.base_answers(count, kinds, tokens))
    items = [
        (p.id, partial(mend_answer, job.engine, p, a, judge, critic, reply_tokens))
        for p, a in failed
    ]
    results = collect(job.screen, "refinements", card.results, items, "answers")
    scores = refine_scores(results, job.seed)
    return job.finish(card, "refine", settings, scores, [r.cost for r in results])


def plan_settings(plan: Plan) -> dict[str, Any]:
    """What decides the answers, for the scorecard."""
    found: dict[str, Any] = {"decode": plan.way, "max_new_tokens": plan.sample.max_new_tokens}
    if plan.way == "greedy":
        return found
    found |= {"budget": plan.budget, "votes": plan.judge.votes, "judge": _decoding(plan.judge)}
    if plan.way == "best-of-n":
        return found | {"sample": _decoding(plan.sample)}
    search = plan.search
    return found | {
        "branch": search.branch,
        "keep": search.keep,
        "depth": search.depth,
        "search": _decoding(search),
    }


def _decoding(settings: Decoding) -> dict[str, Any]:
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "reply_tokens": settings.max_new_tokens,
    }


def _texts(prompts: Sequence[Prompt]) -> int:
    """What tells these prompts from others under the same ids."""
    return stable_seed(*(p.text for p in prompts))


def _tag(kinds: Sequence[str]) -> str:
    more = f"-and-{len(kinds) - 3}-more" if len(kinds) > 3 else ""
    return "".join(f"-{kind}" for kind in kinds[:3]) + more
