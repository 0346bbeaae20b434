"""Plain instructions made harder: by a program, by a model, by an endpoint on this machine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from spar_lite import constraints
from spar_lite.data.evolve import Evolution, evolve
from spar_lite.engines.base import Request
from spar_lite.engines.remote import RemoteEngine, open_endpoint
from spar_lite.errors import EngineError, RecipeError, StoreError
from spar_lite.loop import self_play
from spar_lite.recipe import Evolve, parse_recipe
from spar_lite.records import Prompt, Response, Role, from_json
from spar_lite.run import Run
from spar_lite.store import StageFile
from spar_lite.templates import TAXONOMY, evolve_messages, parse_evolved
from tests.scripted import ScriptedEngine, Silence

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
        assert after is not None
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
    assert not found.unreadable and not found.said_none


def test_a_prompt_that_no_constraint_fits_is_left_out() -> None:
    """One rule for all ways: the loop is about constraints, and this prompt was given none."""
    prompt = Prompt("p", " ".join(constraints.VALUES.keywords))
    chosen = settings("constraints", kinds=["keyword_include"])
    found = asyncio.run(evolve(None, prompt, chosen, 0))
    assert found.text is None and found.apply(prompt) is None
    assert not found.unreadable and not found.said_none


@pytest.mark.parametrize("kinds", [["no_comas"], ["char_sequence"]])
def test_kinds_that_cannot_be_added_are_one_line(kinds: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"^evolve\.kinds: .*") as error:
        asyncio.run(evolve(None, PLAIN, settings("constraints", kinds=kinds), 0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", [{"per_prompt": [3, 1]}, {"others": [2, 1]}, {"others": [0, 13]}, {"others": [-1, 1]}]
)
def test_ranges_that_cannot_be_drawn_from_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"evolve.*{next(iter(wrong))}"):
        settings("model", **wrong)


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
    assert found.apply(PLAIN) == Prompt("p", LONGER)
    assert found.replies == ("Tea is a drink.", LONGER)
    assert found.cost.calls == 2 and engine.calls[0][0] == "base"
    assert found.kind in TAXONOMY and found.kind in engine.requests[0].messages[0].content
    replies["0"] = "None"
    found = asyncio.run(evolve(engine, PLAIN, settings("model"), 0))
    assert found.said_none and not found.unreadable and found.apply(PLAIN) is None
    replies.update({"0": "", "1": ""})
    found = asyncio.run(evolve(engine, PLAIN, settings("model", tries=2), 0))
    assert found.unreadable and not found.said_none and found.apply(PLAIN) is None
    assert len(found.replies) == 2


def asked_for(id: str, seed: int = 0, **more: Any) -> tuple[Evolution, str]:
    """What came of a prompt, and the chat that asked for it."""
    engine = ScriptedEngine(lambda role, request: LONGER)
    prompt = Prompt(id, PLAIN.text)
    found = asyncio.run(evolve(engine, prompt, settings("model", **more), seed))
    return found, engine.requests[0].messages[0].content


def test_one_main_constraint_and_one_to_three_others_are_asked_for() -> None:
    """As the paper's code does; there the priority is on other kinds than length."""
    drawn = [asked_for(f"p-{number}") for number in range(200)]
    assert {len(found.others) for found, _ in drawn} == {1, 2, 3}
    assert {found.kind for found, _ in drawn} == set(TAXONOMY)
    assert {kind for found, _ in drawn for kind in found.others} == set(TAXONOMY) - {"length"}
    for found, chat in drawn:
        asked = [found.kind, *found.others]
        assert len(set(asked)) == len(asked)
        places = [chat.index(f"constraint: {kind} ({TAXONOMY[kind]})") for kind in asked]
        assert places == sorted(places) and chat.count("onstraint: ") == len(asked)
        assert chat.index(f"Main constraint: {found.kind}") < chat.index("Other constraint: ")
    assert asked_for("p-7") == asked_for("p-7") and asked_for("p-7") != asked_for("p-7", seed=1)


def test_a_weak_model_may_be_asked_for_one_constraint_alone() -> None:
    found, chat = asked_for("p", others=[0, 0])
    assert found.others == () and "Main constraint: " in chat and "Other constraint" not in chat


def test_the_fixed_text_comes_first() -> None:
    """So that all prompts of the stage share it as a prefix."""
    one = evolve_messages("Sing.", ("genre", "style"))[0].content
    other = evolve_messages("Dance.", ("language",))[0].content
    fixed, mark, rest = one.partition("\nMain constraint: ")
    assert mark and other.startswith(fixed + mark)
    assert rest.endswith("\n<instruction>\nSing.\n</instruction>")


