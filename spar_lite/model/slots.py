"""The decoder under the rollout engine: many sequences in one batch, each in a slot of its own.

A slot is one row of a key/value cache. New sequences enter as soon as a slot is free (continuous
batching); before its prompt is computed, a sequence copies the keys and values of the longest
prefix that any slot already holds, so K samples, N votes, the children of one node and the fixed
head of a template are computed once. Slots that decode are kept together at the front, so that a
step reads views of the cache and copies nothing. Where the cache's budget is too small for all, the
youngest sequences go back to the queue with what they have, and are taken up again later.

Layers with a sliding window get it by their mask: their slots hold the whole past, and read the
window's part. Promise: logits equal those of plain forward passes (``rollout`` checks it before
trusting it).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spar_lite.engines.base import Sampling
from spar_lite.model.cache import BLOCK, SlotCache, bytes_per_position
from spar_lite.model.draw import draw

PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}
"""Prompt tokens in one forward pass: enough to fill the device, and few enough to fit."""

SHARE_AT_LEAST = 8
"""Waiting a step for a neighbour's prefix pays only from about this many tokens on."""

TRICKLE = 8
"""Up to so many missing prompt tokens are fed one a step, beside the sequences that decode: a pass
of their own would cost about as much as a whole step (measured, see LOG.md)."""


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
    def complete(self) -> bool:
        """Ended by itself or by its limit."""
        return self.finished or len(self.reply) >= self.max_new_tokens

    @property
    def left(self) -> int:
        """New tokens that it may still bring."""
        return self.max_new_tokens - len(self.reply)

    def rewind(self) -> None:
        """Forget the cache, keep the tokens: the next draw is the one that would have come."""
        self.done = 0
        self.random = random.Random(self.seed)
        if self.sampling.temperature > 0:
            for _ in self.reply:
                self.random.random()


@dataclass(slots=True)
class Counts:
    """What a decoder has done: decoding steps, rows in them, prompt tokens computed, seconds."""

    steps: int = 0
    running: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    model_seconds: float = 0.0


