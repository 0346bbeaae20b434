"""TRL's trainers as we need them, and the undoing of what they leave behind.

Everything here answers a habit of TRL 1.16 or transformers 5.23, named where it is answered; when
one of them changes, this is the file to look at.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import trl.trainer.utils
from torch import Tensor
from trl import DPOConfig, DPOTrainer, SFTTrainer

from spar_lite.model.policy import Policy
from spar_lite.train.rows import LengthSampler

REFERENCE = "ref"
"""What TRL calls the frozen copy of the actor."""


class Mixin:
    """What we change in TRL's trainers: ready token ids, batches of like length, no telemetry."""

    args: Any
    train_dataset: Any

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The ids are ready: the prompts are tokenized as for generation, nothing is cut off."""
        return dataset

    def _send_telemetry(self) -> None:
        """TRL reports model and GPU kinds to the Hub on every run; a local run tells nobody."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> LengthSampler:
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthSampler(self.train_dataset["length"], size, self.args.seed)


@dataclasses.dataclass
class DpoArguments(DPOConfig):  # type: ignore[misc]
    """TRL's arguments and the weight of our likelihood term."""

    nll_weight: float = 0.0


class SparDpo(Mixin, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer, in whose loss every pair of a step weighs the same.

    TRL's own likelihood term ("sft") is a mean over the micro-batch's tokens, so that long answers
    weigh more; and where a step's last micro-batch is short, its pairs weigh more.
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], int]:
        """A step's micro-batches, and how many sequences they hold together."""
        batches, _ = super().get_batch_samples(*args)
        return batches, sum(len(batch["input_ids"]) for batch in batches)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's part of the step's loss, likelihood term included."""
        outputs = []

        def forward(**arguments: Any) -> Any:
            outputs.append(model(**arguments))
            return outputs[0]

        loss = super().compute_loss(forward, inputs)
        chosen, mask = (t.chunk(2)[0] for t in (outputs[0].log_probs, outputs[0].label_mask))
        nll = mean_nll(chosen, mask)
        share = len(inputs["input_ids"]) / num_items_in_batch
        # TRL shows a mean over micro-batches; this makes it one over pairs.
        shown = nll.item() * share * self.current_gradient_accumulation_steps
        self._metrics["train"]["nll"].append(shown)
        return (loss + self.args.nll_weight * nll) * share


def mean_nll(log_probs: Tensor, mask: Tensor) -> Tensor:
    """-log p, averaged over each row's tokens first and over the rows then.

    Shapes (rows, tokens); ``log_probs`` is 0 where ``mask`` is False.
    """
    return -(log_probs.sum(1) / mask.sum(1)).mean()


class SparSft(Mixin, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer."""


@contextmanager
def patched(policy: Policy) -> Iterator[None]:
    """Take back what TRL and accelerate do to the model; compute the head where it is needed.

    TRL patches ``forward``, hooks the embedding, sets every dropout rate to 0 and adds a reference
    adapter, all for good: a second run, or the other adapter's, would inherit them.

    TRL computes the head on completion tokens alone only where it has Triton; elsewhere on all
    tokens, for fear of recompiling. Nothing is compiled here, so the CPU may skip prompts too:
    measured a third faster with a vocabulary of 49,152.
    """
    model = policy.model
    forwards = {module: module.__dict__.get("forward") for module in (model, policy.inner)}
    rates = {m: m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    hooks = policy.inner.get_input_embeddings()._forward_hooks
    hooked = dict(hooks)
    try:
        with head_where_needed():
            yield
    finally:
        for module, rate in rates.items():
            module.p = rate
        # With checkpointing TRL and transformers each add the same hook; one handle is lost.
        hooks.clear()
        hooks.update(hooked)
        for module, forward in forwards.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
        if REFERENCE in model.peft_config:
            model.delete_adapter(REFERENCE)
        gc.collect()  # the trainer and its optimizer point at each other


@contextmanager
def head_where_needed() -> Iterator[None]:
    """See ``patched``; a TRL that has no such switch is left as it is, only slower."""
    with mock.patch.object(trl.trainer.utils, "_use_triton", lambda _: True, create=True):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines below errors from transformers and TRL, and no known third-party warning."""
    loggers = [logging.getLogger(name) for name in ("transformers", "trl", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # TRL 1.16 and PEFT 0.21 use names that transformers 5.23 changed.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
