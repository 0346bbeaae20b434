"""Plain instructions made harder: by a program, by a model, by an endpoint on this machine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from scripted import ScriptedEngine

from spar_lite import constraints
from spar_lite.engine import Request
from spar_lite.errors import EngineError
from spar_lite.evolve import evolve
from spar_lite.prompts import TAXONOMY, parse_evolved
from spar_lite.recipe import Evolve, parse_recipe
from spar_lite.records import Prompt, Role
from spar_lite.remote import RemoteEngine, open_remote

PLAIN = Prompt("p", "Describe the history of tea in England.")
LONGER = "Describe the history of tea in England in exactly three sentences."


def settings(way: str, **more: Any) -> Evolve:
    return parse_recipe({"model": {"id": "x"}, "evolve": {"with": way, **more}}).evolve


# --- By a program ---------------------------------------------------------------------------------


def test_a_program_adds_what_it_can_check() -> None:
    kinds = tuple(constraints.KINDS)
    for number in range(60):
        prompt = Prompt(f"p-{number}", PLAIN.text)
        found = asyncio.run(evolve(None, prompt, settings("constraints", per_prompt=[1, 3]), 0))
        after = found.apply(prompt)
        known = [constraints.from_json(data) for data in after.constraints]
        assert 1 <= len(known) <= 3 and not after.complete and after.id == prompt.id
        assert after.text.startswith(PLAIN.text) and {rule.kind for rule in known} <= set(kinds)
        for rule in known:
            assert any(phrase in after.text for phrase in rule.phrasings())
            assert not any(constraints.conflict(rule, other) for other in known if other != rule)


def test_the_program_follows_from_the_seed() -> None:
    chosen = settings("constraints", kinds=["no_commas"], per_prompt=[1, 1])
    once, again = (asyncio.run(evolve(None, PLAIN, chosen, 3)) for _ in range(2))
    assert once == again and once.constraints == ({"kind": "no_commas"},)


def test_what_has_constraints_is_left_alone() -> None:
    prompt = Prompt("p", "Sing.", ({"kind": "no_commas"},), complete=True)
    found = asyncio.run(evolve(None, prompt, settings("constraints"), 0))
    assert found.apply(prompt) == prompt


# --- By a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "readable", "text"),
    [
        (LONGER, True, LONGER),
        (f'New instruction: "{LONGER}"', True, LONGER),
        (f"<instruction>\n{LONGER}\n</instruction>", True, LONGER),
        ("None", True, None),
        ("none.", True, None),
        (PLAIN.text, False, None),  # nothing was added
        ("Tea came to England in the 17th century with traders.", False, None),  # an answer
        ("", False, None),
        (LONGER + " more" * 400, False, None),
    ],
)
def test_replies_are_validated(reply: str, readable: bool, text: str | None) -> None:
    assert parse_evolved(reply, PLAIN.text) == (readable, text)


def test_a_model_is_asked_again_and_its_none_is_honoured() -> None:
    replies = {"0": "Tea is a drink.", "1": LONGER}

    def reply(role: Role, request: Request) -> str:
        return replies[request.id.rpartition("/")[2]]

    engine = ScriptedEngine(reply)
    found = asyncio.run(evolve(engine, PLAIN, settings("model", tries=3), 0))
    assert found.apply(PLAIN).text == LONGER and found.replies == ("Tea is a drink.", LONGER)
    assert found.cost.calls == 2 and engine.calls[0][0] == "base"
    assert found.kind in TAXONOMY and found.kind in engine.requests[0].messages[0].content
    replies["0"] = "None"
    found = asyncio.run(evolve(engine, PLAIN, settings("model"), 0))
    assert found.said_none and found.apply(PLAIN) == PLAIN
    replies.update({"0": "", "1": ""})
    found = asyncio.run(evolve(engine, PLAIN, settings("model", tries=2), 0))
    assert not found.said_none and found.text is None and len(found.replies) == 2


# --- By an endpoint -------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers from ``script``, a status and a body each; keeps what it was asked."""

    script: ClassVar[list[tuple[int, Any]]] = []
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization")
        self.seen.append({"path": self.path, "key": key, **body})
        status, reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


