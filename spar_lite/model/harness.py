"""lm-evaluation-harness on the model in memory, with one role's adapter active.

Needs the extra ``eval``, so nothing imports this file before it is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from lm_eval.api.model import CacheHook
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from spar_lite.engines.base import CLOSE
from spar_lite.errors import EngineError, SparError, did_you_mean
from spar_lite.model.machine import give_back, is_out_of_memory
from spar_lite.model.policy import Policy
from spar_lite.records import Role

BOOTSTRAPS = 1000
"""Draws behind the standard errors that have no formula (BLEU and the like)."""


class HarnessTasks:
    """The harness's tasks, and those of a folder of one's own.

    Args:
        include: a folder with task YAML files, which come before the harness's.

    Raises:
        SparError: the folder is not there.
    """

    def __init__(self, include: Path | None = None) -> None:
        if include is not None and not include.is_dir():
            raise SparError(f"--include wants a folder with task YAML files, found none: {include}")
        self.manager = _manager(include)

    def check(self, names: Sequence[str]) -> None:
        """Make sure that there are such tasks, groups or tags; loads nothing.

        Raises:
            SparError: naming the one that there is not.
        """
        for name in names:
            if name not in self.manager.task_index:
                raise SparError(
                    f'lm-evaluation-harness knows no task "{name}" '
                    f"({len(self.manager.all_tasks)} others; your own: --include FOLDER)."
                    f"{did_you_mean(name, self.manager.all_tasks)}"
                )

    def load(self, name: str, allow_code: bool = False) -> dict[str, Any]:
        """Load a task, a group or a tag with its data; fetched by ``datasets`` where not cached.

        Returns the harness's own dict of tasks and groups.

        Raises:
            SparError: its data cannot be had, it needs a package that is not here, or it runs code
                that the model wrote and ``allow_code`` is not set.
        """
        self.check([name])
        try:
            with _quiet():
                loaded = self.manager.load([name])
        except Exception as error:  # noqa: BLE001 - a task is anyone's code: name it, whatever it did
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise SparError(
                f"task {name} cannot be loaded ({reason}). Without a network its data must be in "
                "the cache of the Hub (HF_HOME): run the same command once with a network."
            ) from None
        unsafe = [name for name, made in loaded["tasks"].items() if getattr(made, "UNSAFE_CODE", 0)]
        if unsafe and not allow_code:
            raise SparError(f"task {unsafe[0]} runs code that the model writes: --allow-code")
        return dict(loaded)


@functools.cache
def _manager(include: Path | None) -> Any:
    """Reading the harness's 14,000 task files takes ten seconds."""
    return TaskManager(include_path=include)


def run_harness(
    policy: Policy,
    role: Role,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
    batch: int = 8,
    chat: bool = True,
    allow_code: bool = False,
    answered: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate ``role`` on loaded tasks; return what ``lm_eval.evaluate`` does.

    Args:
        limit: documents of each task, the first ones; None for all.
        batch: sequences at a time; halved where memory runs out.
        chat: apply the chat template, few-shot examples as turns.
        answered: told how many more requests are answered.

    Raises:
        EngineError: not even one sequence fits into memory, or the harness gave up.
    """
    policy.switch(role)
    policy.slow_down()  # the harness calls the model itself, which fast weights do not expect
    while True:
        try:
            with _quiet():
                _settle(tasks)
                found = evaluate(
                    lm=_Model(policy, batch, answered),
                    task_dict=tasks,
                    limit=limit,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    bootstrap_iters=BOOTSTRAPS,
                    confirm_run_unsafe_code=allow_code,
                )
            return dict(found)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise EngineError("out of memory with one sequence at a time.") from None
        except (AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"lm-evaluation-harness gave up: {reason}") from None
        # The longest come first, so little was done.
        batch //= 2
        give_back(policy.device)


def _settle(tasks: dict[str, Any]) -> None:
    """Seeds and few-shot settings as ``lm_eval.simple_evaluate`` sets them.

    That one would also list every installed package and run git, in the user's face.
    """
    random.seed(DEFAULT_RANDOM_SEED)
    numpy.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


class _Model(HFLM):  # type: ignore[misc]
    """The policy's model as the harness wants it, without bars of its own."""

    def __init__(self, policy: Policy, batch: int, answered: Callable[[int], None]) -> None:
        super().__init__(
            pretrained=policy.inner,
            tokenizer=policy.tokenizer,
            batch_size=batch,
            think_end_token=CLOSE,
            chat_template_args=policy.chat.options,
        )
        self.set_cache_hook(_Counter(answered))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See the harness."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See the harness."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See the harness."""
        return super().generate_until(requests, disable_tqdm=True)


class _Counter(CacheHook):  # type: ignore[misc]
    """The harness reports each answer to its cache; this one only counts."""

    def __init__(self, answered: Callable[[int], None]) -> None:
        super().__init__(None)
        self.answered = answered

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """One request is answered."""
        self.answered(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's advice from the screen, and its prints from standard output."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(before)
