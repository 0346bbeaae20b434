"""TRL's trainers as we need them, and the undoing of what they leave behind.

Everything here answers a habit of TRL 1.16 or transformers 5.23, named where it is answered; when
one of them changes, this is the file to look at.
"""

from __future__ import annotations

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
from trl import DPOTrainer, SFTTrainer

from spar_lite.model.policy import Policy
from spar_lite.train.rows import LengthSampler

SIDES = ("chosen", "rejected")
"""What TRL calls the replies of a pair."""


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


class SparSft(Mixin, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer."""


class SparDpo(Mixin, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer, in whose loss every pair of a step weighs the same.

    TRL's own likelihood term ("sft") is a mean over the micro-batch's tokens, so that long answers
    weigh more; and where a step's last micro-batch is short, its pairs weigh more.

    The reference is the actor as it is when the trainer is built: its log p come with the rows.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, nll_weight: float, **arguments: Any) -> None:
        # Without a reference model TRL would copy the adapter that is trained, to be one.
        stand_in = torch.nn.Identity()
        stand_in.config = arguments["model"].config
        super().__init__(ref_model=stand_in, **arguments)
        self.nll_weight = nll_weight
        self.reference = self.log_p(len(self.train_dataset))
        for side, values in zip(SIDES, zip(*self.reference, strict=True), strict=True):
            self.train_dataset = self.train_dataset.add_column(f"ref_{side}_logps", list(values))
        self.precompute_ref_logps = True  # as an argument it would hash the whole model first

    def log_p(self, count: int) -> list[tuple[float, ...]]:
        """Log p of the chosen and of the rejected reply, for the first ``count`` rows (nats).

        In the batches of the first epoch, so that not even rounding tells actor from reference.
        """
        order = [place for place in self._get_train_sampler() if place < count]
        found: dict[int, tuple[float, ...]] = {}
        for start in range(0, count, self.args.train_batch_size):
            batch = order[start : start + self.args.train_batch_size]
            rows = self.data_collator([self.train_dataset[place] for place in batch])
            sides = self.compute_ref_log_probs(self.model, self._prepare_inputs(rows))
            pairs = zip(*(side.tolist() for side in sides), strict=True)
            found.update(zip(batch, pairs, strict=True))
        return [found[place] for place in range(count)]

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
        return (loss + self.nll_weight * nll) * share


def mean_nll(log_probs: Tensor, mask: Tensor) -> Tensor:
    """-log p, averaged over each row's tokens first and over the rows then.

    Shapes (rows, tokens); ``log_probs`` is 0 where ``mask`` is False.
    """
    return -(log_probs.sum(1) / mask.sum(1)).mean()


@contextmanager
def patched(policy: Policy) -> Iterator[None]:
    """Take back what TRL and accelerate do to the model; no log lines below errors meanwhile.

    They patch ``forward`` and set every dropout rate to 0, all for good: a second run, or the other
    adapter's, would inherit it.

    TRL computes the head on completion tokens alone only where it has Triton; elsewhere on all
    tokens, for fear of recompiling. Nothing is compiled here, so the CPU may skip prompts too:
    measured a third faster with a vocabulary of 49,152. A TRL that has no such switch is left as
    it is, only slower.
    """
    rates = {m: m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)}
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            mock.patch.object(policy.model, "forward", policy.model.forward),
            mock.patch.object(policy.inner, "forward", policy.inner.forward),
            mock.patch.object(trl.trainer.utils, "_use_triton", lambda _: True, create=True),
        ):
            # TRL 1.16 uses a name that transformers 5.23 changed.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            yield
    finally:
        logging.disable(disabled)
        for module, rate in rates.items():
            module.p = rate
        gc.collect()  # a trainer and its optimizer point at each other
