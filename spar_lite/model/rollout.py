"""The rollout engine: the engine protocol over one policy.

All requests in flight are decoded together (``slots``); coroutines that await a reply are resumed
between two steps, so a tree goes on while others still decode. Before the fast path is trusted it
is compared with plain forward passes on this device, role by role, at the batch sizes and lengths
that are asked for; where it differs, ``generate`` in static batches takes over, and the engine says
so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from spar_lite.engines.base import OPEN, Completion, Request
from spar_lite.errors import EngineError, SparError
from spar_lite.model.machine import cache_budget, free_memory, give_back, is_out_of_memory
from spar_lite.model.merged import copy_bytes
from spar_lite.model.policy import ADAPTERS, Policy
from spar_lite.model.reference import Check, cut, plain_generate, self_check
from spar_lite.model.slots import PREFILL_TOKENS, Counts, Decoder, TokenSequence
from spar_lite.recipe import EngineSettings
from spar_lite.records import Role, stable_seed

SLOTS = {"cpu": 64, "cuda": 256}
"""Sequences decoded at a time, at most. Speed rises with them (LOG.md); memory sets the end."""

TURNS = 12
"""Turns of the event loop after a step; more than any chain of awaits in the method is long."""


@dataclass(slots=True)
class Usage(Counts):
    """What the engine has done since the last ``take_usage``."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    capacity: int = 0

    def count(self, decoder: Decoder) -> None:
        """Add what a decoder did since it was last asked."""
        done, decoder.counts = decoder.counts, Counts()
        for part in fields(Counts):
            setattr(self, part.name, getattr(self, part.name) + getattr(done, part.name))
        self.capacity += done.steps * decoder.slots

    @property
    def occupancy(self) -> float:
        """Mean running sequences over capacity, per decoding step."""
        return self.running / self.capacity if self.capacity else 0.0


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
        self.slots = settings.batch or SLOTS[policy.device.type]
        self.eos = policy.eos
        self.weights = settings.weights
        self.memory_fraction = memory_fraction
        self.path = settings.path
        self.say = say
        self.usage = Usage()
        self.on_tokens: Callable[[int], None] = lambda _: None
        self._checked: dict[Role, tuple[int, int, bool]] = {}
        self._queue: list[tuple[Request, list[int], asyncio.Future[Completion]]] = []
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
        encoded = [self._encode(request) for request in requests]
        while self._loop is not None and self._role != role:
            if self._open:
                raise EngineError(f"asked for {role} while {self._role} is still answering")
            await self._loop  # its last reply is out, and it is about to end
        self._role = role
        loop = asyncio.get_running_loop()
        futures = []
        for request, ids in encoded:
            future: asyncio.Future[Completion] = loop.create_future()
            self._queue.append((request, ids, future))
            self._open.add(future)
            future.add_done_callback(self._open.discard)
            futures.append(future)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(role))
        return list(await asyncio.gather(*futures))

    def _encode(self, request: Request) -> tuple[Request, list[int]]:
        """The request with a limit that the model's positions allow, and its token ids."""
        ids = self.policy.encode(request.messages)
        room = request.max_new_tokens
        if self.policy.positions is not None:
            room = min(room, self.policy.positions - len(ids))
        if room < 1:
            raise EngineError(
                f"{request.id}: its prompt has {len(ids)} tokens, and the model reads "
                f"{self.policy.positions} with the reply. Shorten the prompts, or choose a model "
                "with more positions."
            )
        return replace(request, max_new_tokens=room), ids

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
        prompts = [ids for _, ids, _ in self._queue]
        new_tokens = max((request.max_new_tokens for request, _, _ in self._queue), default=1)
        rows = max(1, min(self.slots, len(prompts)))
        longest = max(map(len, prompts), default=0) + new_tokens
        known_rows, known_longest, fast = self._checked.get(role, (0, 0, True))
        if fast and (rows > 2 * known_rows or longest > 2 * known_longest):
            fast = self._check(role, rows, prompts, new_tokens)
            # What was asked for, though memory may have allowed fewer: it would again.
            self._checked[role] = max(rows, known_rows), max(longest, known_longest), fast
        return fast

    def _check(self, role: Role, rows: int, prompts: list[list[int]], new_tokens: int) -> bool:
        self.policy.switch(role)
        where = f"{role} on {self.policy.device}"
        budget = cache_budget(self.policy.device, self.memory_fraction)

        def check(merged: bool) -> Check:
            return self_check(self.policy, rows, merged, prompts, new_tokens, budget)

        found = check(self.merges(role))
        if found.fault and self.merges(role):
            self.say(f"{where}: with merged weights {found.fault}; using base plus adapter")
            self.weights = "separate"
            found = check(False)
        if found.fault:
            self.say(f"{where}: {found.fault}; using plain generate in static batches")
        else:
            self.say(f"{where}: {found.proved}")
        return found.fault is None

    def merges(self, role: Role) -> bool:
        """Whether ``role`` answers with fast weights (``merged``), as the recipe and memory say."""
        if self.weights != "auto":
            return self.weights == "merged"
        # On CUDA the gain has not been measured; on a CPU it has (LOG.md).
        if self.policy.device.type != "cpu" or self.policy.fast is not None:
            return self.policy.fast is not None
        need = copy_bytes(self.policy.inner, ADAPTERS.get(role))
        return need < free_memory(self.policy.device, self.memory_fraction) / 4

    async def _run(self, role: Role) -> None:
        """Decode until nothing is left, giving way to coroutines after every step."""
        try:
            await asyncio.sleep(0)  # let every caller of this moment queue its requests
            fast = self.fast(role)
            self.policy.switch(role)
            await (self._continuous() if fast else self._static())
        except BaseException as error:  # whatever it was, nobody may wait forever
            fault = error
            if isinstance(error, Exception) and not isinstance(error, SparError):
                reason = " ".join(str(error).split())[:300]
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

    async def _continuous(self) -> None:
        if self.merges(self.policy.role or "base"):
            self.policy.speed_up()
        decoder = self._decoder()
        owners: dict[int, tuple[Request, asyncio.Future[Completion]]] = {}
        while self._queue or not decoder.idle:
            # The longest first, so that no long one is left to run alone at the end.
            self._queue.sort(key=lambda item: -item[0].max_new_tokens)
            for request, ids, future in self._queue:
                sequence = self._sequence(request, ids)
                owners[id(sequence)] = (request, future)
                decoder.add(sequence)
            self._queue.clear()
            for sequence in self._step(decoder):
                request, future = owners.pop(id(sequence))
                self._deliver(request, sequence.prompt, sequence.reply, sequence.finished, future)
            self.usage.count(decoder)
            self.on_tokens(len(decoder.active))
            await _give_way()

    def _decoder(self) -> Decoder:
        """A decoder with an empty cache, as large as the memory that is free now allows."""
        policy = self.policy
        give_back(policy.device)
        budget = cache_budget(policy.device, self.memory_fraction)
        prefill = PREFILL_TOKENS[policy.device.type]
        return Decoder(policy.inner, self.slots, self.eos, prefill, budget)

    def _step(self, decoder: Decoder) -> list[TokenSequence]:
        """One step; out of memory, half as many sequences go on, and none is lost."""
        try:
            return decoder.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self._halve(decoder.slots)
        decoder.shrink()
        give_back(self.policy.device)
        return []

    def _halve(self, slots: int) -> None:
        if slots == 1:
            raise EngineError(
                f"out of memory on {self.policy.device} with one sequence at a time. Shorten "
                "max_new_tokens, choose a smaller model, or free memory on the device."
            )
        self.slots = slots // 2
        self.say(f"out of memory with {slots} sequences at a time: going on with {self.slots}")

    async def _static(self) -> None:
        """Batches of like settings, sorted by prompt length, through plain ``generate``."""
        while self._queue:
            self._queue.sort(key=lambda item: (repr(item[0].sampling), len(item[1])))
            sampling = self._queue[0][0].sampling
            size = next(
                (n for n, item in enumerate(self._queue) if item[0].sampling != sampling),
                len(self._queue),
            )
            batch = self._queue[: min(size, self.slots)]
            del self._queue[: len(batch)]
            limit = max(request.max_new_tokens for request, _, _ in batch)
            if self.policy.positions is not None:
                # The shorter prompts' room is not the longest one's: who wants more waits.
                longest = max(len(ids) for _, ids, _ in batch)
                limit = min(limit, self.policy.positions - longest)
                self._queue += [item for item in batch if item[0].max_new_tokens > limit]
                batch = [item for item in batch if item[0].max_new_tokens <= limit]
            seed = stable_seed(self.seed, *(request.id for request, _, _ in batch))
            try:
                replies = plain_generate(
                    self.policy, [ids for _, ids, _ in batch], limit, sampling, seed
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._queue += batch
                self._halve(min(len(batch), self.slots))
                give_back(self.policy.device)
                continue
            for (request, ids, future), reply in zip(batch, replies, strict=True):
                kept, ended = cut(reply, self.policy.eos, request.max_new_tokens)
                self._deliver(request, ids, kept, ended, future)
                self.on_tokens(len(kept))
            await _give_way()

    def _sequence(self, request: Request, ids: list[int]) -> TokenSequence:
        seed = stable_seed(self.seed, self._role, request.id)
        return TokenSequence(ids, request.max_new_tokens, request.sampling, seed)

    def _deliver(
        self,
        request: Request,
        prompt: list[int],
        reply: list[int],
        finished: bool,
        future: asyncio.Future[Completion],
    ) -> None:
        self.usage.calls += 1
        self.usage.prompt_tokens += len(prompt)
        self.usage.completion_tokens += len(reply)
        text = self.policy.decode(reply)
        if self.policy.chat.opens_thought:  # the reply begins inside it, and must show that
            text = OPEN + text
        if not future.done():
            future.set_result(Completion(request.id, text, len(prompt), len(reply), finished))


async def _give_way() -> None:
    """Let coroutines that just got their replies run until they wait for the next ones.

    A reply wakes ``generate``, then the gathers of a judgement, a child, a level: one turn each.
    Ending the loop a turn too early would only cost a new, empty cache.
    """
    for _ in range(TURNS):
        await asyncio.sleep(0)
