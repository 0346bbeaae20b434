"""How likely a role finds given replies: sums of log p over a reply's tokens, without gradients.

The head is computed on replies alone, a slice of the vocabulary at a time, by what TRL computes its
losses with: prompts have no logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import add_fused_lm_head

from spar_lite.model.policy import Policy
from spar_lite.records import Message, Role
from spar_lite.train.rows import tokenize
from spar_lite.train.trainers import patched


def score_replies(
    policy: Policy,
    role: Role,
    chats: Sequence[tuple[Sequence[Message], str, bool]],
    pass_tokens: int = 8192,
) -> list[tuple[float, int]]:
    """For each chat, log p of its reply as ``role`` answers (nats, float32), and its tokens.

    ``pass_tokens``: padded tokens in one forward pass; an example longer than that goes alone.
    ``chats``: messages, the reply to them, and whether it ended by itself: then its end token
    counts too. Base plus adapter answer, as in training: merged weights are gone afterwards, the
    role that answered before is back.
    """

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(ids) for ids in lists], True, value).to(policy.device)

    rows = [tokenize(policy, *chat) for chat in chats]
    found = [(0.0, 0)] * len(rows)
    # The longest first: if memory runs out, it does so at once.
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]) - len(rows[n][1]))
    was = policy.role or "actor"
    policy.switch(role)
    policy.slow_down()
    try:
        with patched(policy), torch.no_grad():
            add_fused_lm_head(policy.inner)
            while order:
                # The first of them is the longest.
                fit = max(1, pass_tokens // sum(map(len, rows[order[0]])))
                places, order = order[:fit], order[fit:]
                batch = [rows[place] for place in places]
                outputs = policy.inner(
                    input_ids=padded([p + r for p, r in batch], policy.tokenizer.pad_token_id),
                    attention_mask=padded([[1] * len(p + r) for p, r in batch], 0),
                    labels=padded([[-100] * len(p) + r for p, r in batch], -100),
                    fused_lm_head=True,
                )
                sums, counts = (t.sum(1).tolist() for t in (outputs.log_probs, outputs.label_mask))
                for place, log_p, count in zip(places, sums, counts, strict=True):
                    found[place] = (log_p, count)
    finally:
        policy.switch(was)
    return found
