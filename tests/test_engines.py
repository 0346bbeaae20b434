"""`engine.kind: openai`: roles are served models, and a server loads each adapter that is made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from spar_lite.app.cli import main
from spar_lite.engines.base import Request, Sampling
from spar_lite.engines.open import open_engine
from spar_lite.engines.served import RoleServer
from spar_lite.errors import EngineError, RecipeError
from spar_lite.recipe import Recipe, dump_recipe, parse_recipe
from spar_lite.records import Message, Role, stable_seed
from spar_lite.run import FRESH, Adapters, Run
from tests.scripted import Silence
from tests.serving import Fault, State, serving


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def settings(state: State) -> Iterator[Recipe]:
    with serving(state) as url:
        yield recipe_for(url)


def recipe_for(url: str, **more: Any) -> Recipe:
    engine = {"kind": "openai", "url": url, "models": {"base": "small"}, "parallel": 4, **more}
    return parse_recipe({"model": {"id": "/no-such-model"}, "engine": engine})


def adapter(folder: Path, weights: str | None = None) -> Path:
    """An adapter's folder as far as a server is concerned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(weights or folder.parent.name)
    return folder


def request(id: str = "r", **sampling: Any) -> Request:
    return Request(id, (Message("user", "Who?"),), 8, Sampling(**sampling))


def said(engine: Any, role: Role, id: str = "r", **sampling: Any) -> str:
    return asyncio.run(engine.generate(role, [request(id, **sampling)]))[0].text  # type: ignore[no-any-return]


def opened(settings: Recipe, folder: Path | None = None, **adapters: Path) -> RoleServer:
    engine = open_engine(settings, pytest.fail, adapters, folder=folder)  # type: ignore[arg-type]
    assert isinstance(engine, RoleServer)
    engine.pause, engine.poll, engine.patience = 0.01, 0.02, 20.0
    return engine


def notes(engine: RoleServer) -> list[str]:
    found: list[str] = []
    engine.say = found.append
    return found


# --- Roles and adapters ---------------------------------------------------------------------------


def test_a_role_is_a_served_model_and_its_adapter_is_loaded(
    settings: Recipe, tmp_path: Path
) -> None:
    """The model itself is never loaded here: there is none of that name."""
    run = Run(settings, tmp_path, Silence())
    refiner = adapter(tmp_path / "bootstrap" / "refiner")
    first, second = (
        Adapters(adapter(tmp_path / f"iteration-{n}" / "actor"), refiner) for n in (1, 2)
    )
    run.use_adapters(FRESH)
    assert [said(run.engine, role) for role in ("base", "actor", "refiner")] == ["small plain"] * 3
    run.use_adapters(first)
    assert said(run.engine, "actor") == "actor iteration-1"
    assert said(run.engine, "refiner") == "refiner bootstrap"
    run.use_adapters(second)
    assert said(run.engine, "actor") == "actor iteration-2"
    assert said(run.engine, "base") == "small plain"
    # A run that goes on finds the server with other adapters, or none.
    again = Run(settings, tmp_path, Silence())
    again.use_adapters(first)
    assert said(again.engine, "actor") == "actor iteration-1"


