"""lm-evaluation-harness on the model in memory, with one role's adapter active.

Needs the extra ``eval``, so nothing imports this file before it is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from spar_lite.engines.base import CLOSE
from spar_lite.errors import EngineError, SparError, did_you_mean, one_line
from spar_lite.model.machine import give_back, is_out_of_memory
from spar_lite.model.policy import Policy
from spar_lite.records import Role

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its advice is for its own command line


_manager = functools.cache(TaskManager)  # reading its 14,000 task files takes ten seconds


def find_tasks(names: Sequence[str], include: Path | None = None) -> Any:
    """The harness's task manager, which knows these tasks, groups or tags; loads none of them.

    Args:
        include: a folder with task YAML files of one's own, which come before the harness's.

    Raises:
        SparError: the folder is not there, or naming the task that there is not.
    """
    if include is not None and not include.is_dir():
        raise SparError(f"--include wants a folder with task YAML files, found none: {include}")
    manager = _manager(include_path=include)
    for name in names:
        if name not in manager.task_index:
            raise SparError(
                f'lm-evaluation-harness knows no task "{name}" '
                f"({len(manager.all_tasks)} others; your own: --include FOLDER)."
                f"{did_you_mean(name, manager.all_tasks)}"
            )
    return manager


def load_task(manager: Any, name: str, allow_code: bool = False) -> dict[str, Any]:
    """The harness's own dict of a task, a group or a tag; data are fetched where not cached.

    Raises:
        SparError: its data cannot be had, it needs a package that is not here, or it runs code
            that the model wrote and ``allow_code`` is not set.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loaded: dict[str, Any] = manager.load([name])
    except Exception as error:  # noqa: BLE001 - a task is anyone's code: name it, whatever it did
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise SparError(
            f"task {name} cannot be loaded ({reason}). Without a network its data must be in "
            "the cache of the Hub (HF_HOME): run the same command once with a network."
        ) from None
    unsafe = [name for name, made in loaded["tasks"].items() if getattr(made, "UNSAFE_CODE", 0)]
    if unsafe and not allow_code:
        raise SparError(f"task {unsafe[0]} runs code that the model writes: --allow-code")
    return loaded


def run_harness(
    policy: Policy,
    role: Role,
    tasks: dict[str, Any],
    answered: Callable[[int], None] = lambda _: None,
    *,
    limit: int = 0,
    batch: int = 8,
    chat: bool = True,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Evaluate ``role`` on loaded tasks; return what ``lm_eval.evaluate`` does.

    Args:
        answered: told how many more requests are answered.
        limit: documents of each task, the first ones; 0 for all.
        batch: sequences at a time; halved where memory runs out.
        chat: apply the chat template, few-shot examples as turns.

    Raises:
        EngineError: not even one sequence fits into memory, or the harness gave up.
    """
    policy.switch(role)
    policy.slow_down()  # the harness calls the model itself, which merged weights do not expect
    while True:
        _settle(tasks)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found: dict[str, Any] = evaluate(
                    lm=_model(policy, batch, answered),
                    task_dict=tasks,
                    limit=limit or None,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    bootstrap_iters=1000,  # for standard errors without a formula, such as BLEU's
                    confirm_run_unsafe_code=allow_code,
                )
            return found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise EngineError("out of memory with one sequence at a time.") from None
        except (AssertionError, ValueError) as error:
            reason = one_line(error, 300)
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


def _model(policy: Policy, batch: int, answered: Callable[[int], None]) -> Any:
    """The policy's model as the harness wants it, without bars of its own."""
    model = HFLM(
        pretrained=policy.inner,
        tokenizer=policy.tokenizer,
        batch_size=batch,
        think_end_token=CLOSE,
        chat_template_args=policy.chat.options,
    )
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, name, functools.partial(getattr(model, name), disable_tqdm=True))
    model.cache_hook.add_partial = lambda *_: answered(1)  # each answer is reported to its cache
    return model