def test_evolutions_of_an_earlier_version_are_read() -> None:
    data = {"id": "p", "text": LONGER, "constraints": [], "kind": "length", "said_none": False}
    data |= {"replies": [LONGER], "cost": {"calls": 1}}
    found = from_json(Evolution, json.dumps(data))
    assert found.others == () and found.apply(PLAIN) == Prompt("p", LONGER)


# --- In the loop ----------------------------------------------------------------------------------


def loop(folder: Path, lines: list[dict[str, Any]], **evolving: Any) -> tuple[Run, ScriptedEngine]:
    """A run over these prompts. The model evolves "Add", says None to "Skip" and babbles else.

    Every answer is judged Yes and No in turn, and every refinement can be read.
    """
    source = folder / "plain.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {
        "model": {"id": "x"},
        "iterations": 1,
        "prompts": {"source": str(source), "count": len(lines)},
        "bootstrap": {"source": "none"},
        "evolve": {"with": "model", **evolving},
        "sample": {"k": 2},
        "judge": {"votes": 1},
        "search": {"branch": 2, "depth": 1},
        "evaluate": {"prompts": 0},
    }

    def reply(role: Role, request: Request) -> str:
        text = request.messages[0].content.rpartition("<instruction>\n")[2].partition("\n")[0]
        if role == "base":
            return f"{text} Use capitals." if "Add" in text else "None" if "Skip" in text else "Hm."
        if len(request.messages) > 1:
            return "Mend it. [[start]] It is mended. [[end]]"
        if role == "refiner":
            good = "mended" in request.messages[0].content
            return f"It: so.\nFinal Judgement: {'Yes' if good else 'No'}"
        return "An answer."

    engine = ScriptedEngine(reply)
    return Run(parse_recipe(data), folder / "run", Silence(), make_engine=lambda _: engine), engine


def played(run: Run) -> dict[str, dict[str, Any]]:
    """Do the first iteration's self-play; its steps' summaries."""

    def steps(run: Run) -> None:
        self_play(run, 1)

    run.work(steps)
    return run.summaries(steps)


def said(run: Run) -> list[str]:
    assert isinstance(run.screen, Silence)
    return run.screen.said


def test_what_was_given_no_constraint_is_left_out_of_the_loop(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"id": "a", "text": "Add one thing to tea."},
        {"id": "b", "text": "Skip tea."},
        {"id": "c", "text": "Drink tea."},
        {"id": "d", "text": "Name a tea.", "constraints": [{"kind": "no_commas"}]},
        {"id": "e", "text": "Add two things to tea."},
    ]
    run, _ = loop(tmp_path, lines)
    marks = played(run)
    found = marks["iteration-1/evolutions"]
    assert {key: found[key] for key in ("evolved", "said_none", "unreadable", "left_out")} == {
        "evolved": 2, "said_none": 1, "unreadable": 1, "left_out": 2,
    }  # fmt: skip
    folder = tmp_path / "run" / "iteration-1"
    prompts = StageFile(folder, "prompts", Prompt).load()
    assert [p.id for p in prompts] == ["a", "d", "e"]
    assert marks["iteration-1/prompts"]["prompts"] == 3
    assert prompts[0].text == "Add one thing to tea. Use capitals."
    assert prompts[1] == Prompt("d", "Name a tea.", ({"kind": "no_commas"},))
    responses = StageFile(folder, "responses", Response).load()
    assert [r.prompt_id for r in responses] == ["a", "a", "d", "d", "e", "e"]
    assert marks["iteration-1/trees"]["trees"] == 3  # all later stages take fewer than count
    assert not said(run)  # two of five are not most of them


def test_another_number_of_requests_at_a_time_changes_nothing(tmp_path: Path) -> None:
    run, _ = loop(tmp_path, [{"text": "Add to tea."}])
    played(run)
    for change, bound in ({"parallel": 3}, False), ({"tries": 5}, True):
        data = run.recipe.model_dump(mode="python", by_alias=True)
        data["evolve"] |= change
        other = Run(parse_recipe(data), run.folder, Silence())
        if bound:
            with pytest.raises(StoreError, match=r"evolve\.tries"):
                other.unfinished(lambda run: self_play(run, 1))
        else:
            assert not other.unfinished(lambda run: self_play(run, 1))


def test_most_prompts_left_out_is_said_in_one_line(tmp_path: Path) -> None:
    lines = [{"text": f"{word} tea."} for word in ("Add to", "Skip", "Skip the", "Drink")]
    run, _ = loop(tmp_path, lines)
    assert played(run)["iteration-1/prompts"]["prompts"] == 1
    (line,) = said(run)
    assert line.startswith("3 of 4 prompts are left out of iteration 1")
    assert "2 said None, 1 had no readable reply" in line and "evolve.tries" in line
    assert "\n" not in line


