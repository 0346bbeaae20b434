"""What a server does wrong, over a real socket: what is asked again, and what is said of it."""

from __future__ import annotations

import asyncio
import email.utils
import time
from typing import Any

import pytest

from spar_lite.engines.base import Completion, Request, Sampling
from spar_lite.engines.remote import RemoteEngine
from spar_lite.errors import EngineError
from spar_lite.records import Message
from tests.serving import Fault, State, serving

CHUNKS = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]
RIVER = "Describe a river in exactly two sentences."


def fine(content: Any = RIVER, reason: str = "stop", **more: Any) -> Fault:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
    return Fault(200, {"choices": [choice], "usage": usage, **more})


def wrong(status: int, message: str, code: Any = None, **headers: str) -> Fault:
    return Fault(status, {"error": {"message": message, "code": code or status}}, headers)


def ask(
    *faults: Fault, many: int = 1, text: str = "Hi", parallel: int = 2
) -> tuple[list[Completion], list[str], State]:
    """The completions, what was said to the user, and what the server saw."""
    said: list[str] = []
    state = State(faults=list(faults))
    with serving(state) as url:
        engine = RemoteEngine(
            url, {"base": "small"}, "sk-SECRET", parallel, "evolve.model", pause=0.01
        )
        engine.say = said.append
        asked = [Request(f"r{n}", (Message("user", text),), 8, Sampling(0.7)) for n in range(many)]
        found = asyncio.run(engine.generate("base", asked))
    return found, said, state


@pytest.mark.parametrize(
    "fault",
    [
        wrong(429, "slow down"),
        wrong(500, "oh"),
        wrong(503, "loading"),
        wrong(529, "overloaded"),
        Fault(502, "<html>Bad gateway</html>"),
        wrong(200, "Rate limit exceeded", 429),
        wrong(200, "provider failed", "server_error"),
        Fault(200, {"error": "upstream"}),
        Fault(200, {"choices": [{"error": {"code": 502, "message": "cut"}}]}),
        Fault(200, {"object": "error", "message": "busy", "code": 503}),
        Fault(cut=True),
    ],
)
def test_a_fault_that_passes_is_asked_again(fault: Fault) -> None:
    (found,), said, state = ask(fault, fault)
    assert (found.text, found.prompt_tokens, len(state.seen)) == ("small plain", 3, 3)
    assert not said


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (wrong(500, "no luck"), r"answered 500: no luck, 5 times\. The same command goes on"),
        (wrong(200, "no luck", 500), r"answered 500: no luck, 5 times\."),
        (wrong(401, "no such key: sk-SECRET"), r"no such key: \(key\)\. Is the key in the envir"),
        (wrong(404, "no model"), r"answered 404: no model\. See evolve\.url and evolve\.model\."),
        (wrong(200, "context too long", 400), r"answered 400: context too long\."),
        (Fault(200, "<html>Sign in</html>"), "no chat completion"),
        (Fault(200, {"choices": []}), "no chat completion"),
        (Fault(200, {"choices": None}), "no chat completion"),
        (Fault(200, ["?"]), "no chat completion"),
        (Fault(307, "", {"Location": "http://127.0.0.1:9/"}), "answered 307"),
    ],
)
def test_a_fault_that_stays_is_one_line(fault: Fault, words: str) -> None:
    with pytest.raises(EngineError, match=words) as error:
        ask(*[fault] * 6)
    assert "\n" not in str(error.value) and "SECRET" not in str(error.value)


def test_a_server_that_asks_for_time_is_given_it() -> None:
    """In seconds, or as a date, which is whole seconds."""
    for says, least in ((lambda: "0.3", 0.3), (lambda: email.utils.formatdate(time.time() + 3), 1)):
        begin = time.monotonic()
        ask(wrong(429, "slow down", **{"Retry-After": says()}))
        assert least <= time.monotonic() - begin
    with pytest.raises(EngineError, match="slow down and asks for 7200 s, 1 times"):
        ask(wrong(429, "slow down", **{"Retry-After": "7200"}))


def test_a_limit_of_minutes_is_waited_for_once_it_has_answered() -> None:
    """Longer than the few tries that a server gets which never answered."""
    found, said, _ = ask(fine(), *[wrong(429, "slow down")] * 9, many=3, parallel=1)
    assert len(found) == 3
    assert [line for line in said if "asking again for up to 10 minutes" in line]
    with pytest.raises(EngineError, match="slow down, 5 times"):
        ask(*[wrong(429, "slow down")] * 9)


@pytest.mark.parametrize(
    "fault",
    [
        wrong(400, "The response was filtered", "content_filter"),
        wrong(400, "triggering Azure OpenAI's content management policy"),
        wrong(403, "This model requires moderation"),
        wrong(200, "no", "content_policy_violation"),
        fine("Half of i", "content_filter"),
        fine(None, "content_filter: SAFETY"),
    ],
)
def test_a_filtered_prompt_is_out_by_name_and_the_others_are_not(fault: Fault) -> None:
    found, said, _ = ask(fault, many=3)
    assert [bool(completion.text) for completion in found].count(False) == 1
    (out,) = [completion.id for completion in found if not completion.text]
    (line,) = said
    assert line.startswith(f"{out} is left without a reply:") and "\n" not in line


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ([*CHUNKS, {"type": "text", "text": RIVER}], RIVER),
        ([{"type": "text", "text": "Describe "}, "a river."], "Describe a river."),
        ([], ""),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("a whole one \ud83d\ude00", "a whole one \U0001f600"),
    ],
)
def test_every_shape_of_content_is_read(content: Any, text: str) -> None:
    (found,), _, _ = ask(fine(content))
    assert found.text == text
    found.text.encode()


def test_half_a_pair_in_a_prompt_is_sent_as_text() -> None:
    _, _, state = ask(text="half \ud83d")
    assert state.seen[0]["messages"][0]["content"] == "half \ufffd"


def test_a_field_that_the_server_does_not_take_is_left_out_from_then_on() -> None:
    refusal = "Unrecognized request arguments supplied: min_p, repetition_penalty, top_k"
    _, said, state = ask(wrong(400, refusal), many=2, parallel=1)
    assert "top_k" in state.seen[0]
    assert not [s for s in state.seen[-2:] if {"top_k", "min_p", "repetition_penalty"} & set(s)]
    (line,) = said
    assert line.endswith("does not take min_p, repetition_penalty, top_k: left out")


def test_a_server_with_another_name_for_the_limit_is_asked_by_it() -> None:
    refusal = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    _, said, state = ask(wrong(400, refusal), many=2)
    assert state.seen[-1]["max_completion_tokens"] == 8 and "max_tokens" not in state.seen[-1]
    assert not said


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": 2}])
def test_usage_may_be_missing(usage: Any) -> None:
    (found,), _, _ = ask(fine(usage=usage))
    assert (found.prompt_tokens, found.completion_tokens) == (0, 0)


def test_a_run_that_is_stopped_waits_for_no_reply() -> None:
    """Ctrl-C cancels what is in flight, as asyncio does here."""
    begin = time.monotonic()
    with serving(State(pace=5.0)) as url:
        engine = RemoteEngine(url, {"base": "small"}, None, 2)
        asked = [Request("r", (Message("user", "Hi"),), 8, Sampling())]

        async def stop() -> None:
            async with asyncio.timeout(0.2):
                await engine.generate("base", asked)

        with pytest.raises(TimeoutError):
            asyncio.run(stop())
        assert time.monotonic() - begin < 2