class Decoder:
    """Admit sequences, step, hand back the finished ones.

    Args:
        model: a causal LM in eval mode; its own ``forward`` makes the logits, so that scales and
            caps (Granite, Cohere, Gemma 2) are the model's affair.
        slots: sequences decoded at a time, at most.
        eos: token ids that end a reply.
        prefill_tokens: prompt tokens computed in one forward pass, at most.
        budget: bytes that keys and values may take; None for no limit.

    Raises:
        ValueError: a layer attends in a way that slots cannot serve; see ``attention_windows``.
    """

    def __init__(
        self,
        model: Any,
        slots: int,
        eos: Sequence[int],
        prefill_tokens: int,
        budget: int | None = None,
    ) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.windows = attention_windows(config)
        self.adds_mask = config._attn_implementation == "eager"
        self.eos = frozenset(eos)
        self.prefill_tokens = prefill_tokens
        self.slots = slots
        self.device = model.device
        size = bytes_per_position(config, model.dtype.itemsize)
        self.cache = SlotCache(size, budget)
        self.waiting: deque[TokenSequence] = deque()
        self.active: list[TokenSequence] = []
        self.held: list[list[int]] = []
        self.out: list[TokenSequence] = []
        self.counts = Counts()

    def add(self, sequence: TokenSequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing runs, nothing is left to hand over."""
        return not (self.waiting or self.active or self.out)

    @torch.no_grad()
    def step(self) -> list[TokenSequence]:
        """Admit what fits, decode one token for every running sequence, return the finished.

        After an exception for want of memory ``shrink`` sets things right; nothing is lost.
        """
        begin = time.perf_counter()
        self._admit()
        admitted = time.perf_counter()
        if self.active:
            self._make_room()
            self._decode()
            self.counts.steps += 1
            self.counts.running += len(self.active)
            self._retire(0)
        self.counts.prefill_seconds += admitted - begin
        self.counts.decode_seconds += time.perf_counter() - admitted
        finished, self.out = self.out, []
        return finished

    def shrink(self) -> None:
        """Halve the slots and start the cache anew; running sequences go on from their tokens."""
        self.slots = max(1, self.slots // 2)
        self.cache = SlotCache(self.cache.position_bytes, self.cache.budget)
        self.held = []
        running, self.active = self.active, []
        self.out += [s for s in running if s.complete]
        self._put_back([s for s in running if not s.complete])

    def _put_back(self, sequences: list[TokenSequence]) -> None:
        for sequence in sequences:
            sequence.rewind()
        self.waiting.extendleft(reversed(sequences))

    def _make_room(self) -> None:
        """Let the cache hold one more token of every running sequence, preempting the youngest."""
        length = max(len(s.tokens) for s in self.active)
        fits = self.cache.rows_at(length)
        if len(self.active) > fits:
            self._put_back(self.active[fits:])
            del self.active[fits:]
        self._reserve(len(self.active), length)

    def _reserve(self, rows: int, length: int) -> None:
        ample = min(self.slots, self.cache.rows_at(length), -(-rows // 16) * 16)
        self.cache.reserve(max(rows, ample), length)
        self.held = [held[: self.cache.length] for held in self.held[: self.cache.rows]]
        self.held += [[] for _ in range(self.cache.rows - len(self.held))]

    def _admit(self) -> None:
        """Fill free slots, prefix donors first."""
        while self.waiting and len(self.active) < self.slots:
            wave = self._choose_wave()
            if not wave:
                return
            first = len(self.active)
            longest = max(len(s.tokens) for s in (*self.active, *(s for s, _, _ in wave)))
            self._reserve(first + len(wave), longest)
            for row, (sequence, source, shared) in enumerate(wave, start=first):
                if source >= len(self.held) or shared > len(self.held[source]):
                    shared = 0  # what it would have copied had to go when the cache was rearranged
                elif shared and source != row:
                    self.cache.copy_row(source, row, shared)
                sequence.done = shared
                self.held[row] = sequence.tokens[:shared]  # the rest once it is there
                self.active.append(sequence)
            rows = range(first, len(self.active))
            for chunk in self._chunks([r for r in rows if self._missing(r) > TRICKLE]):
                self._prefill(chunk)
            self._retire(first)

    def _missing(self, row: int) -> int:
        """Tokens of a slot's sequence whose keys and values are not computed yet."""
        return len(self.active[row].tokens) - self.active[row].done

    def _choose_wave(self) -> list[tuple[TokenSequence, int, int]]:
        """Pick waiting sequences to prefill together, each with its prefix donor.

        A sequence that would share much more with another of the same wave than with any slot
        waits for the next wave, when that one's keys and values can be copied. The queue's order
        is kept otherwise: the first that does not fit the budget ends the wave.
        """
        wave: list[tuple[TokenSequence, int, int]] = []
        later: list[TokenSequence] = []
        first = len(self.active)
        free = self.slots - first
        longest = max((len(s.tokens) for s in self.active), default=0)
        while self.waiting and len(wave) < free and len(later) < 4 * free:
            sequence = self.waiting[0]
            # Room for what it will write soon, too, or it would be preempted at once.
            longest = max(longest, len(sequence.tokens) + min(sequence.left, BLOCK))
            if first + len(wave) >= self.cache.rows_at(longest):
                break
            self.waiting.popleft()
            peer = max((common(sequence.tokens, s.tokens) for s, _, _ in wave), default=0)
            source, shared = self._donor(sequence.tokens, first, first + len(wave))
            if peer >= shared + SHARE_AT_LEAST:
                later.append(sequence)
            else:
                wave.append((sequence, source, shared))
        self.waiting.extendleft(reversed(later))
        return wave

    def _donor(self, tokens: list[int], first: int, row: int) -> tuple[int, int]:
        """The slot that holds the longest prefix of ``tokens``: (slot, tokens shared).

        Slots from ``first`` up to ``row`` are being overwritten by this very wave. The last token
        is always computed, since its logits give the next new one.
        """
        best, shared = row, 0
        for slot, held in enumerate(self.held):
            if first <= slot < row or len(held) <= shared:
                continue
            length = common(tokens, held)
            if length > shared:
                best, shared = slot, length
        return best, min(shared, len(tokens) - 1)

    def _chunks(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Split rows into prefill batches of like length, ``prefill_tokens`` at most each."""
        chunk: list[int] = []
        for row in sorted(rows, key=self._missing, reverse=True):
            if chunk and (len(chunk) + 1) * self._missing(chunk[0]) > self.prefill_tokens:
                yield chunk
                chunk = []
            chunk.append(row)
        if chunk:
            yield chunk

    def _prefill(self, rows: list[int]) -> None:
        """Compute the missing tokens of new sequences and draw the next one of each.

        Shorter rows are filled up with their last token at its own place: written twice, it is the
        same, no other place is touched, and every row's last logits are those of its last token.
        """
        sequences = [self.active[row] for row in rows]
        fresh = [s.tokens[s.done :] for s in sequences]
        longest = max(map(len, fresh))
        ids = torch.tensor([tokens + tokens[-1:] * (longest - len(tokens)) for tokens in fresh])
        starts = torch.tensor([s.done for s in sequences])
        ends = torch.tensor([len(s.tokens) - 1 for s in sequences])
        positions = (starts[:, None] + torch.arange(longest)).minimum(ends[:, None])
        width = int(ends.max()) + 1
        self.cache.aim(torch.tensor(rows, device=self.device), positions.to(self.device), width)
        logits = self._forward(ids, positions, width)
        self.counts.prefill_tokens += sum(map(len, fresh))
        for row, sequence in zip(rows, sequences, strict=True):
            sequence.done = len(sequence.tokens)
            self.held[row] = sequence.prompt
        self._extend(sequences, logits)

    def _decode(self) -> None:
        """One token of every running sequence; slots 0 to len(active) are theirs."""
        ids = torch.tensor([[s.tokens[s.done]] for s in self.active])
        positions = torch.tensor([[s.done] for s in self.active])
        width = int(positions.max()) + 1
        self.cache.aim(slice(0, len(self.active)), positions.to(self.device), width)
        logits = self._forward(ids, positions, width)
        for sequence in self.active:
            sequence.done += 1
        ready = [row for row in range(len(self.active)) if not self._missing(row)]
        if len(ready) == len(self.active):
            self._extend(self.active, logits)
        elif ready:
            some = logits[torch.tensor(ready, device=self.device)]
            self._extend([self.active[row] for row in ready], some)

    def _forward(self, ids: Tensor, positions: Tensor, width: int) -> Tensor:
        """Run the model; return the logits (batch, vocabulary) of each row's last query."""
        begin = time.perf_counter()
        positions = positions.to(self.device)
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=self._mask(positions, width),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        self.counts.model_seconds += time.perf_counter() - begin
        return logits

    def _mask(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """What each query may attend to (batch, 1, queries, keys), by kind of layer if several."""
        at, keys = positions[:, None, :, None], torch.arange(width, device=self.device)
        masks = {}
        for kind, window in self.windows.items():
            mask = keys <= at
            if window is not None:
                mask &= keys > at - window
            if self.adds_mask:
                zero = torch.zeros((), dtype=self.model.dtype, device=self.device)
                mask = torch.where(mask, zero, torch.finfo(self.model.dtype).min)
            masks[kind] = mask
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _extend(self, sequences: Sequence[TokenSequence], logits: Tensor) -> None:
        """Draw the next token of each sequence; logits (batch, vocabulary)."""
        for sequence, token in zip(sequences, draw(logits, sequences), strict=True):
            if token in self.eos:
                sequence.finished = True
            else:
                sequence.tokens.append(token)

    def _retire(self, first: int) -> None:
        """Take out finished sequences from slot ``first`` on, moving the last one into each gap."""
        for row in range(len(self.active) - 1, first - 1, -1):
            sequence = self.active[row]
            if not sequence.complete:
                continue
            self.out.append(sequence)
            self.held[row] = sequence.tokens[: sequence.done]
            last = len(self.active) - 1
            if row != last:
                mover = self.active[last]
                self.cache.copy_row(last, row, mover.done)
                self.active[row] = mover
                self.held[row] = mover.prompt[: mover.done]  # it may still be taking its prompt in
            self.active.pop()


def attention_windows(config: Any) -> dict[str, int | None]:
    """The kinds of layers of a model with this config, each with its window; None: the whole past.

    Raises:
        ValueError: layers that keep another state than keys and values, or choose by chunks.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    known = {"full_attention": None, "sliding_attention": window}
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"layers of the kind {kind} do not fit its cache")
    return {kind: known[kind] for kind in sorted(set(kinds))}


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
