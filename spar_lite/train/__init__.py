"""Training, through TRL: DPO for the actor, supervised fine-tuning for either adapter.

Promise: the adapter of the role changes and no other byte does; its weights stay float32 and
finite; at step 0 of DPO both rewards are 0 but for rounding, so its term is ln 2; nothing is
written, printed, or sent but to the tracker that was asked for; afterwards the policy can generate
and train again as if TRL had never been there. A broken promise is a ``TrainingError``, because a
trainer that fails silently costs days; the adapter is then what it was before.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, SFTConfig

from spar_lite.distributed import take_from_first
from spar_lite.errors import TrainingError
from spar_lite.model.loading import not_finite
from spar_lite.model.machine import freeze_libraries, is_out_of_memory
from spar_lite.model.policy import ADAPTERS, Policy
from spar_lite.recipe import Dpo, Training
from spar_lite.records import PreferencePair, Role, TrainingExample
from spar_lite.train.rows import example_row, pair_row
from spar_lite.train.trainers import SIDES, SparDpo, SparSft, patched

freeze_libraries()  # TRL has come with this room

OnStep = Callable[[int, int, int], None]
"""Told after every optimizer step: (step, steps in all, tokens so far)."""

NO_TRACKER: Mapping[str, Any] = {"report_to": "none"}
"""Arguments of a trainer that sends its curve nowhere; see ``tracking``."""

Say = Callable[[str], None]
"""Told what the user should know, in one line."""

STEP0_TOLERANCE = {torch.float32: 2e-4, torch.float16: 8e-3, torch.bfloat16: 5e-2}
"""How far apart actor and reference may be at step 0, by the base's dtype: nats a token, for
rounding that adds up like a random walk. A reward is beta times their sum over a reply, so its
tolerance is this times beta times the root of the reply's length."""


@dataclasses.dataclass(frozen=True)
class TrainingReport:
    """What a training run did.

    ``tokens`` are those read, prompts included, padding not (for DPO: chosen and rejected, the
    reference's pass not counted). ``loss_last`` and ``…_last`` metrics are means over the last
    tenth of the steps, ``…_first`` come from the first step alone.
    """

    examples: int
    dropped: int
    steps: int
    tokens: int
    seconds: float
    loss_first: float
    loss_last: float
    metrics: dict[str, float]


def train_actor(
    policy: Policy,
    pairs: Sequence[PreferencePair],
    settings: Dpo,
    seed: int,
    on_step: OnStep = lambda *_: None,
    passed: Sequence[TrainingExample] = (),
    say: Say = lambda _: None,
    tracker: Mapping[str, Any] = NO_TRACKER,
) -> TrainingReport:
    """Train the actor on preference pairs; the reference is the actor as it is now.

    loss = -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))
           + nll_weight * mean token NLL of chosen    (SPaR, section 3.3; arXiv 2305.18290, eq. 7)

    as a mean over pairs: long answers weigh no more, and how many go through the model at a time
    changes nothing. The first term is another where ``settings.loss`` says so. The metrics'
    ``logp_…`` are over all pairs.

    ``passed``: answers that are good as they are. Each is preferred to itself: with most losses
    that has no gradient, so that they are learnt by the second term alone. Where rejected answers
    have no end token, it is preferred to itself without its end. They count as examples, and in
    TRL's own metrics.

    Raises:
        TrainingError: no pair fits ``max_length``, the template thinks, a loss or gradient is not
            finite, or a promise of this module is broken.
    """
    same = [PreferencePair(x.id, x.id, x.prompt, x.completion, x.completion) for x in passed]
    rows = [pair_row(policy, pair, settings.rejected_end) for pair in (*pairs, *same)]
    fits = [row["length"] <= settings.max_length for row in rows]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    preferred = sum(fits[: len(pairs)])
    length = max((len(row[f"{side}_ids"]) for row in kept for side in SIDES), default=0)
    step0 = partial(_check_step0, dtype=policy.inner.dtype, beta=settings.beta, length=length)
    record = _Record(policy, on_step, settings.lr, step0)
    with _guarded(policy, "actor", settings, preferred, len(pairs), seed) as shared:
        config = DPOConfig(
            **shared,
            **tracker,
            loss_type=[settings.loss],
            label_smoothing=settings.label_smoothing,
            beta=settings.beta,
        )
        kind = partial(SparDpo, nll_weight=settings.nll_weight, say=say)
        trainer, report = _run(policy, "actor", settings, kind, config, kept, len(rows), record)
        # The trainer's own logs know each batch alone, and before its own update.
        before, after = trainer.reference[:preferred], trainer.log_p(preferred)
        del trainer  # so that its optimizer's memory goes with it
    first = record.logs[0]
    extra = {
        **_log_p(kept, before, "before"),
        **_log_p(kept, after, "after"),
        "reward_chosen_step0": first["rewards/chosen"],
        "reward_rejected_step0": first["rewards/rejected"],
    }
    if settings.loss == "sigmoid":
        # -log sigmoid of the mean margin; exact where all margins are equal, as they are at step 0.
        # Found from the margin, because TRL logs the sum of all terms (a router's loss is one).
        extra["dpo_term_step0"] = math.log1p(math.exp(-first["rewards/margins"]))
    return dataclasses.replace(report, metrics=report.metrics | extra)