def test_what_is_in_place_is_not_loaded_again(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    actor = adapter(tmp_path / "iteration-1" / "actor")
    for _ in range(2):  # the second is a run that goes on
        engine = opened(settings, tmp_path, actor=actor)
        assert said(engine, "actor") == "actor iteration-1"
    assert len([s for s in state.seen if s["path"].endswith("load_lora_adapter")]) == 1


def test_the_same_path_with_new_weights_is_loaded_again(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    engine = opened(settings, tmp_path, actor=adapter(tmp_path / "actor", "one"))
    assert said(engine, "actor") == "actor one"
    engine.use("actor", adapter(tmp_path / "actor", "two"))
    assert said(engine, "actor") == "actor two"


def test_a_server_that_cannot_load_in_place_unloads_first(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    state.inplace = False
    engine = opened(settings, tmp_path, actor=adapter(tmp_path / "one" / "actor"))
    assert said(engine, "actor") == "actor one"
    engine.use("actor", adapter(tmp_path / "two" / "actor"))
    assert said(engine, "actor") == "actor two"


def test_adapters_that_say_the_same_are_told_apart_by_loading(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    """A server without log-probabilities: what is in place cannot be known, so it is loaded."""
    state.logprobs = False
    same = [adapter(tmp_path / name / "actor", "alike") for name in ("one", "two")]
    (same[1] / "adapter_config.json").write_text("{}")
    (same[1] / "adapter_model.safetensors").write_text("alike ")  # other bytes
    engine = opened(settings, tmp_path, actor=same[0])
    for number, folder in enumerate((same[0], same[1], same[0])):
        engine.use("actor", folder)
        assert said(engine, "actor").startswith("actor alike")
        loads = [s["lora_path"] for s in state.seen if s["path"].endswith("load_lora_adapter")]
        assert len(loads) == number + 1 and loads[-1] == str(folder)


def test_one_that_only_says_that_it_loaded_is_found_out(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    engine = opened(settings, tmp_path, actor=adapter(tmp_path / "one" / "actor"))
    assert said(engine, "actor") == "actor one"
    state.deaf = True
    state.adapters = {"actor": "one"}
    engine.use("actor", adapter(tmp_path / "two" / "actor"))
    with pytest.raises(EngineError, match=r"answers as actor as it did with other weights"):
        said(engine, "actor")


def test_an_adapter_that_learnt_nothing_answers_as_the_base(
    state: State, settings: Recipe, tmp_path: Path
) -> None:
    """It cannot be told from the base by what it says, nor need it."""
    folder = tmp_path / "iteration-1" / "actor"
    folder.mkdir(parents=True)
    tensors = {"x.lora_A.weight": np.ones((2, 2)), "x.lora_B.weight": np.zeros((2, 2))}
    save_file(tensors, folder / "adapter_model.safetensors")
    engine = opened(settings, tmp_path, actor=folder)
    assert said(engine, "actor") == said(engine, "base")
    assert not state.adapters


def test_no_message_shows_a_password_of_the_address() -> None:
    for url in ("https://me:s3cret@host :8/v1", "ftp://me:s3cret@host/v1"):
        with pytest.raises(EngineError, match="wants http") as error:
            opened(recipe_for(url))
        assert "s3cret" not in str(error.value)
    with pytest.raises(RecipeError, match="start wants a url on this machine") as fault:
        recipe_for("https://me:s3cret@far/v1", start="vllm serve")
    assert "s3cret" not in str(fault.value)


def test_the_path_is_the_servers(state: State, tmp_path: Path) -> None:
    """The run's folder is mounted elsewhere there; here a link plays the mount."""
    (tmp_path / "mounted").symlink_to(tmp_path / "run")
    actor = adapter(tmp_path / "run" / "iteration-1" / "actor")
    with serving(state) as url:
        settings = recipe_for(url, adapter_path=f"{tmp_path}/mounted/")
        assert said(opened(settings, tmp_path / "run", actor=actor), "actor") == "actor iteration-1"
    (load,) = [s for s in state.seen if s["path"].endswith("load_lora_adapter")]
    assert load["lora_path"] == f"{tmp_path}/mounted/iteration-1/actor"


def test_a_path_that_the_server_does_not_see_names_the_key(state: State, tmp_path: Path) -> None:
    with serving(state) as url:
        settings = recipe_for(url, adapter_path="/elsewhere")
        engine = opened(settings, tmp_path, actor=adapter(tmp_path / "one" / "actor"))
        with pytest.raises(EngineError, match=r"No adapter found.*engine\.adapter_path") as error:
            said(engine, "actor")
    assert "\n" not in str(error.value)


def test_a_server_that_loads_no_adapter_is_waited_for(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    """One line says what to start; the run goes on when it answers with the new weights."""
    state.loads, state.adapters = False, {"actor": "one"}
    engine = opened(settings, tmp_path, actor=adapter(tmp_path / "one" / "actor"))
    assert said(engine, "actor") == "actor one"  # it was started with it
    lines, two = notes(engine), adapter(tmp_path / "two" / "actor")
    engine.use("actor", two)

    def start_anew() -> None:
        while not lines:
            time.sleep(0.01)
        time.sleep(0.1)
        state.adapters = {"actor": "two"}

    thread = threading.Thread(target=start_anew)
    thread.start()
    assert said(engine, "actor") == "actor two"
    thread.join()
    (line,) = lines
    assert f"--enable-lora --lora-modules actor={two.resolve()}" in line and "\n" not in line


# --- What is sent ---------------------------------------------------------------------------------


def test_every_field_that_decides_a_draw_is_sent(state: State) -> None:
    with serving(state) as url:
        engine = opened(recipe_for(url, extra={"min_tokens": 2, "top_p": 0.5}))
        said(engine, "base", "a/0", temperature=0.7, top_p=0.9, top_k=40)
        said(engine, "base", "a/1")
    drawn, greedy = state.chats()[-2:]
    wanted = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.5, "top_k": 40, "min_tokens": 2}
    wanted |= {"seed": stable_seed(0, "base", "a/0"), "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: drawn[name] for name in wanted} == wanted
    assert greedy["top_k"] == -1 and "seed" not in greedy


def test_prompts_are_our_token_ids_where_the_server_reads_them(
    state: State, settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it returns is read by our tokenizer: what is trained is what was sampled."""

    class Letters:
        eos_token_id = 7

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    class Template:
        tokenizer, opens_thought = Letters(), True

        def encode(self, messages: Any) -> list[int]:
            return [ord(letter) for letter in messages[-1].content]

    state.ids = True
    engine = opened(settings)
    engine.load_chat = Template
    assert said(engine, "base") == "<think>small plain"
    asked = state.seen[-1]
    assert (asked["path"], asked["prompt"]) == ("/v1/completions", [87, 104, 111, 63])
    assert asked["stop_token_ids"] == [7]
    assert engine.take_usage().prompt_tokens == 4
    # Prompt and reply share the server's 100 positions.
    long = Request("long", (Message("user", "x" * 95),), 8, Sampling())
    asyncio.run(engine.generate("base", [long]))
    assert state.seen[-1]["max_tokens"] == 5
    with pytest.raises(EngineError, match="its prompt has 101 tokens, and the server reads 100"):
        too_long = Request("too", (Message("user", "x" * 101),), 8, Sampling())
        asyncio.run(engine.generate("base", [too_long]))
    # A server whose words for the same tokens are others.
    monkeypatch.setattr(Letters, "decode", lambda *_, **__: "other words")
    with pytest.raises(EngineError, match="has another tokenizer than model"):
        engine.use("actor", None)
        engine._looked = False
        said(engine, "actor")


def test_usage_is_counted_here_where_the_server_does_not(state: State, settings: Recipe) -> None:
    class Template:
        opens_thought = False

        def encode(self, messages: Any) -> list[int]:
            return list(range(7))

        @staticmethod
        def tokenizer(text: str) -> dict[str, list[int]]:
            return {"input_ids": [0] * len(text.split())}

    engine = opened(settings)
    engine.load_chat = Template
    choice = {"message": {"content": "three words here"}, "finish_reason": "stop"}
    state.faults = [Fault(200, {"choices": [choice]})]
    assert said(engine, "base") == "three words here"
    usage = engine.take_usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3)


def test_as_many_requests_at_a_time_as_the_recipe_says(state: State, settings: Recipe) -> None:
    heard: list[int] = []
    engine, state.pace = opened(settings), 0.01
    engine.on_tokens = heard.append
    found = asyncio.run(engine.generate("base", [request(str(n)) for n in range(60)]))
    assert [completion.id for completion in found] == [str(n) for n in range(60)]
    assert sum(heard) == 120 and 1 < state.busiest <= 4
    assert engine.take_usage().completion_tokens == 120
    assert engine.take_usage().calls == 0


# --- Which model answers --------------------------------------------------------------------------


def test_names_that_are_not_served_are_said_before_anything_is_asked(
    settings: Recipe, state: State
) -> None:
    state.names = ("large",)
    with pytest.raises(EngineError, match=r"serves large, and engine\.models\.base wants small"):
        said(opened(settings), "base")
    nameless = settings.engine.models.model_copy(update={"actor": ""})
    wrong = settings.engine.model_copy(update={"models": nameless})
    with pytest.raises(EngineError, match=r"engine\.models wants the model's name"):
        opened(settings.model_copy(update={"engine": wrong}))


def test_another_model_under_the_old_name_is_refused(
    settings: Recipe, state: State, tmp_path: Path
) -> None:
    assert said(opened(settings, tmp_path), "base") == "small plain"
    state.weights = "and of other weights"
    with pytest.raises(EngineError, match=r"another model as small.*server\.json") as error:
        said(opened(settings, tmp_path), "base")
    assert "\n" not in str(error.value)
    assert len(state.chats()) == 1


def test_an_evaluation_asks_the_server_too(settings: Recipe, state: State, tmp_path: Path) -> None:
    """Of a run's checkpoint: what answers is its actor, and no model is loaded here."""
    for role in ("actor", "refiner"):
        adapter(tmp_path / "run" / "iteration-1" / role)
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(settings))
    run = str(tmp_path / "run")
    done = CliRunner().invoke(main, ["eval", "constraints", run, "--count", "3"])
    assert done.exit_code == 0, done.output
    assert state.adapters["actor"] == "iteration-1"
    answers = (tmp_path / "run/eval/iteration-1").glob("constraints*.answers.jsonl")
    assert "actor iteration-1" in next(answers).read_text()
    assert (tmp_path / "run" / "server.json").is_file()
    pytest.importorskip("lm_eval")
    done = CliRunner().invoke(main, ["eval", "general", run, "--tasks", "gsm8k"])
    assert done.exit_code == 2
    assert "Add -o engine.kind=local" in done.output


# --- A server that comes and goes -----------------------------------------------------------------


def free_port() -> int:
    with serving(State()) as url:
        return int(url.rpartition(":")[2].partition("/")[0])


def start_server(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.serving", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "serving\n"
    return server


def end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


def test_a_server_that_is_killed_and_started_again_gets_its_adapters_back(tmp_path: Path) -> None:
    port = free_port()
    engine = opened(
        recipe_for(f"http://127.0.0.1:{port}/v1"), actor=adapter(tmp_path / "one" / "actor")
    )
    lines = notes(engine)
    servers = [start_server(port)]

    async def ask() -> list[str]:
        found = []
        for number in range(40):
            if number == 20:
                end(servers[0])
                servers.append(await asyncio.to_thread(start_later, port))
            asked = [request(f"{number}/{k}") for k in range(3)]
            found += [c.text for c in await engine.generate("actor", asked)]
        return found

    def start_later(port: int) -> subprocess.Popen[str]:
        time.sleep(0.2)
        return start_server(port)

    try:
        assert asyncio.run(ask()) == ["actor one"] * 120
    finally:
        end(servers[-1])
    assert not lines  # a moment is not worth a word


def test_minutes_away_are_said_once_and_its_return(tmp_path: Path) -> None:
    port = free_port()
    engine = opened(recipe_for(f"http://127.0.0.1:{port}/v1"))
    lines = notes(engine)
    server = start_server(port)

    async def ask() -> None:
        nonlocal server
        await engine.generate("base", [request()])
        end(server)
        asked = asyncio.gather(*(engine.generate("base", [request(str(n))]) for n in range(6)))
        await asyncio.sleep(1.0)
        server = await asyncio.to_thread(start_server, port)
        await asked

    try:
        asyncio.run(ask())
    finally:
        end(server)
    away, back = lines
    assert "cannot be reached" in away and "asking again for up to" in away
    assert back.endswith("answers again")


def test_one_that_was_never_there_is_said_soon() -> None:
    engine = opened(recipe_for(f"http://127.0.0.1:{free_port()}/v1"))
    with pytest.raises(EngineError, match=r"cannot be reached.*5 times\. The same command goes on"):
        said(engine, "base")


# --- A server that the run starts -----------------------------------------------------------------


def started(port: int, **more: Any) -> Recipe:
    command = (sys.executable, "-m", "tests.serving")
    return recipe_for(f"http://127.0.0.1:{port}/v1", start=command, **more)


def listeners(port: int) -> list[int]:
    """The processes that were started for this port, the guard included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"--port {port}" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def test_the_run_starts_the_server_and_ends_it(tmp_path: Path) -> None:
    port = free_port()
    run = Run(started(port), tmp_path / "run", screen := Silence())

    def loop(run: Run) -> None:
        if run.listing is None:
            assert said(run.engine, "base") == "small plain"
            assert listeners(port)
            run.open_engine().rest()  # type: ignore[attr-defined]
            assert not listeners(port)
            assert said(run.engine, "base") == "small plain"

    run.work(loop)
    assert not listeners(port)
    log = tmp_path / "run" / "server.log"
    assert log.read_text() == "serving\nserving\n"
    assert any(str(log) in line for line in screen.said)


def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    engine = opened(started(port), tmp_path, actor=adapter(tmp_path / "one" / "actor"))
    try:
        assert said(engine, "actor") == "actor one"
        for pid in listeners(port):
            os.kill(pid, signal.SIGKILL)
        assert said(engine, "actor") == "actor one"
    finally:
        engine.close()
    assert not listeners(port)


KILLED = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.test_engines import opened, said, started
engine = opened(started(int(sys.argv[2])), Path(sys.argv[3]))
said(engine, "base")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_end_of_the_run_leaves_the_server_behind(number: int, tmp_path: Path) -> None:
    port, here = free_port(), str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", KILLED, here, str(port), str(tmp_path)]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=here
    )
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    assert listeners(port)
    run.send_signal(number)
    run.communicate()
    deadline = time.monotonic() + 10
    while listeners(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listeners(port)


def test_what_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    for command, words in (
        ("no-such-program --x", "no-such-program: No such file or directory"),
        ((sys.executable, "-c", "raise SystemExit('no card')"), "It said: no card"),
    ):
        engine = opened(recipe_for(url, start=command), tmp_path)
        with pytest.raises(EngineError, match=words) as error:
            said(engine, "base")
        assert "\n" not in str(error.value) and "server.log" in str(error.value)
    with serving(State()) as taken:
        engine = opened(recipe_for(taken, start="vllm serve x"), tmp_path)
        with pytest.raises(EngineError, match="something answers on port"):
            said(engine, "base")


@pytest.mark.parametrize("padding", [0, 285])
@pytest.mark.parametrize(
    "option",
    [
        ["--api-key", "sk-GIVEN"],
        ["--api-key=sk-GIVEN"],
        ["--api-key", "one", "sk-GIVEN"],
        ["--hf-token", "hf-GIVEN"],
    ],
)
def test_what_a_server_says_while_it_starts_is_shown_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], padding: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    monkeypatch.setattr("spar_lite.engines.process.LINE_EVERY", 0.0)
    # Said in the course of the start, then at its failure; of a long text the end is shown.
    code = (
        "import os, sys, time; print(sys.argv, os.environ['OPENAI_API_KEY'], flush=True);"
        f"print('x' * {padding}); time.sleep(1.2); sys.exit('no card')"
    )
    url, shown = f"http://127.0.0.1:{free_port()}/v1", []
    engine = opened(recipe_for(url, start=[sys.executable, "-c", code, *option]), tmp_path)
    assert engine.process is not None
    engine.process.say = shown.append
    with pytest.raises(EngineError, match="no card") as error:
        said(engine, "base")
    text = "\n".join([*shown, str(error.value)])
    assert any(": 0 s: " in line or ": 1 s: " in line for line in shown)
    assert "SECRET" not in text and "GIVEN" not in text
    assert padding or "(key)" in text


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"start": "vllm serve x"}, "start wants kind: openai"),
        ({"kind": "openai", "start": "vllm 'x"}, "start wants a command line, found No closing"),
        ({"kind": "openai", "start": "x", "url": "http://far/v1"}, "start wants a url on this"),
    ],
)
def test_a_start_that_cannot_be_is_refused_by_the_recipe(engine: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"model": {"id": "m"}, "engine": engine})


def test_a_model_that_needs_the_card_puts_the_server_to_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server that starts again drops the model. The card is played by a name."""
    from types import SimpleNamespace

    import spar_lite.model
    from spar_lite.model import machine

    port = free_port()
    run = Run(started(port), tmp_path / "run", Silence())
    monkeypatch.setattr(machine, "pick_device", lambda _: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(machine, "give_back", lambda _: None)
    loaded: list[bool] = []

    def load(*_: Any) -> Any:
        loaded.append(bool(listeners(port)))
        return SimpleNamespace(
            chat=SimpleNamespace(thoughts_when_training=None),
            device="cuda",
            quantized=True,
            encode=lambda _: [],
            restore=lambda *_: None,
        )

    monkeypatch.setattr(spar_lite.model.Policy, "load", load)
    run.use_adapters(FRESH)
    assert said(run.engine, "base") == "small plain"
    assert run.policy is not None and loaded == [False]
    assert said(run.engine, "base") == "small plain"
    assert run._policy is None and listeners(port)
    run.open_engine().close()  # type: ignore[attr-defined]


def test_server_json_holds_no_secret(
    settings: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    engine = opened(settings, tmp_path, actor=adapter(tmp_path / "one" / "actor"))
    said(engine, "actor")
    found = json.loads((tmp_path / "server.json").read_text())
    assert len(found) == 2
    assert "SECRET" not in (tmp_path / "server.json").read_text() + repr(engine)
