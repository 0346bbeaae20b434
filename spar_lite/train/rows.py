"""From chats to token ids, and the order in which a trainer sees them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from spar_lite.model.policy import Policy
from spar_lite.records import Message, PreferencePair, TrainingExample

WINDOW = 16
"""Batches within which examples are sorted by length: little padding, yet much chance."""


def example_row(policy: Policy, example: TrainingExample) -> dict[str, Any]:
    """One example as ids and labels; -100 marks tokens without loss."""
    prompt, completion = tokenize(policy, example.prompt, example.completion)
    labels = [-100] * len(prompt) + completion
    for place, message in enumerate(example.prompt if example.every_reply else ()):
        if message.role == "assistant":
            before, reply = tokenize(policy, example.prompt[:place], message.content)
            start, end = len(before), len(before) + len(reply)
            # Left out where a template rewrites past turns: it teaches nothing, and nothing wrong.
            if prompt[:end] == before + reply:
                labels[start:end] = reply
    ids = prompt + completion
    return {"input_ids": ids, "labels": labels, "length": len(ids)}


def pair_row(policy: Policy, pair: PreferencePair, rejected_end: bool = True) -> dict[str, Any]:
    """One pair as the ids of prompt, chosen and rejected; one that was cut off has no end token.

    ``rejected_end``: False where the rejected one never has, unless it is nothing else.
    """
    prompt, chosen = tokenize(policy, pair.prompt, pair.chosen)
    finished = rejected_end and not pair.cut_off
    _, rejected = tokenize(policy, pair.prompt, pair.rejected, finished or not pair.rejected)
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "length": len(prompt) + max(len(chosen), len(rejected)),
    }


def tokenize(
    policy: Policy, messages: Sequence[Message], reply: str, finished: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of (prompt, reply): the prompt is the one that generation sends, to the token.

    The reply ends with its end token: what templates put after it is never generated. One that was
    cut off, not ``finished``, has none.
    """
    prompt = policy.encode(messages)
    whole = policy.encode((*messages, Message("assistant", reply)), reply=False)
    if whole[: len(prompt)] == prompt:
        completion = whole[len(prompt) :]
        ends = [place for place, token in enumerate(completion) if token in policy.eos]
        completion = completion[: ends[-1] + 1] if ends else completion
    else:
        # A template that renders a past reply unlike the turn it opens (a thinking block, for one).
        ids = policy.tokenizer.encode(reply, add_special_tokens=False)
        completion = [*ids, policy.tokenizer.eos_token_id]
    ended = completion and completion[-1] in policy.eos
    return prompt, completion[:-1] if ended and not finished else completion


class LengthSampler(torch.utils.data.Sampler[int]):
    """Random order in which neighbours have like lengths, batches coming in random order.

    transformers' own length grouping runs from long to short within each of a few large groups, so
    that a short training sees its shortest examples at the lowest learning rate.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch = batch
        self._random = random.Random(seed)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Indices of one epoch; each epoch draws anew."""
        order = list(range(len(self._lengths)))
        self._random.shuffle(order)
        size = WINDOW * self._batch
        batches = []
        for start in range(0, len(order), size):
            window = sorted(order[start : start + size], key=self._lengths.__getitem__)
            batches += [window[n : n + self._batch] for n in range(0, len(window), self._batch)]
        # A short batch stays last: before others it would shift every later batch's bounds.
        ragged = [batches.pop()] if len(batches[-1]) < self._batch else []
        self._random.shuffle(batches)
        return (index for batch in batches + ragged for index in batch)