def train_on_examples(
    policy: Policy,
    role: Role,
    examples: Sequence[TrainingExample],
    settings: Training,
    seed: int,
    on_step: OnStep = lambda *_: None,
    say: Say = lambda _: None,
    tracker: Mapping[str, Any] = NO_TRACKER,
) -> TrainingReport:
    """Train one adapter on completions; prompts carry no loss (mean NLL per completion token).

    Raises:
        TrainingError: no example fits ``max_length``, the template thinks, a loss or gradient is
            not finite, or a promise of this module is broken.
    """
    rows = [example_row(policy, example) for example in examples]
    kept = [row for row in rows if row["length"] <= settings.max_length]
    record = _Record(policy, on_step, settings.lr)
    with _guarded(policy, role, settings, len(kept), len(rows), seed) as shared:
        config = SFTConfig(**shared, **tracker)
        return _run(
            policy, role, settings, partial(SparSft, say=say), config, kept, len(rows), record
        )[1]


def _log_p(
    rows: Sequence[dict[str, Any]], log_p: Sequence[tuple[float, ...]], when: str
) -> dict[str, float]:
    """Mean log p of the first rows' replies, in nats: of a whole one, and of its tokens' mean."""
    found = {}
    for side, sums in zip(SIDES, zip(*log_p, strict=True), strict=True):
        name = f"logp_{side}_{when}"
        found[name] = statistics.fmean(sums)
        each = [total / len(row[f"{side}_ids"]) for total, row in zip(sums, rows, strict=False)]
        found[f"{name}_per_token"] = statistics.fmean(each)
    return found


