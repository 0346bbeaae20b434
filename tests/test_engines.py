"""`engine.kind: openai`: roles are served models, and a server loads each adapter when it is made.

The server is a real socket of this process that speaks the part of vLLM's protocol that is used
(`/v1/chat/completions`, `/v1/load_lora_adapter` with `load_inplace`), as seen with vLLM 0.32.0.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from spar_lite.app.cli import main
from spar_lite.engines.base import Request, Sampling
from spar_lite.engines.open import open_engine
from spar_lite.engines.remote import RemoteEngine
from spar_lite.errors import EngineError
from spar_lite.recipe import Recipe, dump_recipe, parse_recipe
from spar_lite.records import Message, Role
from spar_lite.run import Adapters, Run
from tests.scripted import Silence


class Server(BaseHTTPRequestHandler):
    """Answers with the served model's name and the adapter that it has in place."""

    adapters: ClassVar[dict[str, str]] = {}
    loads: ClassVar[bool] = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code, found = 200, dict[str, Any]()
        if self.path == "/v1/load_lora_adapter" and self.loads:
            assert body["load_inplace"] is True
            self.adapters[body["lora_name"]] = Path(body["lora_path"]).parent.name
        elif self.path == "/v1/chat/completions":
            text = f"{body['model']} {self.adapters.get(body['model'], '-')}"
            found = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            found["usage"] = {"prompt_tokens": 3, "completion_tokens": 2}
        else:
            code = 404
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def settings() -> Iterator[Recipe]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Server.adapters, Server.loads = {}, True
    engine = {"kind": "openai", "url": f"http://127.0.0.1:{server.server_port}/v1"}
    engine |= {"models": {"base": "small"}, "parallel": 4}
    yield parse_recipe({"model": {"id": "no-such-model"}, "engine": engine})
    server.shutdown()
    server.server_close()
    thread.join()


def said(engine: Any, role: Role) -> str:
    request = Request("r", (Message("user", "Who?"),), 8, Sampling())
    return asyncio.run(engine.generate(role, [request]))[0].text  # type: ignore[no-any-return]


def test_a_role_is_a_served_model_and_its_adapter_is_loaded(
    settings: Recipe, tmp_path: Path
) -> None:
    """The model itself is never loaded here: there is none of that name."""
    run = Run(settings, tmp_path, Silence())
    first, second = (
        Adapters(tmp_path / f"iteration-{n}" / "actor", tmp_path / "bootstrap" / "refiner")
        for n in (1, 2)
    )
    assert [said(run.engine, role) for role in ("base", "actor", "refiner")] == ["small -"] * 3
    run.use_adapters(first)
    assert said(run.engine, "actor") == "actor iteration-1"
    assert said(run.engine, "refiner") == "refiner bootstrap"
    run.use_adapters(second)
    assert said(run.engine, "actor") == "actor iteration-2"
    assert said(run.engine, "base") == "small -"
    # A run that goes on finds the server with other adapters, or none.
    again = Run(settings, tmp_path, Silence())
    again.use_adapters(first)
    assert said(again.engine, "actor") == "actor iteration-1"


def test_an_evaluation_asks_the_server_too(settings: Recipe, tmp_path: Path) -> None:
    """Of a run's checkpoint: what answers is its actor, and no model is loaded here."""
    actor = tmp_path / "run" / "iteration-1" / "actor"
    for folder in (actor, actor.parent / "refiner"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(settings))
    run = str(tmp_path / "run")
    done = CliRunner().invoke(main, ["eval", "constraints", run, "--count", "3"])
    assert done.exit_code == 0, done.output
    assert Server.adapters["actor"] == "iteration-1"
    answers = (tmp_path / "run/eval/iteration-1").glob("constraints*.answers.jsonl")
    assert "actor iteration-1" in next(answers).read_text()
    pytest.importorskip("lm_eval")
    done = CliRunner().invoke(main, ["eval", "general", run, "--tasks", "gsm8k"])
    assert done.exit_code == 2
    assert "Add -o engine.kind=local" in done.output


def test_a_server_that_loads_no_adapter_is_one_line(settings: Recipe, tmp_path: Path) -> None:
    Server.loads = False
    run = Run(settings, tmp_path, Silence())
    run.use_adapters(Adapters(tmp_path / "bootstrap" / "actor", None))
    with pytest.raises(EngineError, match=r"answered 404.*start vLLM with --enable-lora") as error:
        run.open_engine()
    assert "\n" not in str(error.value)


def test_an_unknown_model_names_the_key(settings: Recipe) -> None:
    engine = open_engine(settings, pytest.fail, {})
    assert isinstance(engine, RemoteEngine)
    assert engine._hint(404, "/chat/completions") == "See engine.url and engine.models."
    nameless = settings.engine.models.model_copy(update={"actor": ""})
    wrong = settings.engine.model_copy(update={"models": nameless})
    with pytest.raises(EngineError, match=r"engine\.models wants the model's name"):
        open_engine(settings.model_copy(update={"engine": wrong}), pytest.fail, {})


def test_as_many_requests_at_a_time_as_the_recipe_says(settings: Recipe) -> None:
    """More than the event loop's own threads, of which a small machine has few."""
    wanted = settings.engine.model_copy(update={"parallel": 24})
    together = threading.Barrier(24, timeout=20)
    engine = open_engine(settings.model_copy(update={"engine": wanted}), pytest.fail, {})
    assert isinstance(engine, RemoteEngine)
    post = engine._post

    def meet(path: str, body: Any) -> bytes:
        together.wait()
        return post(path, body)

    engine._post = meet  # type: ignore[method-assign]
    heard: list[int] = []
    engine.on_tokens = heard.append
    requests = [Request(str(n), (Message("user", "?"),), 8, Sampling()) for n in range(24)]
    found = asyncio.run(engine.generate("base", requests))
    assert [completion.id for completion in found] == [str(n) for n in range(24)]
    assert heard == [48]
