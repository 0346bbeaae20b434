"""TRL's trainers as we need them, and the undoing of what they leave behind.

Everything here answers a habit of TRL 1.16 or transformers 5.23, named where it is answered; when
one of them changes, this is the file to look at.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import trl.trainer.utils
from torch import Tensor
from transformers.integrations import get_reporting_integration_callbacks
from trl import DPOTrainer, SFTTrainer

from spar_lite.distributed import add_up, processes, share
from spar_lite.errors import TrainingError, one_line
from spar_lite.model.machine import give_back, is_out_of_memory
from spar_lite.model.policy import Policy
from spar_lite.train.rows import LengthSampler

SIDES = ("chosen", "rejected")
"""What TRL calls the replies of a pair."""


Batch = Mapping[str, Tensor]


class Mixin:
    """What we change in TRL's trainers: ready token ids, batches of like length, no telemetry.

    A batch is what one optimizer step learns. It goes through the model in parts of at most
    ``pass_tokens`` padded tokens, whose gradients add up to the batch's. Where memory runs out, the
    step is begun anew with parts of half the size. Several processes each learn a share of it.
    """

    args: Any
    callback_handler: Any
    train_dataset: Any
    _metrics: Any
    _total_train_tokens: int
    sides = 1
    """Rows of a batch that belong to one example."""
    current_gradient_accumulation_steps: int

    def __init__(self, pass_tokens: int, say: Callable[[str], None], **arguments: Any) -> None:
        self.pass_tokens, self.say = pass_tokens, say
        super().__init__(**arguments)
        trackers = tuple(get_reporting_integration_callbacks(self.args.report_to))
        self.callback_handler.callbacks = [
            Tracked(callback, say) if isinstance(callback, trackers) else callback
            for callback in self.callback_handler.callbacks
        ]

    def split(self, batch: Batch) -> list[Batch]:
        """A batch's parts, of one example at least, without what is padding in all of a part."""
        # 1. Which examples go together: as many as fit when padded to their longest.
        count = len(batch["input_ids"]) // self.sides
        lengths = batch["attention_mask"].sum(1).view(self.sides, count).amax(0).tolist()
        groups: list[list[int]] = []
        for place, length in enumerate(lengths):
            longest = max([length, *(lengths[n] for n in groups[-1])]) if groups else length
            if groups and self.sides * longest * (len(groups[-1]) + 1) <= self.pass_tokens:
                groups[-1].append(place)
            else:
                groups.append([place])
        # 2. Their rows, and the columns that any of them uses.
        found: list[Batch] = []
        for group in groups:
            part = take(batch, count, group)
            used = part["attention_mask"].any(0)
            found.append({n: t[:, used] if t.dim() == 2 else t for n, t in part.items()})
        return found

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """One batch's loss, its gradients added up over its parts, and over all processes."""
        if processes() == 1:
            return self.learn(model, inputs, num_items_in_batch)
        count, before = len(inputs["input_ids"]) // self.sides, self._total_train_tokens
        places = list(share(count))
        # Who has no share of a small batch learns an example that does not count.
        own, busy = take(inputs, count, places or [0]), min(processes(), count)
        loss = self.learn(model, own, num_items_in_batch, busy)
        return self.meet(model, loss, before, busy, counts=bool(places))

    def meet(self, model: Any, loss: Tensor, before: int, busy: int, counts: bool) -> Tensor:
        """A step's loss, gradients and metrics, from those of the shares of ``busy`` processes.

        ``before``: tokens before this step. ``counts``: whether this process had a share.
        """
        # 1. The figures; the metrics are means over shares.
        metrics = self._metrics["train"]
        names = sorted(metrics.keys() - {"num_tokens"})
        means = [sum(metrics[name]) / len(metrics[name]) / busy for name in names]
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        has_gradient = [float(weight.grad is not None) for weight in weights]
        figures = [loss.item(), self._total_train_tokens - before, *means, *has_gradient]
        total = torch.tensor(figures, dtype=torch.float64, device=self.args.device)
        if not counts:
            total.zero_()
        add_up(total)
        found, read, *means = total[: len(means) + 2].tolist()
        self._total_train_tokens = before + int(read)
        metrics |= {name: [mean] for name, mean in zip(names, means, strict=True)}
        metrics["num_tokens"] = [self._total_train_tokens]
        # 2. The gradients of weights that any process has used, such as an expert's.
        for weight, users in zip(weights, total[-len(weights) :].tolist(), strict=True):
            if weight.grad is None or not counts:
                weight.grad = torch.zeros_like(weight) if users else None
        add_up(*(weight.grad for weight in weights if weight.grad is not None))
        return torch.tensor(found, dtype=loss.dtype, device=loss.device)

    def learn(self, model: Any, inputs: Batch, total: Any, busy: int = 1) -> Tensor:
        """The loss of this process's share of a batch, its gradients added up over its parts.

        ``total``: tokens, or sequences, of the whole batch. ``busy``: processes that have a share.
        """
        while True:
            metrics = self._metrics["train"]
            shown, tokens = {n: len(v) for n, v in metrics.items()}, self._total_train_tokens
            try:
                parts = self.split(inputs)
                # By it TRL's means over a step's parts are made: of a router's loss, for one.
                self.current_gradient_accumulation_steps = len(parts) * busy
                loss = torch.zeros((), device=self.args.device)
                for part in parts:
                    loss += super().training_step(model, dict(part), total)  # type: ignore[misc]
                return loss
            except (RuntimeError, MemoryError) as error:
                self.halve(error, inputs)
            # Only here is the memory free that the error's traceback held.
            model.zero_grad(set_to_none=True)
            give_back(self.args.device)
            for name, values in metrics.items():
                del values[shown.get(name, 0) :]
            self._total_train_tokens = tokens

    def halve(self, error: BaseException, batch: Batch) -> None:
        """Halve what goes through the model at a time, if memory was what failed.

        Raises:
            TrainingError: there is nothing to halve, one example alone is too much.
        """
        if not is_out_of_memory(error):
            raise error
        longest = int(batch["attention_mask"].sum(1).max())
        if len(self.split(batch)) == len(batch["input_ids"]) // self.sides:
            raise TrainingError(
                f"out of memory on {self.args.device} with one example of {longest} tokens at a "
                "time. Lower max_length of this training, leave gradient_checkpointing on, or "
                "free memory on the device."
            ) from None
        most = max(part["input_ids"].numel() for part in self.split(batch))
        self.pass_tokens = min(self.pass_tokens, most) // 2
        self.say(
            f"out of memory with {most} tokens in one pass: going on with {self.pass_tokens} "
            "(each step learns the same examples)"
        )

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The ids are ready: the prompts are tokenized as for generation, nothing is cut off."""
        return dataset

    def _send_telemetry(self) -> None:
        """TRL reports model and GPU kinds to the Hub on every run; a local run tells nobody."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> LengthSampler:
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthSampler(self.train_dataset["length"], size, self.args.seed)