def test_all_prompts_left_out_stops_before_anything_is_answered(tmp_path: Path) -> None:
    run, engine = loop(tmp_path, [{"text": f"{word} tea."} for word in ("Skip", "Drink")])
    with pytest.raises(RecipeError) as error:
        played(run)
    line = str(error.value)
    assert line.startswith("evolve: iteration 1 wants prompts with constraints, found none")
    assert "1 said None, 1 had no readable reply" in line and "evolutions.jsonl" in line
    assert "evolve.tries" in line and "--run" in line and "\n" not in line
    assert {role for role, _ in engine.calls} == {"base"}
    asked = len(engine.calls)
    with pytest.raises(RecipeError, match="found none"):
        played(run)
    assert len(engine.calls) == asked  # what is known is not asked again


def test_what_was_trained_already_is_not_lost(tmp_path: Path) -> None:
    run, _ = loop(tmp_path, [{"text": "Skip tea."}])
    warmed = run.recipe.model_dump(mode="python", by_alias=True)
    warmed["bootstrap"]["source"] = "constraints"
    run.recipe = parse_recipe(warmed)
    with pytest.raises(RecipeError, match=f"bootstrap.start_from={run.folder} "):
        played(run)


def test_a_program_that_fits_nothing_is_told_about_its_kinds(tmp_path: Path) -> None:
    lines = [{"text": " ".join(constraints.VALUES.keywords)}]
    run, _ = loop(tmp_path, lines, kinds=["keyword_include"], **{"with": "constraints"})
    with pytest.raises(RecipeError, match=r"no constraint fits.*evolve\.kinds"):
        played(run)


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


def endpoint(recipe: Evolve) -> RemoteEngine:
    return open_endpoint(recipe, {"base": recipe.model}, "evolve.model")


def ask(url: str, key: str | None = None) -> Any:
    engine = RemoteEngine(url, {"base": "some-model"}, key, 2, "evolve.model", pause=0.0)
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
    engine = endpoint(settings("openai", model="m", key_env="MY_KEY"))
    assert (engine.key, engine.parallel) == ("k", 8)
    with pytest.raises(EngineError, match=r"evolve\.model wants"):
        endpoint(settings("openai"))
    with pytest.raises(EngineError, match=r"evolve\.url wants http"):
        endpoint(settings("openai", model="m", url="file:///x"))
    for url in ("http://", "http://a b/v1", "http://a:port/v1", "http://[::1/v1"):
        with pytest.raises(EngineError, match=r"evolve\.url wants http"):
            endpoint(settings("openai", model="m", url=url))


@pytest.mark.parametrize("stray", ["\n", "\r", " ", "\r\n"])
def test_white_space_around_a_key_is_dropped(
    url: str, stray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"sk-THIS-IS-SECRET{stray}")
    Handler.script = [(200, FINE)]
    engine = endpoint(settings("openai", model="m", url=url))
    asyncio.run(evolve(engine, PLAIN, settings("openai"), 0))
    assert Handler.seen[0]["key"] == "Bearer sk-THIS-IS-SECRET"


def test_no_output_holds_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in errors, not in what a server says back, not in a repr, not of the address."""
    said = []
    for key in ("sk-SECRET\u2013dash", "sk-SECRET\nX: y", "sk-SECRET\x7f"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(EngineError, match="OPENAI_API_KEY holds characters") as error:
            endpoint(settings("openai", model="m"))
        said.append(str(error.value))
    for answer in ((401, {"error": "Incorrect API key: sk-SECRET"}), (200, {"sk-SECRET": 1})):
        Handler.script = [answer]
        with pytest.raises(EngineError) as error:
            ask(url, "sk-SECRET")
        said.append(str(error.value))
    address = "http://me:sk-SECRET@127.0.0.1:9/v1?token=sk-SECRET"
    engine = RemoteEngine(address, {"base": "m"}, "sk-SECRET", 2, pause=0.0)
    with pytest.raises(EngineError) as error:
        asyncio.run(evolve(engine, PLAIN, settings("openai"), 0))
    said += [str(error.value), repr(engine)]
    # A key that came in past ``open_endpoint``, and that the HTTP library quotes in its refusal.
    with pytest.raises(EngineError) as error:
        ask(url, "sk-SECRET\n")
    said.append(str(error.value))
    assert not [line for line in said if "SECRET" in line]