FINE = {
    "choices": [{"message": {"content": LONGER}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4},
}


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Handler.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(url: str, key: str | None = None) -> Any:
    engine = RemoteEngine(url, "some-model", key, parallel=2, pause=0.0)
    return asyncio.run(evolve(engine, PLAIN, settings("openai"), 0))


def test_an_endpoint_is_asked_and_asked_again(url: str) -> None:
    Handler.script = [(429, {}), (503, {}), (200, FINE)]
    found = ask(url, "secret")
    assert found.text == LONGER and (found.cost.prompt_tokens, found.cost.calls) == (9, 1)
    first = Handler.seen[0]
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert (first["model"], first["max_tokens"], len(Handler.seen)) == ("some-model", 256, 3)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ((401, {"error": "no key"}), r"answered 401.*no key.*evolve\.key_env"),
        ((404, {}), r"answered 404.*evolve\.url and evolve\.model"),
        ((500, {}), r"answered 500.*5 times\. The same command goes on"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, [1]), "no chat completion"),
    ],
)
def test_what_an_endpoint_does_wrong_is_one_line(
    url: str, script: tuple[int, Any], said: str
) -> None:
    Handler.script = [script]
    with pytest.raises(EngineError, match=said) as error:
        ask(url)
    assert "\n" not in str(error.value)


def test_nobody_there() -> None:
    with pytest.raises(EngineError, match="cannot be reached"):
        ask("http://127.0.0.1:9/v1")


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    engine = open_remote(settings("openai", model="m", key_env="MY_KEY"))
    assert (engine.key, engine.parallel) == ("k", 8)
    with pytest.raises(EngineError, match=r"evolve\.model wants"):
        open_remote(settings("openai"))
    with pytest.raises(EngineError, match=r"evolve\.url wants http"):
        open_remote(settings("openai", model="m", url="file:///x"))
    for url in ("http://", "http://a b/v1", "http://a:port/v1", "http://[::1/v1"):
        with pytest.raises(EngineError, match=r"evolve\.url wants http"):
            open_remote(settings("openai", model="m", url=url))


@pytest.mark.parametrize("stray", ["\n", "\r", " ", "\r\n"])
def test_white_space_around_a_key_is_dropped(
    url: str, stray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"sk-THIS-IS-SECRET{stray}")
    Handler.script = [(200, FINE)]
    engine = open_remote(settings("openai", model="m", url=url))
    asyncio.run(evolve(engine, PLAIN, settings("openai"), 0))
    assert Handler.seen[0]["key"] == "Bearer sk-THIS-IS-SECRET"


def test_no_output_holds_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in errors, not in what a server says back, not in a repr, not of the address."""
    said = []
    for key in ("sk-SECRET\u2013dash", "sk-SECRET\nX: y", "sk-SECRET\x7f"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(EngineError, match="OPENAI_API_KEY holds characters") as error:
            open_remote(settings("openai", model="m"))
        said.append(str(error.value))
    for answer in ((401, {"error": "Incorrect API key: sk-SECRET"}), (200, {"sk-SECRET": 1})):
        Handler.script = [answer]
        with pytest.raises(EngineError) as error:
            ask(url, "sk-SECRET")
        said.append(str(error.value))
    address = "http://me:sk-SECRET@127.0.0.1:9/v1?token=sk-SECRET"
    engine = RemoteEngine(address, "m", "sk-SECRET", 2, pause=0.0)
    with pytest.raises(EngineError) as error:
        asyncio.run(evolve(engine, PLAIN, settings("openai"), 0))
    said += [str(error.value), repr(engine)]
    # A key that came in past ``open_remote``, and that the HTTP library quotes when it refuses it.
    with pytest.raises(EngineError) as error:
        ask(url, "sk-SECRET\n")
    said.append(str(error.value))
    assert not [line for line in said if "SECRET" in line]
