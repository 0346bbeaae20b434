"""Training, through TRL: DPO for the actor, supervised fine-tuning for either adapter.

Promise: the adapter of the role changes and no other byte does; its weights stay float32 and
finite; at step 0 of DPO both rewards are 0, so its term is ln 2; nothing is written, sent or
printed; afterwards the policy can generate and train again as if TRL had never been there. A broken
promise is a ``TrainingError``, because a trainer that fails silently costs days; the adapter is
then what it was before.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from spar_lite.errors import TrainingError
from spar_lite.model.loading import not_finite
from spar_lite.model.machine import freeze_libraries
from spar_lite.model.policy import ADAPTERS, Policy
from spar_lite.recipe import Dpo, Training
from spar_lite.records import PreferencePair, Role, TrainingExample
from spar_lite.train.logps import pair_log_p
from spar_lite.train.rows import example_row, pair_row
from spar_lite.train.trainers import (
    REFERENCE,
    DpoArguments,
    SparDpo,
    SparSft,
    patched,
    quiet,
)

freeze_libraries()  # TRL has come with this room

OnStep = Callable[[int, int, int], None]
"""Told after every optimizer step: (step, steps in all, tokens so far)."""

STEP0_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2}
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
) -> TrainingReport:
    """Train the actor on preference pairs; the reference is the actor as it is now.

    loss = -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))
           + nll_weight * mean token NLL of chosen    (SPaR, section 3.3; arXiv 2305.18290, eq. 7)

    as a mean over pairs: long answers weigh no more, and micro-batches change nothing. The first
    term is another where ``settings.loss`` says so. The metrics' ``logp_…`` are over all pairs.

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
    kept = [row for row in rows if row["length"] <= settings.max_length]
    preferred = [row for row in rows[: len(pairs)] if row["length"] <= settings.max_length]
    with _run(policy, "actor", settings, len(kept), len(rows), seed) as run:
        config = DpoArguments(
            **run.arguments,
            max_length=None,
            loss_type=[settings.loss],
            label_smoothing=settings.label_smoothing if settings.loss == "robust" else 0.0,
            beta=settings.beta,
            nll_weight=settings.nll_weight,
        )
        length = max(max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in kept)
        limit = step0_limit(policy.inner.dtype, settings.beta, length)
        record = _Record(on_step, settings.lr, check=lambda logs: _check_step0(logs, limit))
        # The trainer's own logs know each batch alone, and before its own update.
        size = 2 * settings.micro_batch  # sequences, as in a forward pass of the training
        before = pair_log_p(policy, preferred, size, "before")
        run.train(SparDpo, config, kept, record)
        after = pair_log_p(policy, preferred, size, "after")
    first = record.logs[0]
    extra = {
        **before,
        **after,
        "reward_chosen_step0": first["rewards/chosen"],
        "reward_rejected_step0": first["rewards/rejected"],
    }
    if settings.loss == "sigmoid":
        extra["dpo_term_step0"] = _dpo_term(first)
    return run.report(record, extra)


def train_on_examples(
    policy: Policy,
    role: Role,
    examples: Sequence[TrainingExample],
    settings: Training,
    seed: int,
    on_step: OnStep = lambda *_: None,
) -> TrainingReport:
    """Train one adapter on completions; prompts carry no loss (mean NLL per completion token).

    Raises:
        TrainingError: no example fits ``max_length``, the template thinks, a loss or gradient is
            not finite, or a promise of this module is broken.
    """
    rows = [example_row(policy, example) for example in examples]
    kept = [row for row in rows if row["length"] <= settings.max_length]
    with _run(policy, role, settings, len(kept), len(rows), seed) as run:
        config = SFTConfig(**run.arguments, max_length=None)
        record = _Record(on_step, settings.lr)
        run.train(SparSft, config, kept, record)
    return run.report(record, {})


# --- One run of a trainer -------------------------------------------------------------------------


@dataclasses.dataclass
class _Run:
    """One trainer's life, from its arguments to its report."""

    policy: Policy
    role: Role
    before: dict[str, Tensor]
    arguments: dict[str, Any]
    examples: int
    dropped: int
    seconds: float = 0.0

    def train(self, kind: Any, config: Any, rows: list[dict[str, Any]], record: _Record) -> None:
        """Build the trainer, put the float32 weights back, train."""
        # Two visible GPUs would mean nn.DataParallel, which a model on one device cannot use.
        config._n_gpu = min(1, config.n_gpu)
        trainer = kind(
            model=self.policy.model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=self.policy.tokenizer,
            callbacks=[record],
        )
        trainer.remove_callback(PrinterCallback)
        self._keep_float32()
        self._check_trainable()
        started = time.perf_counter()
        trainer.train()
        self.seconds = time.perf_counter() - started

    def report(self, record: _Record, extra: dict[str, float]) -> TrainingReport:
        """Sum up what the record saw."""
        return TrainingReport(
            examples=self.examples,
            dropped=self.dropped,
            steps=len(record.logs),
            tokens=int(record.logs[-1]["num_tokens"]),
            seconds=self.seconds,
            loss_first=record.logs[0]["loss"],
            loss_last=record.late("loss"),
            metrics={**record.metrics(), **extra},
        )

    def _keep_float32(self) -> None:
        """Undo TRL's cast of trainable weights to bf16 on a quantized base.

        With AdamW at LoRA's learning rates most updates are below bf16's resolution and vanish;
        and against a float32 reference a rounded actor starts with rewards that are not 0.
        """
        for adapter in (ADAPTERS[self.role], REFERENCE):
            self.policy.put(adapter, self.before)

    def _check_trainable(self) -> None:
        mark = f".{ADAPTERS[self.role]}."
        names = [n for n, p in self.policy.model.named_parameters() if p.requires_grad]
        strangers = [name for name in names if mark not in name]
        if strangers or not names:
            found = (
                f"found {strangers[0]} trainable too" if strangers else "found nothing trainable"
            )
            raise TrainingError(f"wanted the {self.role}'s adapter alone to be trainable, {found}.")


