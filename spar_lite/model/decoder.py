"""The batching decoder under the rollout engine: each sequence in a slot of its own.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spar_lite.engines.base import Sampling
from spar_lite.model.cache import BLOCK, SlotCache, bytes_per_position
from spar_lite.model.draw import draw
from spar_lite.model.prefixes import Prefixes

SHARE_AT_LEAST = 8
"""Waiting a step for a neighbour's prefix pays only from about this many tokens on."""

PIGGYBACK_PREFILL = 8
"""Up to so many missing prompt tokens are fed one a step, beside the sequences that decode: a pass
of their own would cost about as much as a whole step (measured, see LOG.md)."""


@dataclass(eq=False)
class TokenSequence:
    """One sequence: ``tokens`` holds prompt and reply; ``done`` of them are in the cache.

    ``owner``: whatever finds its caller again.
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    owner: Any = None
    tokens: list[int] = field(init=False)
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
    def missing(self) -> int:
        """Tokens whose keys and values are not computed yet."""
        return len(self.tokens) - self.done

    @property
    def left(self) -> int:
        """New tokens that it may still bring."""
        return 0 if self.finished else len(self.prompt) + self.max_new_tokens - len(self.tokens)

    def rewind(self) -> None:
        """Forget the cache, keep the tokens: the next draw is the one that would have come."""
        self.done = 0
        self.random = random.Random(self.seed)
        if self.sampling.temperature > 0:
            for _ in self.reply:
                self.random.random()


@dataclass(slots=True)
class Usage:
    """What engine and decoder have done: ``running`` rows in ``capacity`` slots of all steps.

    ``prefill_tokens`` are the prompt tokens that were computed, not copied.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    running: int = 0
    capacity: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Mean running sequences over capacity, per decoding step."""
        return self.running / self.capacity if self.capacity else 0.0


class BatchDecoder:
    """Admit sequences, step, hand back the finished ones.

    Args:
        model: a causal LM in eval mode; its own ``forward`` makes the logits, so that scales and
            caps (Granite, Cohere, Gemma 2) are the model's affair.
        slots: sequences decoded at a time, at most.
        eos: token ids that end a reply.
        prefill_tokens: prompt tokens computed in one forward pass, at most.
        budget: bytes that keys and values may take; None for no limit.
        choose: from logits (batch, vocabulary) and their sequences to the next tokens.

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
        choose: Callable[[Tensor, Sequence[TokenSequence]], list[int]] = draw,
    ) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.windows = attention_windows(config)
        cuda = model.device.type == "cuda"
        # SDPA on CUDA would make the same of a mask of booleans, with three kernels a layer.
        self.adds_mask = cuda or config._attn_implementation == "eager"
        self.eos = frozenset(eos)
        self.prefill_tokens = prefill_tokens
        self.slots = slots
        # CUDA's attention kernels plan, or pad, anew for each odd number of keys.
        self.width_step = BLOCK if cuda else 1
        self.choose = choose
        self.cache = SlotCache(bytes_per_position(config, model.dtype.itemsize), budget)
        self.waiting: deque[TokenSequence] = deque()
        self.active: list[TokenSequence] = []
        self.cached = Prefixes()  # by slot: the tokens whose keys and values it holds
        self.out: list[TokenSequence] = []
        self.usage = Usage()

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
            running = len(self.active)
            self._advance(slice(0, running), self.active, most=1)
            self.usage.steps += 1
            self.usage.running += running
            self.usage.capacity += self.slots
            self._retire(0)
        self.usage.prefill_seconds += admitted - begin
        self.usage.decode_seconds += time.perf_counter() - admitted
        finished, self.out = self.out, []
        return finished

    def shrink(self) -> None:
        """Halve the slots and start the cache anew; running sequences go on from their tokens."""
        self.slots = max(1, self.slots // 2)
        self.cache = SlotCache(self.cache.position_bytes, self.cache.budget)
        self.cached = Prefixes()
        self.out += [s for s in self.active if not s.left]
        self._put_back([s for s in self.active if s.left])
        self.active = []

    def _put_back(self, sequences: list[TokenSequence]) -> None:
        for sequence in sequences:
            sequence.rewind()
        self.waiting.extendleft(reversed(sequences))

    # --- Admission --------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Fill free slots, one admission after the other; each may copy from those before it."""
        while self.waiting and len(self.active) < self.slots:
            # 1. Choose who enters together, and from which slot each copies its prefix.
            admission = self._choose_admission()
            if not admission:
                return
            # 2. Make the cache large enough for all. They are in their slots before that: should
            # memory run out, ``shrink`` puts back who is there.
            first = len(self.active)
            self.active += [sequence for sequence, _, _ in admission]
            self._reserve(len(self.active), max(len(s.tokens) for s in self.active))
            # 3. Copy the prefixes, each into the row that will be its sequence's own.
            for row, (sequence, source, shared) in enumerate(admission, start=first):
                if shared > self.cached.length(source):
                    shared = 0  # what it would have copied had to go when the cache was rearranged
                elif shared and source != row:
                    self.cache.copy_row(source, row, shared)
                sequence.done = shared
                self.cached.put(row, sequence.tokens[:shared])  # the rest once it is there
            # 4. Compute what is missing; a little of it is left to the decoding steps.
            for chunk in self._chunks(first):
                sequences = [self.active[row] for row in chunk]
                computed = sum(s.missing for s in sequences)
                self._advance(torch.tensor(chunk, device=self.model.device), sequences)
                self.usage.prefill_tokens += computed
                for row, sequence in zip(chunk, sequences, strict=True):
                    self.cached.put(row, sequence.prompt)
            # 5. Prefill drew a token of each: who wanted no more makes room for the next.
            self._retire(first)

    def _choose_admission(self) -> list[tuple[TokenSequence, int, int]]:
        """Pick waiting sequences to prefill together: (sequence, source slot, tokens to copy).

        A sequence that would share much more with another of the same admission than with any slot
        waits for the next one, when that one's keys and values can be copied. The queue's order
        is kept otherwise: the first that does not fit the budget ends the admission.
        """
        admission: list[tuple[TokenSequence, int, int]] = []
        companions, later = Prefixes(), list[TokenSequence]()
        first = len(self.active)
        free = self.slots - first
        longest = max((len(s.tokens) for s in self.active), default=0)
        while self.waiting and len(admission) < free and len(later) < 4 * free:
            sequence, row = self.waiting[0], first + len(admission)
            # 1. Room for what it will write soon, too, or it would be preempted at once.
            longest = max(longest, len(sequence.tokens) + min(sequence.left, BLOCK))
            if row >= max(1, self.cache.rows_at(longest)):
                break
            self.waiting.popleft()
            # 2. Its prefix match: the slot that holds the most of it, but for those that this very
            # admission overwrites. The last token is always computed: its logits give the next.
            shared, source = self.cached.longest(sequence.tokens)
            shared = min(shared, len(sequence.tokens) - 1)
            # 3. If a companion has much more of it, let that one be computed first.
            if companions.longest(sequence.tokens)[0] >= shared + SHARE_AT_LEAST:
                later.append(sequence)
                continue
            admission.append((sequence, source, shared))
            companions.put(row, sequence.tokens)
            self.cached.withdraw(row)
        self.waiting.extendleft(reversed(later))
        return admission

    def _chunks(self, first: int) -> Iterator[list[int]]:
        """Rows from ``first`` on in prefill batches of like length, ``prefill_tokens`` at most."""
        chunk: list[int] = []
        rows = range(first, len(self.active))
        for row in sorted(rows, key=lambda row: -self.active[row].missing):
            if self.active[row].missing <= PIGGYBACK_PREFILL:
                break
            if chunk and (len(chunk) + 1) * self.active[chunk[0]].missing > self.prefill_tokens:
                yield chunk
                chunk = []
            chunk.append(row)
        if chunk:
            yield chunk

    def _make_room(self) -> None:
        """Let the cache hold one more token of every running sequence, preempting the youngest."""
        length = max(len(s.tokens) for s in self.active)
        fits = max(1, self.cache.rows_at(length))
        self._put_back(self.active[fits:])
        del self.active[fits:]
        self._reserve(len(self.active), length)

    def _reserve(self, rows: int, length: int) -> None:
        ample = min(self.slots, self.cache.rows_at(length), -(-rows // 16) * 16)
        before = self.cache.rows, self.cache.length
        self.cache.reserve(max(rows, ample), length)
        if (self.cache.rows, self.cache.length) != before:
            self.cached.cut(self.cache.rows, self.cache.length)

    # --- Forward passes ---------------------------------------------------------------------------

    def _advance(
        self, rows: Tensor | slice, sequences: Sequence[TokenSequence], most: int | None = None
    ) -> None:
        """Compute the missing tokens of some rows' sequences, ``most`` each, and draw the next.

        Shorter rows are filled up with their last token at its own place: written twice, it is the
        same, no other place is touched, and every row's last logits are those of its last token.
        """
        # 1. Tokens, and their positions in the cache's rows.
        device = self.model.device
        fresh = [s.tokens[s.done :][:most] for s in sequences]
        longest = max(map(len, fresh))
        ids = torch.tensor([tokens + tokens[-1:] * (longest - len(tokens)) for tokens in fresh])
        starts = torch.tensor([[s.done] for s in sequences])
        ends = starts + torch.tensor([[len(tokens) - 1] for tokens in fresh])
        positions = (starts + torch.arange(longest)).minimum(ends).to(device)
        width = -(-(int(ends.max()) + 1) // self.width_step) * self.width_step
        # 2. One pass.
        self.cache.write_at(rows, positions, width)
        logits = self._forward(ids.to(device), positions, width)
        for sequence, tokens in zip(sequences, fresh, strict=True):
            sequence.done += len(tokens)
        # 3. The next token of each whose tokens are all there.
        ready = [n for n, sequence in enumerate(sequences) if not sequence.missing]
        if len(ready) < len(sequences):
            sequences, logits = [sequences[n] for n in ready], logits[ready]
        for sequence, token in zip(sequences, self.choose(logits, sequences), strict=True):
            if token in self.eos:
                sequence.finished = True
            else:
                sequence.tokens.append(token)

    def _forward(self, ids: Tensor, positions: Tensor, width: int) -> Tensor:
        """Run the model; return the logits (batch, vocabulary) of each row's last query."""
        begin = time.perf_counter()
        output = self.model(
            input_ids=ids,
            attention_mask=self._mask(positions, width),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        self.usage.model_seconds += time.perf_counter() - begin
        return logits

    def _mask(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """What each query may attend to (batch, 1, queries, keys), by kind of layer if several."""
        at, keys = positions[:, None, :, None], torch.arange(width, device=positions.device)
        masks = {}
        for kind, window in self.windows.items():
            mask = keys <= at
            if window is not None:
                mask &= keys > at - window
            if self.adds_mask:
                zero = torch.zeros((), dtype=self.model.dtype, device=mask.device)
                mask = torch.where(mask, zero, torch.finfo(self.model.dtype).min)
            masks[kind] = mask
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _retire(self, first: int) -> None:
        """Take out finished sequences from slot ``first`` on, moving the last one into each gap."""
        for row in range(len(self.active) - 1, first - 1, -1):
            sequence = self.active[row]
            if sequence.left:
                continue
            self.out.append(sequence)
            self.cached.put(row, sequence.tokens[: sequence.done])
            last = self.active.pop()
            if last is not sequence:
                self.cache.copy_row(len(self.active), row, last.done)
                self.active[row] = last
                # It may still be taking its prompt in.
                self.cached.put(row, last.prompt[: last.done])


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
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"layers of the kind {unknown[0]} do not fit its cache")
    return {kind: known[kind] for kind in sorted(set(kinds))}
