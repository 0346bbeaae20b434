"""The rollout engine: the engine protocol over one policy.

All requests in flight are decoded together (``slots``); coroutines that await a reply are resumed
between two steps, so a tree goes on while others still decode. Before the fast path is trusted it
is compared with plain ``generate`` on this device, role by role; where it differs, ``generate`` in
static batches takes over, and the engine says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spar_lite.engine import Completion, Request, Sampling
from spar_lite.errors import EngineError
from spar_lite.model.policy import Policy
from spar_lite.model.slots import Decoder, TokenSequence
from spar_lite.recipe import EngineSettings
from spar_lite.records import Message, Role, stable_seed

SLOTS = 64
"""Sequences decoded at a time, unless the recipe says otherwise."""

TURNS = 12
"""Turns of the event loop after a step; more than any chain of awaits in the method is long."""

CHECK_CHATS = (
    "Name a colour.",
    "Say hello to a friend in one short sentence.",
    "Name a colour of the sky.",
)
CHECK_TOKENS = 12
NEAR_TIE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest gap in logits at which two greedy tokens count as a tie, by dtype."""


@dataclass(slots=True)
class Usage:
    """What the engine has done since the last ``take_usage``."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    running: int = 0
    capacity: int = 0

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
        say: told once about the self-check's result.
    """

    def __init__(
        self,
        policy: Policy,
        settings: EngineSettings,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.policy = policy
        self.seed = seed
        self.slots = settings.batch or SLOTS
        self.path = settings.path
        self.say = say
        self.usage = Usage()
        self.on_tokens: Callable[[int], None] = lambda _: None
        self._checked: dict[Role, bool] = {}
        self._queue: list[tuple[Request, list[int], asyncio.Future[Completion]]] = []
        self._open: set[asyncio.Future[Completion]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._role: Role | None = None

    async def generate(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request as ``role``; see the protocol."""
        while self._loop is not None and self._role != role:
            if self._open:
                raise EngineError(f"asked for {role} while {self._role} is still answering")
            await self._loop  # its last reply is out, and it is about to end
        self._role = role
        loop = asyncio.get_running_loop()
        futures = []
        for request in requests:
            future: asyncio.Future[Completion] = loop.create_future()
            self._queue.append((request, self.policy.encode(request.messages), future))
            self._open.add(future)
            future.add_done_callback(self._open.discard)
            futures.append(future)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(role))
        return list(await asyncio.gather(*futures))

    def take_usage(self) -> Usage:
        """Return the usage counted so far and start anew."""
        usage, self.usage = self.usage, Usage()
        return usage

    def fast(self, role: Role) -> bool:
        """Whether this role may use the fast path on this device; checks it at first use."""
        if self.path != "auto":
            return self.path == "continuous"
        if role not in self._checked:
            self.policy.switch(role)
            fault = self_check(self.policy, self.slots)
            self._checked[role] = fault is None
            where = f"{role} on {self.policy.device}"
            if fault:
                self.say(f"{where}: {fault}; using plain generate in static batches")
            else:
                self.say(f"{where}: fast path checked, same tokens as plain generate")
        return self._checked[role]

    async def _run(self, role: Role) -> None:
        """Decode until nothing is left, giving way to coroutines after every step."""
        waiting: list[asyncio.Future[Completion]] = []
        try:
            await asyncio.sleep(0)  # let every caller of this moment queue its requests
            if self.fast(role):
                self.policy.switch(role)
                await self._continuous(waiting)
            else:
                self.policy.switch(role)
                await self._static(waiting)
        except BaseException as error:  # whatever it was, nobody may wait forever
            waiting += [future for _, _, future in self._queue]
            self._queue.clear()
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._loop = None

    async def _continuous(self, waiting: list[asyncio.Future[Completion]]) -> None:
        decoder = Decoder(self.policy.inner, self.slots, self.policy.eos, self._prefill_tokens())
        owners: dict[int, tuple[Request, asyncio.Future[Completion]]] = {}
        while self._queue or not decoder.idle:
            for request, ids, future in self._queue:
                sequence = self._sequence(request, ids)
                owners[id(sequence)] = (request, future)
                waiting.append(future)
                decoder.add(sequence)
            self._queue.clear()
            before = decoder.steps, decoder.busy_steps
            for sequence in decoder.step():
                request, future = owners.pop(id(sequence))
                self._deliver(request, sequence.prompt, sequence.reply, sequence.finished, future)
            self.usage.steps += decoder.steps - before[0]
            self.usage.running += decoder.busy_steps - before[1]
            self.usage.capacity += (decoder.steps - before[0]) * self.slots
            self.on_tokens(len(decoder.active))
            await _give_way()

    async def _static(self, waiting: list[asyncio.Future[Completion]]) -> None:
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
            waiting += [future for _, _, future in batch]
            limit = max(request.max_new_tokens for request, _, _ in batch)
            seed = stable_seed(self.seed, *(request.id for request, _, _ in batch))
            replies = plain_generate(
                self.policy, [ids for _, ids, _ in batch], limit, sampling, seed
            )
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
        if not future.done():
            future.set_result(Completion(request.id, text, len(prompt), len(reply), finished))

    def _prefill_tokens(self) -> int:
        return 8192 if self.policy.device.type == "cuda" else 512


async def _give_way() -> None:
    """Let coroutines that just got their replies run until they wait for the next ones.

    A reply wakes ``generate``, then the gathers of a judgement, a child, a level: one turn each.
    Ending the loop a turn too early would only cost a new, empty cache.
    """
    for _ in range(TURNS):
        await asyncio.sleep(0)


def plain_generate(
    policy: Policy, prompts: Sequence[list[int]], limit: int, sampling: Sampling, seed: int = 0
) -> list[list[int]]:
    """The reference path: transformers' ``generate`` on a left-padded batch; new tokens only."""
    pad = policy.tokenizer.pad_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    options: dict[str, object] = {"do_sample": False}
    if sampling.temperature > 0:
        torch.manual_seed(seed)
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    with torch.no_grad():
        output = policy.inner.generate(
            input_ids=ids.to(policy.device),
            attention_mask=mask.to(policy.device),
            max_new_tokens=limit,
            eos_token_id=list(policy.eos),
            pad_token_id=pad,
            **options,
        )
    new: list[list[int]] = output[:, longest:].tolist()
    return new


def cut(reply: list[int], eos: Sequence[int], limit: int) -> tuple[list[int], bool]:
    """Cut a reply at its first end token or at ``limit``; say whether it ended by itself."""
    for place, token in enumerate(reply[:limit]):
        if token in eos:
            return reply[:place], True
    return reply[:limit], False


def self_check(policy: Policy, slots: int) -> str | None:
    """Compare the fast path with plain ``generate``, greedy; None if they agree, else the fault.

    Tokens must be equal up to a near tie: where they part, the reference's logits of both tokens
    must lie within ``NEAR_TIE``, since another batch shape may round the other way.
    """
    if not _full_attention(policy.inner.config.get_text_config()):
        # A window shorter than a long reply: no short check could find the difference.
        return "the model has layers without full attention"
    prompts = [policy.encode((Message("user", text),)) for text in CHECK_CHATS]
    decoder = Decoder(policy.inner, min(slots, len(prompts)), policy.eos, 64)
    sequences = [TokenSequence(p, CHECK_TOKENS, Sampling(), 0) for p in prompts]
    for sequence in sequences:
        decoder.add(sequence)
    try:
        while not decoder.idle:
            decoder.step()
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        # A model family whose attention does not fit the slot cache: the reference path serves it.
        return f"the fast path does not run ({type(error).__name__}: {str(error)[:120]})"
    for chat, prompt, sequence in zip(CHECK_CHATS, prompts, sequences, strict=True):
        wanted, _ = cut(
            plain_generate(policy, [prompt], CHECK_TOKENS, Sampling())[0], policy.eos, CHECK_TOKENS
        )
        if not _same(policy, prompt, wanted, sequence.reply):
            return f"the fast path differs from plain generate after {chat!r}"
    return None


def _full_attention(config: Any) -> bool:
    """Whether every layer attends to the whole past."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def _same(policy: Policy, prompt: list[int], wanted: list[int], found: list[int]) -> bool:
    if wanted == found:
        return True
    end = policy.eos[0]
    place = next(
        (n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
        min(len(wanted), len(found)),
    )
    ids = torch.tensor([prompt + wanted[:place]], device=policy.device)
    with torch.no_grad():
        logits = policy.inner(input_ids=ids).logits[0, -1].float()
    a, b = ((tokens[place] if place < len(tokens) else end) for tokens in (wanted, found))
    return abs(float(logits[a] - logits[b])) <= NEAR_TIE.get(policy.inner.dtype, 1e-3)
