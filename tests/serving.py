"""A small real server that speaks the part of vLLM's protocol that is used, as seen with 0.32.0.

In this process behind a socket (`serving`), or as a program of its own that can be killed:
``python -m tests.serving --port N``. It answers with the served model's name and the adapter in
place; what it does wrong is given as `Fault`s, in the order in which chats come.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from spar_lite.engines.base import Request, Sampling
from spar_lite.records import Message


@dataclass
class Fault:
    """A status and a body in place of an answer; ``cut``: the connection ends in the middle."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class State:
    """What the server is, and what it was asked.

    ``ids``: whether it reads token ids. ``reply``: what it says to a chat, given the body, in place
    of its name and weights.
    """

    weights: str = "plain"
    names: tuple[str, ...] = ("small",)
    loads: bool = True
    inplace: bool = True
    deaf: bool = False
    ids: bool = False
    logprobs: bool = True
    adapters: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    busiest: int = 0
    busy: int = 0
    pace: float = 0.0
    reply: Callable[[dict[str, Any]], str] | None = None
    lock: Any = field(default_factory=threading.Lock)

    def chats(self) -> list[dict[str, Any]]:
        """The chats it was asked, but for the question of the fingerprint."""
        chats = [asked for asked in self.seen if asked["path"] == "/v1/chat/completions"]
        return [asked for asked in chats if asked["messages"][-1]["content"] != QUESTION]


QUESTION = "Name a colour, and say in one sentence where it is seen."


class Handler(BaseHTTPRequestHandler):
    """One call to the server."""

    state: State
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            names = (*self.state.names, *self.state.adapters)
            self.reply(200, {"data": [{"id": name, "max_model_len": 100} for name in names]})
        else:
            self.reply(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.state
        with state.lock:
            state.seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
            state.busy += 1
            state.busiest = max(state.busiest, state.busy)
        time.sleep(state.pace)
        try:
            if self.path == "/v1/load_lora_adapter" and state.loads:
                self.load(body)
            elif self.path == "/v1/unload_lora_adapter" and state.loads:
                del state.adapters[body["lora_name"]]
                self.reply(200, "Success")
            elif self.path == "/v1/completions" and state.ids:
                self.answer(body, len(body["prompt"]))
            elif self.path == "/v1/chat/completions":
                self.answer(body, 3)
            else:
                self.reply(404, {"detail": "Not Found"})
        finally:
            with state.lock:
                state.busy -= 1

    def load(self, body: dict[str, Any]) -> None:
        name, path = body["lora_name"], Path(body["lora_path"])
        if not (path / "adapter_model.safetensors").is_file():
            self.reply(404, {"error": {"message": f"No adapter found for {path}", "code": 404}})
        elif name in self.state.adapters and not (self.state.inplace and body.get("load_inplace")):
            said = f"The lora adapter '{name}' has already been loaded"
            self.reply(400, {"error": {"message": said, "code": 400}})
        else:
            if not self.state.deaf:
                weights = (path / "adapter_model.safetensors").read_bytes()
                short = len(weights) < 100  # a test's own words; real ones by what tells them apart
                told = weights.decode() if short else hashlib.sha256(weights).hexdigest()
                self.state.adapters[name] = told
            self.reply(200, f"Success: LoRA adapter '{name}' added successfully.")

    def answer(self, body: dict[str, Any], tokens: int) -> None:
        state, name = self.state, body["model"]
        asked = body.get("messages", [{}])[-1].get("content")
        if asked != QUESTION and state.faults:
            return self.fail(state.faults.pop(0))
        if name not in (*state.names, *state.adapters):
            said = f"The model `{name}` does not exist."
            return self.reply(404, {"error": {"message": said, "code": 404}})
        text = f"{name} {state.adapters.get(name, state.weights)}"
        if state.reply and asked != QUESTION:
            text = state.reply(body)
        choice: dict[str, Any] = {"finish_reason": "stop"}
        logprob = -(sum(text.encode()) % 97) / 10
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            choice["logprobs"] = {"content": [{"logprob": logprob}]} if state.logprobs else None
        else:
            choice |= {"text": text, "logprobs": {"token_logprobs": [logprob]}}
            if body.get("return_token_ids"):
                choice["token_ids"] = [ord(letter) for letter in text]
        usage = {"prompt_tokens": tokens, "completion_tokens": 2}
        self.reply(200, {"choices": [choice], "usage": usage})

    def fail(self, fault: Fault) -> None:
        if not fault.cut:
            return self.reply(fault.status, fault.body, fault.headers)
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(b'{"choices":')
        self.close_connection = True

    def reply(self, code: int, found: Any, headers: dict[str, str] | None = None) -> None:
        data = (found if isinstance(found, str) else json.dumps(found)).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


@contextlib.contextmanager
def serving(state: State, port: int = 0) -> Iterator[str]:
    """The address of a server with this state, for as long as the context lasts."""
    handler = type("Served", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def by_rule(body: dict[str, Any]) -> str:
    """What the scripted engine of a loop says; a request is known by its seed, or its words."""
    from tests.loops import rule

    chat = tuple(Message(**message) for message in body["messages"])
    return rule("base", Request(str(body.get("seed", chat)), chat, 16, Sampling()))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--weights", default="plain")
    parser.add_argument("--rule", action="store_true", help="answer as tests.loops does")
    given = parser.parse_args()
    state = State(given.weights, reply=by_rule if given.rule else None)
    print("serving", flush=True)  # noqa: T201
    with serving(state, given.port):
        threading.Event().wait()


if __name__ == "__main__":
    main()