class Tracked:
    """A tracker's callback: what it cannot send is said once, and ends no training of hours."""

    def __init__(self, callback: Any, say: Callable[[str], None]) -> None:
        self.callback, self.say = callback, say

    def __getattr__(self, event: str) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            if self.callback is None:
                return
            try:
                getattr(self.callback, event)(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - whatever a tracker or its network raises
                self.callback = None
                reason = one_line(error)
                self.say(f"log.to: the curve of this training could not be sent ({reason})")

        return call


def take(batch: Batch, count: int, places: Sequence[int]) -> Batch:
    """Some of a batch's ``count`` examples.

    Every tensor's first dimension counts examples, or rows side by side (chosen, rejected).
    """
    return {
        name: torch.cat([side[places] for side in tensor.chunk(len(tensor) // count)])
        for name, tensor in batch.items()
    }


class SparSft(Mixin, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer."""


class SparDpo(Mixin, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer, in whose loss every pair of a step weighs the same.

    TRL's own likelihood term ("sft") is a mean over a part's tokens, so that long answers weigh
    more; and where a step's parts are unlike in size, the pairs of a small one weigh more.

    The reference is the actor as it is when the trainer is built: its log p come with the rows.
    """

    loss_is_scaled_for_ga = True
    sides = len(SIDES)

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

        In the batches and parts of the first epoch, so that not even rounding tells actor from
        reference.
        """
        order = [place for place in self._get_train_sampler() if place < count]
        size = self.args.train_batch_size
        batches = [order[start : start + size] for start in range(0, count, size)]
        shares = [[batch[place] for place in share(len(batch))] for batch in batches]
        left = [places for places in shares if places]
        found = torch.zeros(count, len(SIDES), dtype=torch.float64)
        while left:
            rows = self.data_collator([self.train_dataset[place] for place in left[0]])
            try:
                parts = self.split(self._prepare_inputs(rows))
                sides = zip(
                    *(self.compute_ref_log_probs(self.model, p) for p in parts), strict=True
                )
                found[left[0]] = torch.stack([torch.cat(side) for side in sides], 1).cpu().double()
                left.pop(0)
            except (RuntimeError, MemoryError) as error:
                self.halve(error, rows)
        found = found.to(self.args.device)
        add_up(found)
        return [tuple(pair) for pair in found.tolist()]

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], int]:
        """A step's batch, and how many sequences it holds."""
        batches, _ = super().get_batch_samples(*args)
        return batches, sum(len(batch["input_ids"]) for batch in batches)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This part's share of the step's loss, likelihood term included."""
        outputs = []

        def forward(**arguments: Any) -> Any:
            outputs.append(model(**arguments))
            return outputs[0]

        loss = super().compute_loss(forward, inputs)
        chosen, mask = (t.chunk(2)[0] for t in (outputs[0].log_probs, outputs[0].label_mask))
        nll = mean_nll(chosen, mask)
        share = len(inputs["input_ids"]) / num_items_in_batch
        # TRL shows a mean over parts; this makes it one over pairs.
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
