"""The decoder under the rollout engine: many sequences in one batch, each in a slot of its own.

A slot is one row of a key/value cache. New sequences enter as soon as a slot is free (continuous
batching); before its prompt is computed, a sequence copies the keys and values of the longest
prefix that any slot already holds, so K samples, N votes, the children of one node and the fixed
head of a template are computed once. Slots that decode are kept together at the front, so that a
step reads views of the cache and copies nothing.

Knows token ids and one causal transformer with full attention; nothing of chats, roles or adapters.
Promise: greedy output equals plain ``generate`` (``rollout`` checks it before trusting it).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spar_lite.engine import Sampling

SHARE_AT_LEAST = 8
"""Waiting a step for a neighbour's prefix pays only from about this many tokens on."""


@dataclass(eq=False)
class TokenSequence:
    """One sequence: ``tokens`` holds prompt and reply; ``done`` of them are in the cache."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    tokens: list[int] = field(default_factory=list)
    done: int = 0
    finished: bool = False
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.random = random.Random(self.seed)

    @property
    def reply(self) -> list[int]:
        """The tokens generated so far, the end-of-sequence token not among them."""
        return self.tokens[len(self.prompt) :]

    @property
    def need(self) -> int:
        """Cache positions that it may come to fill."""
        return len(self.prompt) + self.max_new_tokens


class SlotCache:
    """Keys and values of all slots, in the shape that transformers' attention asks for.

    Per layer two tensors (slots, kv heads, length, head dim). ``aim`` says which rows and positions
    the next forward pass writes; ``update`` is then called by each attention layer.
    """

    is_compileable = False

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._rows: Tensor | slice = slice(0)
        self._positions: Tensor | None = None
        self._width = 0

    def reserve(self, length: int) -> None:
        """Make every slot at least ``length`` long, keeping what it holds."""
        if length <= self.length:
            return
        self.length = -(-length // 64) * 64
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros(old.shape[0], old.shape[1], self.length, old.shape[3])
                new[:, :, : old.shape[2]] = old
                tensors[layer] = new

    def aim(self, rows: Tensor | slice, positions: Tensor, width: int) -> None:
        """Point the next forward pass at ``rows`` and ``positions`` (batch, queries)."""
        self._rows, self._positions, self._width = rows, positions, width

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (batch, kv heads, queries, head dim); return all to attend."""
        if layer_idx == len(self.keys):
            shape = (self.slots, key.shape[1], self.length, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        return (
            self._write(self.keys[layer_idx], key),
            self._write(self.values[layer_idx], value),
        )

    def _write(self, cache: Tensor, new: Tensor) -> Tensor:
        assert self._positions is not None
        if isinstance(self._rows, slice):
            view = cache[self._rows]
            where = self._positions[:, None, :, None].expand_as(new)
            view.scatter_(2, where, new)
            return view[:, :, : self._width]
        rows = self._rows[:, None]
        cache[rows, :, self._positions] = new.transpose(1, 2)
        return cache[self._rows, :, : self._width]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot to another, in every layer."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked by model code that was given positions and a mask already; never used by it."""
        return self._width


class Decoder:
    """Admit sequences, step, hand back the finished ones.

    Args:
        model: a causal LM whose layers all use full attention, in eval mode.
        slots: sequences decoded at a time.
        eos: token ids that end a reply.
        prefill_tokens: prompt tokens computed in one forward pass, at most.
    """

    def __init__(self, model: Any, slots: int, eos: Sequence[int], prefill_tokens: int) -> None:
        self.model = model
        self.eos = frozenset(eos)
        self.prefill_tokens = prefill_tokens
        self.cache = SlotCache(slots)
        self.device = model.device
        self.waiting: deque[TokenSequence] = deque()
        self.active: list[TokenSequence] = []
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.steps = 0
        self.busy_steps = 0

    def add(self, sequence: TokenSequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.waiting and not self.active

    @torch.no_grad()
    def step(self) -> list[TokenSequence]:
        """Admit what fits, decode one token for every running sequence, return the finished."""
        finished = self._admit()
        if self.active:
            self.steps += 1
            self.busy_steps += len(self.active)
            finished += self._decode()
        return finished

    def _admit(self) -> list[TokenSequence]:
        """Fill free slots, prefix donors first; return what its first token already finished."""
        finished: list[TokenSequence] = []
        while self.waiting and len(self.active) < self.cache.slots:
            wave = self._choose_wave()
            first = len(self.active)
            for row, (sequence, source, shared) in enumerate(wave, start=first):
                self.cache.reserve(sequence.need)
                if shared and source != row:
                    self.cache.copy_row(source, row, shared)
                sequence.done = shared
                self.held[row] = sequence.prompt
                self.active.append(sequence)
            for chunk in self._chunks(range(first, len(self.active))):
                self._prefill(chunk)
            finished += self._retire(first)
        return finished

    def _choose_wave(self) -> list[tuple[TokenSequence, int, int]]:
        """Pick waiting sequences to prefill together, each with its prefix donor.

        A sequence that would share much more with another of the same wave than with any slot
        waits for the next wave, when that one's keys and values can be copied.
        """
        wave: list[tuple[TokenSequence, int, int]] = []
        later: list[TokenSequence] = []
        first = len(self.active)
        free = self.cache.slots - first
        while self.waiting and len(wave) < free and len(later) < 4 * free:
            sequence = self.waiting.popleft()
            peer = max((common(sequence.prompt, s.prompt) for s, _, _ in wave), default=0)
            source, shared = self._donor(sequence.prompt, first, first + len(wave))
            if peer >= shared + SHARE_AT_LEAST:
                later.append(sequence)
            else:
                wave.append((sequence, source, shared))
        self.waiting.extendleft(reversed(later))
        return wave

    def _donor(self, prompt: list[int], first: int, row: int) -> tuple[int, int]:
        """The slot that holds the longest prefix of ``prompt``: (slot, tokens shared).

        Slots from ``first`` up to ``row`` are being overwritten by this very wave. The last prompt
        token is always computed, since its logits give the first new token.
        """
        best, shared = row, 0
        for slot, held in enumerate(self.held):
            if first <= slot < row or len(held) <= shared:
                continue
            length = common(prompt, held)
            if length > shared:
                best, shared = slot, length
        return best, min(shared, len(prompt) - 1)

    def _chunks(self, rows: range) -> Iterator[list[int]]:
        """Split rows into prefill batches of like length, ``prefill_tokens`` at most each."""
        ordered = sorted(rows, key=lambda r: len(self.active[r].prompt) - self.active[r].done)
        chunk: list[int] = []
        for row in reversed(ordered):
            longest = chunk or [row]
            head = self.active[longest[0]]
            if chunk and (len(chunk) + 1) * (len(head.prompt) - head.done) > self.prefill_tokens:
                yield chunk
                chunk = []
            chunk.append(row)
        if chunk:
            yield chunk

    def _prefill(self, rows: list[int]) -> None:
        """Compute the prompts' missing tokens and draw each first new token."""
        sequences = [self.active[row] for row in rows]
        fresh = [s.prompt[s.done :] for s in sequences]
        longest = max(map(len, fresh))
        ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in fresh])
        starts = torch.tensor([s.done for s in sequences])
        positions = (starts[:, None] + torch.arange(longest)).clamp(max=self.cache.length - 1)
        last = torch.tensor([len(tokens) - 1 for tokens in fresh], device=self.device)
        width = int(positions.max()) + 1
        self.cache.aim(torch.tensor(rows, device=self.device), positions.to(self.device), width)
        hidden = self._forward(ids, positions, width, all_positions=True)
        picked = hidden[torch.arange(len(rows), device=self.device), last]
        for sequence in sequences:
            sequence.done = len(sequence.prompt)
        self._extend(sequences, self.model.lm_head(picked))

    def _decode(self) -> list[TokenSequence]:
        """One token for every running sequence; slots 0 to len(active) are theirs."""
        ids = torch.tensor([[s.tokens[-1]] for s in self.active])
        positions = torch.tensor([[s.done] for s in self.active])
        width = int(positions.max()) + 1
        self.cache.aim(slice(0, len(self.active)), positions.to(self.device), width)
        hidden = self._forward(ids, positions, width, all_positions=False)
        for sequence in self.active:
            sequence.done += 1
        self._extend(self.active, self.model.lm_head(hidden[:, -1]))
        return self._retire(0)

    def _forward(self, ids: Tensor, positions: Tensor, width: int, all_positions: bool) -> Tensor:
        """Run the transformer body; return hidden states (batch, queries, hidden)."""
        positions = positions.to(self.device)
        mask = torch.arange(width, device=self.device) <= positions[:, None, :, None]
        output = self.model.model(
            input_ids=ids.to(self.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _extend(self, sequences: Sequence[TokenSequence], logits: Tensor) -> None:
        """Draw the next token of each sequence; logits (batch, vocabulary)."""
        for sequence, token in zip(sequences, draw(logits, sequences), strict=True):
            if token in self.eos:
                sequence.finished = True
            else:
                sequence.tokens.append(token)

    def _retire(self, first: int) -> list[TokenSequence]:
        """Take out finished sequences from slot ``first`` on, moving the last one into each gap."""
        gone = []
        for row in range(len(self.active) - 1, first - 1, -1):
            sequence = self.active[row]
            if not sequence.finished and len(sequence.reply) < sequence.max_new_tokens:
                continue
            gone.append(sequence)
            self.held[row] = sequence.tokens[: sequence.done]
            last = len(self.active) - 1
            if row != last:
                mover = self.active[last]
                self.cache.copy_row(last, row, mover.done)
                self.active[row] = mover
                self.held[row] = mover.prompt
            self.active.pop()
        return gone


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def draw(logits: Tensor, sequences: Sequence[TokenSequence]) -> list[int]:
    """Draw one token a row; logits (batch, vocabulary).

    Each sequence brings its own random numbers (one uniform a token, by inversion), so a draw does
    not depend on what else is in the batch.
    """
    logits = logits.float()
    chosen: list[int] = logits.argmax(-1).tolist()
    groups: dict[Sampling, list[int]] = {}
    for row, sequence in enumerate(sequences):
        if sequence.sampling.temperature > 0:
            groups.setdefault(sequence.sampling, []).append(row)
    for sampling, rows in groups.items():
        uniform = torch.tensor([sequences[row].random.random() for row in rows])
        some = logits if len(rows) == len(sequences) else logits[rows]
        tokens = sample(some / sampling.temperature, sampling, uniform.to(logits.device))
        for row, token in zip(rows, tokens.tolist(), strict=True):
            chosen[row] = token
    return chosen


def sample(scores: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Draw by inversion from softmax(scores) cut to top_k and the nucleus top_p.

    scores (batch, vocabulary), uniform (batch,) in [0, 1); returns (batch,). The nucleus is exact:
    it is looked for among the likeliest 256 tokens, and in a full sort only where those hold too
    little mass, because sorting a vocabulary costs more than a step of a small model.
    """
    size = scores.shape[-1]
    if sampling.top_k or sampling.top_p < 1:
        wide = min(sampling.top_k or 256, size)
        mass = torch.softmax(scores, -1)
        probabilities, tokens = mass.topk(wide)
        if not sampling.top_k and bool((probabilities.sum(-1) < sampling.top_p).any()):
            probabilities, tokens = mass.sort(descending=True)
        if sampling.top_k:
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        return tokens.gather(-1, _invert(probabilities, uniform)).squeeze(-1)
    return _invert(torch.softmax(scores, -1), uniform).squeeze(-1)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Index (batch, 1) at which the cumulated probability passes ``uniform`` of the total."""
    cumulated = probabilities.cumsum(-1)
    # Rounded to 1.0, the largest random numbers would pass every token, those cut off too.
    target = uniform[:, None].clamp(max=1 - 2**-24) * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target.to(cumulated.dtype), right=True)
    return index.clamp(max=probabilities.shape[-1] - 1)
