"""The rollout engine: the engine protocol over one policy.

All requests in flight are decoded together (``slots``); coroutines that await a reply are resumed
between two steps, so a tree goes on while others still decode. Before the fast path is trusted it
is compared with plain forward passes on this device, role by role, at the batch sizes and lengths
that are asked for; where it differs, ``generate`` in static batches takes over, and the engine says
so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from spar_lite.engines.base import OPEN, Completion, Request
from spar_lite.errors import EngineError, SparError, one_line
from spar_lite.footprint import PREFILL_TOKENS, SLOTS
from spar_lite.model.cache import generate_bytes
from spar_lite.model.decoder import BatchDecoder, TokenSequence, Usage
from spar_lite.model.machine import cache_budget, free_memory, give_back, is_out_of_memory
from spar_lite.model.merged import Weights, copy_bytes
from spar_lite.model.policy import ADAPTERS, Policy
from spar_lite.model.reference import cut, plain_generate, self_check
from spar_lite.recipe import EngineSettings
from spar_lite.records import Role, stable_seed

MERGED_SHARE = {"auto": 0.25, "merged": 0.75}
"""Share of the free memory that merged weights may take, by ``engine.weights``: the rest is for
keys, values and activations."""

TURNS = 12
"""Turns of the event loop after a step; more than any chain of awaits in the method is long."""

Found = TypeVar("Found")


class RolloutEngine:
    """Engine over a policy; one role at a time, as many requests as you like.

    Args:
        policy: the model and its adapters.
        settings: the recipe's engine section.
        seed: sampling follows from it and from each request's id.
        say: told about the self-check's result, and when memory ran out.
        memory_fraction: share of the device's memory to use.
    """

    def __init__(
        self,
        policy: Policy,
        settings: EngineSettings,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
        memory_fraction: float = 1.0,
    ) -> None:
        self.policy = policy
        self.seed = seed
        self.most_slots = self.slots = settings.batch or SLOTS[policy.device.type]
        self.eos = policy.eos
        self.weights = settings.weights
        self.memory_fraction = memory_fraction
        self.path = settings.path
        self.say = say
        self.usage = Usage()
        self.on_tokens: Callable[[int], None] = lambda _: None
        self._checked: dict[Role, tuple[int, int, bool]] = {}
        # A sequence's owner is its request's id and the future that its caller awaits.
        self._queue: list[TokenSequence] = []
        self._open: set[asyncio.Future[Completion]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._role: Role | None = None

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request as ``role``; see the protocol.

        Where the model's positions end, so does a reply.

        Raises:
            EngineError: a prompt leaves no position for a reply, another role is still answering,
                the logits are not finite, or the model's forward pass failed.
        """
        make = asyncio.get_running_loop().create_future
        sequences = [self._sequence(role, request, (request.id, make())) for request in requests]
        while self._loop is not None and self._role != role:
            if self._open:
                raise EngineError(f"asked for {role} while {self._role} is still answering")
            await self._loop  # its last reply is out, and it is about to end
        self._role = role
        futures = [sequence.owner[1] for sequence in sequences]
        self._queue += sequences
        self._open.update(futures)
        for future in futures:
            future.add_done_callback(self._open.discard)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(role))
        return list(await asyncio.gather(*futures))

    def stream(self, role: Role, request: Request) -> Iterator[str]:
        """The reply to one request so far, after each of its tokens; nothing else may be asked.

        Raises:
            EngineError: as ``generate``.
        """
        policy, device = self.policy, self.policy.device
        policy.switch(role)
        policy.speed_up(self.choose_weights(role))
        sequence, prefill = self._sequence(role, request), PREFILL_TOKENS[device.type]
        try:
            decoder = BatchDecoder(policy.inner, 1, self.eos, prefill)
        except ValueError:  # layers that its cache cannot serve: the whole reply at once
            yield asyncio.run(self.generate(role, [request]))[0].text
            return
        decoder.add(sequence)
        while not decoder.idle:
            decoder.step()
            yield policy.decode(sequence.reply)

    def _sequence(self, role: Role, request: Request, owner: Any = None) -> TokenSequence:
        """The request's tokens, with a limit that the model's positions allow."""
        ids = self.policy.encode(request.messages)
        room = min(request.max_new_tokens, self.policy.positions - len(ids))
        if room < 1:
            raise EngineError(
                f"{request.id}: its prompt has {len(ids)} tokens, and the model reads "
                f"{self.policy.positions} with the reply. Shorten the prompts, or choose a model "
                "with more positions."
            )
        seed = stable_seed(self.seed, role, request.id)
        return TokenSequence(ids, room, request.sampling, seed, owner)

    def take_usage(self) -> Usage:
        """Return the usage counted so far and start anew."""
        usage, self.usage = self.usage, Usage()
        return usage

    def fast(self, role: Role) -> bool:
        """Whether this role may use the fast path on this device for what is queued now.

        Checked at first use, and again where there are more than twice as many sequences, or more
        than twice as long ones, as were compared before.
        """
        if self.path != "auto":
            return self.path == "continuous"
        prompts = [sequence.prompt for sequence in self._queue]
        new_tokens = max((sequence.max_new_tokens for sequence in self._queue), default=1)
        rows = max(1, min(self.slots, len(prompts)))
        longest = max(map(len, prompts), default=0) + new_tokens
        known_rows, known_longest, fast = self._checked.get(role, (0, 0, True))
        if fast and (rows > 2 * known_rows or longest > 2 * known_longest):
            fast = self._check(role, rows, prompts, new_tokens)
            # What was asked for, though memory may have allowed fewer: it would again.
            self._checked[role] = max(rows, known_rows), max(longest, known_longest), fast
        return fast

    def _check(self, role: Role, rows: int, prompts: list[list[int]], new_tokens: int) -> bool:
        policy, where = self.policy, f"{role} on {self.policy.device}"
        policy.switch(role)
        budget = cache_budget(policy.device, self.memory_fraction)
        weights = self.choose_weights(role)
        found = self_check(policy, rows, weights, prompts, new_tokens, budget)
        if found.fault and weights != "separate":
            self.say(f"{where}: with {weights} weights {found.fault}; using base plus adapter")
            self.weights = "separate"
            found = self_check(policy, rows, "separate", prompts, new_tokens, budget)
        otherwise = f"{found.fault}; using plain generate in static batches"
        self.say(f"{where}: {otherwise if found.fault else found.proved}")
        return found.fault is None

    def choose_weights(self, role: Role) -> Weights:
        """How ``role``'s products are computed, as the recipe and memory say."""
        policy, wanted = self.policy, self.weights
        if wanted in ("separate", "fused"):
            return wanted
        if policy.fast is not None and policy.fast.kind == "merged":
            return "merged"
        # On CUDA the gain has not been measured; on a CPU it has (LOG.md).
        if wanted == "auto" and policy.device.type != "cpu":
            return "separate"
        need = copy_bytes(policy.inner, ADAPTERS.get(role))
        free = free_memory(policy.device, self.memory_fraction)
        if need <= MERGED_SHARE[wanted] * free:
            return "merged"
        if wanted == "merged":
            self.say(
                f"{role} on {policy.device}: merged weights would take {need / 1e9:.1f} GB of "
                f"{free / 1e9:.1f} GB that are free; using base plus adapter"
            )
            self.weights = "separate"
        return "separate"

    async def _run(self, role: Role) -> None:
        """Decode until nothing is left, giving way to coroutines after every step."""
        try:
            await asyncio.sleep(0)  # let every caller of this moment queue its requests
            self.slots = self.most_slots  # however few the last stage's lengths had allowed
            fast = self.fast(role)
            self.policy.switch(role)
            await (self._continuous(role) if fast else self._static())
        except BaseException as error:  # whatever it was, nobody may wait forever
            fault = error
            if isinstance(error, Exception) and not isinstance(error, SparError):
                reason = one_line(error, 300)
                fault = EngineError(
                    f"{role} on {self.policy.device}: generating failed ({type(error).__name__}: "
                    f"{reason}). spar-lite doctor RECIPE checks model and machine."
                )
                fault.__cause__ = error
            self._queue.clear()
            for future in list(self._open):
                if not future.done():
                    future.set_exception(fault)
            if not isinstance(error, Exception):
                raise
        finally:
            self._loop = None
            give_back(self.policy.device)

    async def _continuous(self, role: Role) -> None:
        """All that is queued through one decoder, and what is queued while it runs."""
        policy, device = self.policy, self.policy.device
        policy.speed_up(self.choose_weights(role))
        give_back(device)
        budget = cache_budget(device, self.memory_fraction)
        prefill = PREFILL_TOKENS[device.type]
        decoder = BatchDecoder(policy.inner, self.slots, self.eos, prefill, budget)
        while self._queue or not decoder.idle:
            # The longest first, so that no long one is left to run alone at the end.
            for sequence in sorted(self._queue, key=lambda s: -s.max_new_tokens):
                decoder.add(sequence)
            self._queue.clear()
            decoder.usage = self.usage
            finished = self._unless_full(decoder.step, decoder.slots)
            if finished is None:
                decoder.shrink()
                give_back(device)
            for sequence in finished or ():
                self._deliver(sequence)
            self.on_tokens(len(decoder.active))
            policy.tune_threads()
            await _give_way()

    async def _static(self) -> None:
        """Batches of like settings, sorted by prompt length, through plain ``generate``."""
        while self._queue:
            # 1. The next batch. Where a shorter prompt has more room than the longest one leaves,
            # and wants it, it waits.
            self._queue.sort(key=lambda s: (repr(s.sampling), len(s.prompt)))
            sampling = self._queue[0].sampling
            alike = [s for s in self._queue if repr(s.sampling) == repr(sampling)]
            batch = self._fitting(alike[: self.slots])
            del self._queue[: len(batch)]
            room = self.policy.positions - len(batch[-1].prompt)
            limit = min(room, max(s.max_new_tokens for s in batch))
            self._queue += [s for s in batch if s.max_new_tokens > limit]
            batch = [s for s in batch if s.max_new_tokens <= limit]
            # 2. Its replies.
            prompts = [s.prompt for s in batch]
            seed = stable_seed(self.seed, *(s.owner[0] for s in batch))
            replies = self._unless_full(
                partial(plain_generate, self.policy, prompts, limit, sampling, seed), len(batch)
            )
            if replies is None:
                self._queue += batch
                give_back(self.policy.device)
                continue
            for sequence, reply in zip(batch, replies, strict=True):
                kept, sequence.finished = cut(reply, self.policy.eos, sequence.max_new_tokens)
                sequence.tokens += kept
                self._deliver(sequence)
                self.on_tokens(len(kept))
            await _give_way()

    def _fitting(self, sequences: list[TokenSequence]) -> list[TokenSequence]:
        """The first of some sequences, sorted by prompt length, as many as fit into memory."""
        inner, new = self.policy.inner, 0
        config, itemsize = inner.config.get_text_config(), inner.dtype.itemsize
        budget = cache_budget(self.policy.device, self.memory_fraction)
        for count, sequence in enumerate(sequences):
            new = max(new, sequence.max_new_tokens)
            row = generate_bytes(config, itemsize, len(sequence.prompt), new)
            if count and (count + 1) * row > budget:
                return sequences[:count]
        return sequences

    def _unless_full(self, call: Callable[[], Found], slots: int) -> Found | None:
        """What ``call`` returns; None if memory ran out, and half as many ``slots`` go on."""
        try:
            return call()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if slots == 1:
            raise EngineError(
                f"out of memory on {self.policy.device} with one sequence at a time. Shorten "
                "max_new_tokens, choose a smaller model, or free memory on the device."
            )
        self.slots = slots // 2
        self.say(f"out of memory with {slots} sequences at a time: going on with {self.slots}")
        return None

    def _deliver(self, sequence: TokenSequence) -> None:
        name, future = sequence.owner
        prompt, reply = len(sequence.prompt), len(sequence.reply)
        self.usage.calls += 1
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += reply
        text = self.policy.decode(sequence.reply)
        if self.policy.chat.opens_thought:  # the reply begins inside it, and must show that
            text = OPEN + text
        if not future.done():
            future.set_result(Completion(name, text, prompt, reply, sequence.finished))


async def _give_way() -> None:
    """Let coroutines that just got their replies run until they wait for the next ones.

    A reply wakes ``generate``, then the gathers of a judgement, a child, a level: one turn each.
    Ending the loop a turn too early would only cost a new, empty cache.
    """
    for _ in range(TURNS):
        await asyncio.sleep(0)
