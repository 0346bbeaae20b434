"""``engine.kind: openai``: a server that answers as base, actor and refiner of one run.

On top of ``remote``: before a role answers, the server's names and its base are looked at, and the
role's adapter is put in place; again whenever the server was away, since one that was started anew
has lost its adapters, or has old ones. That an adapter is in place is seen from what it answers;
see ``fingerprint``. Where the server takes token ids, prompts are our template's, and replies are
read by our tokenizer, so that what is trained is what was sampled.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.numpy import load_file

from spar_lite.engines.base import OPEN, Completion, Request
from spar_lite.engines.fingerprint import QUESTION, TOKENS, Fingerprint, Fingerprints
from spar_lite.engines.process import ADAPTERS_MAY_CHANGE, ServerProcess
from spar_lite.engines.remote import RemoteEngine, _plain, whole_text
from spar_lite.engines.transport import Busy, Refused
from spar_lite.errors import EngineError
from spar_lite.records import Message, Role

NOT_THERE = (404, 405, 501)
"""What a server answers to a path that it does not know."""

PROBE = [1, 2, 3]
"""Token ids that every vocabulary has."""


class Chat(Protocol):
    """A chat template with its tokenizer; see ``model.chat``."""

    tokenizer: Any
    opens_thought: bool

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """A chat as token ids, the assistant's turn opened."""
        ...


