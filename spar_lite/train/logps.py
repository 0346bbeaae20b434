"""How likely a role finds given replies: sums of log p over a reply's tokens, without gradients.

Promise: the policy is afterwards what it was, in the middle of a training too. The head is computed
on replies alone, a slice of the vocabulary at a time, by what TRL computes its losses with: prompts
have no logits.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import add_fused_lm_head

from spar_lite.model.policy import Policy
from spar_lite.records import Message, Role
from spar_lite.train.rows import tokenize
from spar_lite.train.trainers import head_where_needed

Chat = tuple[Sequence[Message], str] | tuple[Sequence[Message], str, bool]
"""Messages, the reply to them, and whether it ended by itself; without a word it did."""

Ids = tuple[list[int], list[int]]
"""Token ids of a prompt and of the reply to it."""


def score_replies(
    policy: Policy, role: Role, chats: Sequence[Chat], micro_batch: int = 8
) -> list[tuple[float, int]]:
    """For each chat, log p of its reply as ``role`` answers (nats, float32), and its tokens.

    The end token counts, except for a reply that was cut off (see ``Chat``), which has none.
    """
    return score_ids(policy, role, [tokenize(policy, *chat) for chat in chats], micro_batch)


def score_ids(
    policy: Policy, role: Role, rows: Sequence[Ids], micro_batch: int
) -> list[tuple[float, int]]:
    """``score_replies`` of what is tokenized already."""
    found = [(0.0, 0)] * len(rows)
    # The longest first: if memory runs out, it does so at once.
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]) - len(rows[n][1]))
    with _answering(policy, role), torch.no_grad():
        for start in range(0, len(order), micro_batch):
            batch = order[start : start + micro_batch]
            for place, score in zip(batch, _score(policy, [rows[n] for n in batch]), strict=True):
                found[place] = score
    return found


def _score(policy: Policy, rows: Sequence[Ids]) -> list[tuple[float, int]]:
    """One forward pass."""

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(ids) for ids in lists], True, value).to(policy.device)

    outputs = policy.inner(
        input_ids=padded([p + r for p, r in rows], policy.tokenizer.pad_token_id),
        attention_mask=padded([[1] * len(p + r) for p, r in rows], 0),
        labels=padded([[-100] * len(p) + r for p, r in rows], -100),
        fused_lm_head=True,
    )
    sums, counts = outputs.log_probs.sum(1).tolist(), outputs.label_mask.sum(1).tolist()
    return list(zip(sums, counts, strict=True))


@contextmanager
def _answering(policy: Policy, role: Role) -> Iterator[None]:
    """``role`` answers, by base plus adapter as in training, through TRL's head."""
    was, fast, training = policy.role, policy.fast is not None, policy.model.training
    trainable = [p for p in policy.model.parameters() if p.requires_grad]
    model = policy.inner
    policy.slow_down()
    policy.switch(role)
    try:
        # The patch is there for its end: it puts back the forward that TRL replaces.
        with head_where_needed(), mock.patch.object(model, "forward", model.forward):
            add_fused_lm_head(model)
            yield
    finally:
        policy.switch(was or "actor")
        policy.model.train(training)
        for parameter in trainable:
            parameter.requires_grad_()
        if fast:
            policy.speed_up()


def pair_log_p(
    policy: Policy, rows: Sequence[dict[str, Any]], micro_batch: int, when: str
) -> dict[str, float]:
    """Mean log p of the chosen and of the rejected replies of ``rows.pair_row``, as the actor.

    In nats: of a whole reply, and of its tokens' mean (``…_per_token``), each a mean over pairs.
    """
    found = {}
    for side in ("chosen", "rejected"):
        ids = [(row["prompt_ids"], row[f"{side}_ids"]) for row in rows]
        scores = score_ids(policy, "actor", ids, micro_batch)
        name = f"logp_{side}_{when}"
        found[name] = statistics.fmean(total for total, _ in scores)
        found[f"{name}_per_token"] = statistics.fmean(total / count for total, count in scores)
    return found