@contextmanager
def _guarded(
    policy: Policy, role: Role, settings: Training, kept: int, given: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Refuse what cannot be trained, check what changed; a failure restores the adapter.

    Inside, TRL may do as it likes; what is given are the arguments of the trainer that DPO and SFT
    share.
    """
    if role not in ADAPTERS:
        raise TrainingError(f"wanted actor or refiner to train, found {role}.")
    if not kept:
        found = f"all {given} were longer" if given else "there was none at all"
        raise TrainingError(
            f"wanted examples of at most {settings.max_length} tokens for the {role}, {found}. "
            "Raise max_length, or make more data."
        )
    if thinks := policy.chat.thoughts_when_training:
        raise TrainingError(thinks)
    prints = {name: policy.fingerprint(name) for name in ADAPTERS}
    before = {n: tensor.to("cpu", copy=True) for n, tensor in policy.weights(role).items()}
    cuda, dtype = policy.device.type == "cuda", policy.inner.dtype
    shared = {
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show a NaN as the last good loss, or 0
        "use_cpu": not cuda,
        "bf16": cuda and dtype == torch.bfloat16,
        "fp16": cuda and dtype == torch.float16,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
        "max_length": None,
        "seed": seed % 2**32,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "per_device_train_batch_size": settings.batch_size,
        "activation_checkpointing": False,  # see ``_run``
    }
    try:
        with tempfile.TemporaryDirectory() as scratch, patched(policy):
            yield {"output_dir": scratch, **shared}
        if bad := not_finite(policy.weights(role).items()):
            raise _diverged(role, f"{bad} of its adapter is NaN or infinite")
        for name, print_ in prints.items():
            changed = policy.fingerprint(name) != print_
            if changed != (name == role):
                wanted = "change" if name == role else "stay as it was"
                raise TrainingError(
                    f"training the {role}: wanted the {name}'s adapter to {wanted}, and it "
                    f"{'changed' if changed else 'did not'}."
                )
    except BaseException:
        policy.put(ADAPTERS[role], before)
        raise


def _run(
    policy: Policy,
    role: Role,
    settings: Training,
    kind: Callable[..., Any],
    config: Any,
    rows: list[dict[str, Any]],
    given: int,
    record: _Record,
) -> tuple[Any, TrainingReport]:
    """Build a trainer and train; the trainer, and what the record saw of its steps."""
    steps = settings.epochs * math.ceil(len(rows) / settings.batch_size)
    # A warm-up's first step has learning rate 0: rounding up would lose a one-step run.
    config.warmup_steps = min(int(settings.warmup_ratio * steps), steps - 1)
    # Two visible GPUs would mean nn.DataParallel, which a model on one device cannot use.
    config._n_gpu = min(1, config.n_gpu)
    # Built while nothing is trainable: on a quantized base TRL casts trainable weights to bf16, in
    # which most updates at LoRA's learning rates vanish.
    policy.switch(role)
    policy.slow_down()
    take_from_first(policy.weights(role).values())
    trainer = kind(
        pass_tokens=settings.pass_tokens,
        model=policy.model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        callbacks=[record],
    )
    trainer.remove_callback(PrinterCallback)
    with policy.training(role):
        if settings.gradient_checkpointing:  # as an argument TRL and transformers each add a hook
            policy.inner.activation_checkpointing_enable()
        started = time.perf_counter()
        try:
            trainer.train()
        except (RuntimeError, MemoryError) as error:  # outside the passes: the optimizer's moments
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory on {policy.device} while the {role} learnt. Lower pass_tokens of "
                "this training, or free memory on the device (spar-lite plan RECIPE)."
            ) from None
        seconds = time.perf_counter() - started
    logs = record.logs
    late = logs[-max(1, len(logs) // 10) :]
    last = {name: sum(log[name] for log in late) / len(late) for name in logs[0]}
    names = [n for n in logs[0] if "/" in n or n in ("nll", "mean_token_accuracy")]
    return trainer, TrainingReport(
        examples=len(rows),
        dropped=given - len(rows),
        steps=len(logs),
        tokens=int(logs[-1]["num_tokens"]),
        seconds=seconds,
        loss_first=logs[0]["loss"],
        loss_last=last["loss"],
        metrics={f"{name}_first": logs[0][name] for name in names}
        | {f"{name}_last": last[name] for name in names},
    )


@dataclasses.dataclass(eq=False)
class _Record(TrainerCallback):  # type: ignore[misc]
    """Keeps every step's logs, passes progress on, refuses NaN, checks the first step."""

    policy: Policy
    on_step: OnStep
    lr: float
    check: Callable[[dict[str, float]], None] = lambda _: None
    logs: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer after each step, and once at the end with sums."""
        if "loss" not in logs:
            return
        self.logs.append(dict(logs))
        for name, value in logs.items():
            if name == "grad_norm" and self.policy.inner.dtype == torch.float16:
                continue  # in fp16 gradients are scaled: a step that overflows is left out
            if isinstance(value, int | float) and not math.isfinite(value):
                where = f"step {state.global_step} of {state.max_steps}, peak lr {self.lr:g}"
                raise _diverged("adapter", f"{name} is {value} at {where}")
        if len(self.logs) == 1:
            self.check(self.logs[0])
        self.on_step(state.global_step, state.max_steps, int(logs["num_tokens"]))
        self.policy.tune_threads()


def _diverged(what: str, found: str) -> TrainingError:
    return TrainingError(
        f"training the {what} has gone wrong: {found}. The adapter is as it was before. Look at "
        "the learning rate first (a tenth of it), then at the longest examples, then at the model "
        "(spar-lite doctor RECIPE)."
    )


def _check_step0(logs: dict[str, float], dtype: torch.dtype, beta: float, length: int) -> None:
    """Before the first update actor and reference are one, so both rewards are 0.

    ``length``: of the longest reply; see ``STEP0_TOLERANCE``.
    """
    per_token = STEP0_TOLERANCE.get(dtype, STEP0_TOLERANCE[torch.bfloat16])
    limit = per_token * beta * math.sqrt(length)
    chosen, rejected = logs["rewards/chosen"], logs["rewards/rejected"]
    if not (abs(chosen) <= limit and abs(rejected) <= limit):  # NaN is no 0
        raise TrainingError(
            f"wanted rewards of 0 at step 0, found {chosen:.4g} (chosen) and {rejected:.4g} "
            "(rejected): the reference is not the actor that training started from."
        )