@contextmanager
def _run(
    policy: Policy, role: Role, settings: Training, examples: int, given: int, seed: int
) -> Iterator[_Run]:
    """Open the adapter for training; close it again and check what changed."""
    if role not in ADAPTERS:
        raise TrainingError(f"wanted actor or refiner to train, found {role}.")
    if not examples:
        found = f"all {given} were longer" if given else "there was none at all"
        raise TrainingError(
            f"wanted examples of at most {settings.max_length} tokens for the {role}, {found}. "
            "Raise max_length, or make more data."
        )
    if thinks := policy.chat.thoughts_when_training:
        raise TrainingError(thinks)
    prints = {name: policy.fingerprint(name) for name in ADAPTERS}
    before = {name: tensor.clone() for name, tensor in policy.weights(role).items()}
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            quiet(),
            policy.training(role),
            patched(policy),
        ):
            arguments = _arguments(settings, policy.device, examples, seed, scratch)
            yield _Run(policy, role, before, arguments, examples, given - examples)
        _check_changes(policy, role, prints)
    except BaseException:
        policy.put(ADAPTERS[role], before)
        raise


def _check_changes(policy: Policy, role: Role, prints: dict[Role, str]) -> None:
    """The trained adapter is finite and changed, and the other did not."""
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


def _arguments(
    settings: Training, device: torch.device, examples: int, seed: int, scratch: str
) -> dict[str, Any]:
    """The trainer arguments that DPO and SFT share."""
    cuda = device.type == "cuda"
    steps = settings.epochs * math.ceil(examples / settings.batch_size)
    return {
        "output_dir": scratch,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "use_cpu": not cuda,
        "bf16": cuda,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
        "seed": seed % 2**32,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "logging_nan_inf_filter": False,  # it would show a NaN as the last good loss, or 0
        # A warm-up's first step has learning rate 0: rounding up would lose a one-step run.
        "warmup_steps": min(int(settings.warmup_ratio * steps), steps - 1),
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.batch_size // settings.micro_batch,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def _diverged(what: str, found: str) -> TrainingError:
    return TrainingError(
        f"training the {what} has gone wrong: {found}. The adapter is as it was before. Look at "
        "the learning rate first (a tenth of it), then at the longest examples, then at the model "
        "(spar-lite doctor RECIPE)."
    )


class _Record(TrainerCallback):  # type: ignore[misc]
    """Keeps every step's logs, passes progress on, refuses NaN, checks the first step."""

    def __init__(
        self,
        on_step: OnStep,
        lr: float,
        check: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> None:
        self.logs: list[dict[str, float]] = []
        self._on_step = on_step
        self._lr = lr
        self._check = check

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer after each step, and once at the end with sums."""
        if "loss" not in logs:
            return
        self.logs.append(dict(logs))
        for name, value in logs.items():
            if isinstance(value, int | float) and not math.isfinite(value):
                where = f"step {state.global_step} of {state.max_steps}, peak lr {self._lr:g}"
                raise _diverged("adapter", f"{name} is {value} at {where}")
        if len(self.logs) == 1:
            self._check(self.logs[0])
        self._on_step(state.global_step, state.max_steps, int(logs["num_tokens"]))

    def late(self, key: str) -> float:
        """Mean over the last tenth of the steps."""
        last = self.logs[-max(1, len(self.logs) // 10) :]
        return sum(log[key] for log in last) / len(last)

    def metrics(self) -> dict[str, float]:
        """The trainer's own metrics, at the start and at the end."""
        names = [n for n in self.logs[0] if "/" in n or n in ("nll", "mean_token_accuracy")]
        first = {f"{name}_first": self.logs[0][name] for name in names}
        return first | {f"{name}_last": self.late(name) for name in names}


# --- The step-0 check -----------------------------------------------------------------------------


def _dpo_term(logs: dict[str, float]) -> float:
    """-log sigmoid of the mean margin; exact where all margins are equal, as they are at step 0.

    Found from the margin, because TRL logs the sum of all terms (a router's loss is one).
    """
    return math.log1p(math.exp(-logs["rewards/margins"]))


def step0_limit(dtype: torch.dtype, beta: float, length: int) -> float:
    """How far from 0 a reward over ``length`` tokens may be at step 0; see ``STEP0_TOLERANCE``."""
    per_token = STEP0_TOLERANCE.get(dtype, STEP0_TOLERANCE[torch.bfloat16])
    return per_token * beta * math.sqrt(length)


def _check_step0(logs: dict[str, float], limit: float) -> None:
    """Before the first update actor and reference are one, so both rewards are 0."""
    chosen, rejected = logs["rewards/chosen"], logs["rewards/rejected"]
    if not (abs(chosen) <= limit and abs(rejected) <= limit):  # NaN is no 0
        raise TrainingError(
            f"wanted rewards of 0 at step 0, found {chosen:.4g} (chosen) and {rejected:.4g} "
            "(rejected): the reference is not the actor that training started from."
        )