@dataclass
class RoleServer(RemoteEngine):
    """Engine over a server that has the run's base and takes its adapters.

    ``folder``: the run's; its ``server.json`` keeps fingerprints. ``adapter_path``: that folder as
    the server sees it, "" if as here. ``load_chat``: the base's template, None where it is not to
    be had; asked for only if the server takes token ids, or does not count them. ``options``: of
    the template. ``process``: the server, if the run starts it; ``make_room``: called before it
    starts.
    """

    folder: Path | None = None
    adapter_path: str = ""
    load_chat: Callable[[], Chat | None] = field(default=lambda: None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    process: ServerProcess | None = field(default=None, repr=False)
    make_room: Callable[[], None] = field(default=lambda: None, repr=False)
    poll: float = 5.0
    _wanted: dict[Role, Path | None] = field(default_factory=dict, repr=False)
    _placed: dict[Role, str] = field(default_factory=dict, repr=False)
    _looked: bool = field(default=False, repr=False)
    _chat: Chat | None = field(default=None, repr=False)
    _room: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prints = Fingerprints(self.folder / "server.json" if self.folder else None)

    def use(self, role: Role, folder: Path | None) -> None:
        """Have ``role`` answer with this adapter from now on; None: as the base does."""
        self._wanted[role] = folder
        self._placed.pop(role, None)

    def rest(self) -> None:
        """Stop the server, if the run started it, until it is asked again."""
        if self.process is not None and self.process.running:
            self.say("the server rests: its memory is needed")
            self.process.stop()
            self._forget()

    def close(self) -> None:
        """End what was started."""
        if self.process is not None:
            self.process.stop()

    def _forget(self) -> None:
        self._placed.clear()
        self._looked = False

    async def _try(self, role: Role, request: Request) -> Completion:
        try:
            async with (await self.wire.here()).ready:
                name = await self._ready(role)
            return await self._ask(name, role, request)
        except Busy as busy:
            if busy.away:
                self._forget()
            raise
        except Refused as fault:
            if fault.code != 404 or self._wanted.get(role) is None:
                raise
            self._forget()  # it was started anew, and nobody saw it
            raise Busy(str(fault), fault.code) from None

    async def _ready(self, role: Role) -> str:
        """The name that answers as ``role``, with its adapter in place.

        Raises:
            EngineError: the server is another than it was, or does not take the adapter.
        """
        if self.process is not None and not self.process.running:
            self.make_room()
            self._forget()
            await self.process.start(self._healthy)
        if not self._looked:
            await self._look()
            self._looked = True
        if role not in self._placed:
            self._placed[role] = await self._place(role)
        return self._placed[role]

    async def _healthy(self) -> bool:
        try:
            await self.wire.send("/health")
        except Busy:
            return False
        except Refused:
            return True  # it answers, and has no such page
        return True

    # --- The server itself ------------------------------------------------------------------------

    async def _look(self) -> None:
        """Look at the server's names, at how it takes prompts, and whether its base is ours."""
        base = self.models["base"]
        try:
            found = await self.wire.send("/models")
            cards = {card["id"]: card for card in found["data"]}
        except (Refused, KeyError, TypeError):
            cards = {}  # one that lists none is asked by name all the same
        if cards and base not in cards:
            raise EngineError(
                f"{self.wire.shown} serves {', '.join(sorted(cards))}, and engine.models.base "
                f"wants {base}. Give it one of these names, or serve that model."
            )
        room = cards.get(base, {}).get("max_model_len")
        self._room = room if isinstance(room, int) else None
        if self._chat is None and await self._takes_ids():
            self._chat = self.load_chat()
        said = await self._fingerprint(base)
        before = self.prints.known.get("base")
        if said is None:
            raise EngineError(f"{self.wire.shown} does not answer as {base}. See engine.models.")
        if before is not None and not said.like(before):
            raise EngineError(
                f"{self.wire.shown} serves another model as {base} than this run began with: asked "
                f"for a colour it said {said.text[:60]!r}, and before {before.text[:60]!r}. Serve "
                f"the old one, or remove {self.prints.path} if you know it to be the same."
            )
        if before is None or not said.same(before):
            self.prints.note("base", said)

    async def _takes_ids(self) -> bool:
        """Whether the server reads a list of numbers as that many tokens."""
        body = {"model": self.models["base"], "prompt": PROBE, "max_tokens": 1}
        try:
            found = await self._send("/completions", body)
            return bool(found["usage"]["prompt_tokens"] == len(PROBE))
        except (Refused, KeyError, TypeError):
            return False

    async def _fingerprint(self, name: str) -> Fingerprint | None:
        """What ``name`` answers greedily; None where the server has no such model."""
        body = {"model": name, "temperature": 0.0, "max_tokens": TOKENS}
        try:
            if self._chat is None:
                asked = [{"role": m.role, "content": m.content} for m in QUESTION]
                body |= {"messages": asked, "logprobs": True, **self._template()}
                found = await self._send("/chat/completions", body)
            else:
                asked_ids = {"prompt": self._chat.encode(QUESTION), "return_token_ids": True}
                found = await self._send("/completions", {**body, **asked_ids, "logprobs": 0})
        except Refused as fault:
            if fault.code == 404:
                return None
            raise
        try:
            choice = found["choices"][0]
            logprobs = choice.get("logprobs") or {}
            steps = logprobs.get("token_logprobs") or [
                step["logprob"] for step in logprobs.get("content") or ()
            ]
            said = Fingerprint(self._text(choice), tuple(float(step) for step in steps))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise self.wire.foreign(error) from None
        self._mind_tokenizer(choice)
        return said

    def _mind_tokenizer(self, choice: Mapping[str, Any]) -> None:
        """Refuse a server whose words for its tokens are not ours."""
        ids, theirs = choice.get("token_ids"), choice.get("text")
        if self._chat is None or not ids or not isinstance(theirs, str):
            return
        ours = self._decode(ids)
        if not ours.strip().startswith(theirs.strip().rstrip("\ufffd")):
            raise EngineError(
                f"{self.wire.shown} has another tokenizer than model.id: for the same tokens it "
                f"says {theirs[:40]!r}, and ours {ours[:40]!r}. Does it serve the same model?"
            )

    # --- Adapters ---------------------------------------------------------------------------------

    async def _place(self, role: Role) -> str:
        """Put a role's adapter in place unless it is; the name that then answers."""
        folder, base, name = self._wanted.get(role), self.models["base"], self.models[role]
        if role == "base" or (role in self._wanted and folder is None):
            return base
        if folder is None:
            return name  # as the server has it
        if list(self.models.values()).count(name) > 1:
            raise EngineError(f"engine.models wants three names, found {name} twice.")
        if _changes_nothing(folder):
            return base
        digest = _digest(folder)
        before = await self._fingerprint(name)
        # By its words alone an adapter is not known: two may say the same.
        if before is not None and before.logprobs and self.prints.is_of(before, digest):
            return name
        body = {"lora_name": name, "lora_path": self._seen_by_server(folder)}
        try:
            await self._load(body)
        except Refused as fault:
            if fault.code not in NOT_THERE or "adapter" in fault.said.lower():
                raise EngineError(
                    f"{self.wire.shown} does not load {body['lora_path']}: {fault.said[:200]} "
                    "(engine.adapter_path says how the server sees the run's folder)"
                ) from None
            await self._wait_for_restart(name, digest, before)
            return name
        said = await self._fingerprint(name)
        if said is not None and said.logprobs and self._stale(said, digest):
            await self._unload(name)
            await self._load(body)
            said = await self._fingerprint(name)
        if said is None or (said.logprobs and self._stale(said, digest)):
            raise EngineError(
                f"{self.wire.shown} says that it has loaded {body['lora_path']}, and answers as "
                f"{name} as it did with other weights. Start it anew; the same command goes on."
            )
        self.prints.note(digest, said)
        return name

    def _stale(self, said: Fingerprint, digest: str) -> bool:
        return self.prints.other(said, digest) is not None

    def _seen_by_server(self, folder: Path) -> str:
        """An adapter's folder as the server sees it."""
        folder = folder.resolve()
        if self.adapter_path and self.folder and folder.is_relative_to(self.folder.resolve()):
            inside = folder.relative_to(self.folder.resolve()).as_posix()
            return f"{self.adapter_path.rstrip('/')}/{inside}"
        return str(folder)

    async def _load(self, body: Mapping[str, Any]) -> None:
        """Load an adapter by vLLM's endpoint: in place, or where that is not known, anew."""
        try:
            await self.wire.send("/load_lora_adapter", {**body, "load_inplace": True})
        except Refused as fault:
            if fault.code != 400 or "already" not in fault.said:
                raise
            await self._unload(body["lora_name"])
            await self.wire.send("/load_lora_adapter", dict(body))

    async def _unload(self, name: str) -> None:
        await self.wire.send("/unload_lora_adapter", {"lora_name": name})

    async def _wait_for_restart(self, name: str, digest: str, said: Fingerprint | None) -> None:
        """Say what to start anew, and wait until ``name`` answers as it has not done before."""
        asked, away = False, False
        while said is None or (self._stale(said, digest) and not (away and not said.logprobs)):
            if not asked:
                asked = True
                self.say(
                    f"{self.wire.shown} loads no adapters by itself. Start it anew, and this run "
                    f"goes on when it answers as {name} with the new weights: {self._command()}"
                )
            await asyncio.sleep(self.poll)
            try:
                said = await self._fingerprint(name)
            except Busy as busy:
                away = away or busy.away
        self.prints.note(digest, said)

    def _command(self) -> str:
        """How vLLM is started with the adapters that are wanted."""
        wanted = [
            f"{self.models[role]}={self._seen_by_server(folder)}"
            for role, folder in self._wanted.items()
            if folder is not None
        ]
        words = ["vllm", "serve", "MODEL", "--served-model-name", self.models["base"]]
        words += ["--enable-lora", "--lora-modules", *wanted]
        setting = " ".join(f"{key}={value}" for key, value in ADAPTERS_MAY_CHANGE.items())
        return f"{setting} {shlex.join(words)}"

    # --- Prompts and replies ----------------------------------------------------------------------

    async def _ask(self, name: str, role: Role, request: Request) -> Completion:
        body = {"model": name, **self._drawing(role, request)}
        if self._chat is None:
            body |= {"messages": _plain(request), **self._template(), **self.extra}
            return self._read(request, await self._send("/chat/completions", body))
        ids = self._chat.encode(request.messages)
        if self._room is not None:
            body["max_tokens"] = min(request.max_new_tokens, self._room - len(ids))
        if body["max_tokens"] < 1:
            raise EngineError(
                f"{request.id}: its prompt has {len(ids)} tokens, and the server reads "
                f"{self._room} with the reply. Shorten the prompts, or start it with more."
            )
        end = [self._chat.tokenizer.eos_token_id]
        body |= {"prompt": ids, "return_token_ids": True, "stop_token_ids": end, **self.extra}
        return self._read(request, await self._send("/completions", body))

    def _template(self) -> dict[str, Any]:
        return {"chat_template_kwargs": dict(self.options)} if self.options else {}

    def _text(self, choice: Mapping[str, Any]) -> str:
        if "message" in choice:
            return super()._text(choice)
        ids = choice.get("token_ids")
        text = self._decode(ids) if ids is not None and self._chat else str(choice["text"] or "")
        if self._chat and self._chat.opens_thought:
            text = OPEN + text
        return whole_text(text)

    def _decode(self, ids: Sequence[int]) -> str:
        assert self._chat is not None
        return str(self._chat.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _count(self, request: Request, text: str) -> tuple[int, int]:
        """By our tokenizer, where there is one."""
        chat = self._chat or self.load_chat()
        if chat is None:
            return 0, 0
        return len(chat.encode(request.messages)), len(chat.tokenizer(text)["input_ids"])


def _digest(folder: Path) -> str:
    """What tells one adapter from another: its bytes.

    Raises:
        EngineError: there is none.
    """
    try:
        with (folder / "adapter_model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        raise EngineError(f"{folder} holds no adapter_model.safetensors.") from None


def _changes_nothing(folder: Path) -> bool:
    """Whether an adapter answers as the base does: LoRA's B is 0, as nothing was to be learnt."""
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, TypeError, SafetensorError):
        return False  # what cannot be read here is the server's to judge
    return not any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
