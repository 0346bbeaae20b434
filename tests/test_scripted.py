"""The scripted engine keeps the promises that the other tests lean on."""

import asyncio

import pytest
from tests.scripted import ScriptedEngine

from spar_lite.engine import Completion, Engine, Request, Sampling
from spar_lite.records import Message, Role


def request(id: str) -> Request:
    return Request(id, (Message("user", "how are you"), Message("user", "now")), 9, Sampling())


def test_tokens_are_words():
    engine = ScriptedEngine(lambda role, request: f"{role} {request.id} here")
    (done,) = asyncio.run(engine.generate("actor", [request("a")]))
    # "how are you" + "now" = 4 words asked, 3 words answered
    assert done == Completion("a", "actor a here", 4, 3, finished=True)
    assert engine.requests == [request("a")]


def test_a_completion_is_passed_on_as_it_is():
    cut = Completion("a", "cut", 7, 9, finished=False)
    engine = ScriptedEngine(lambda role, request: cut)
    assert asyncio.run(engine.generate("base", [request("a")])) == [cut]


def test_shuffled_calls_finish_out_of_order_but_return_in_order():
    async def go(engine: Engine) -> list[str]:
        calls = (engine.generate("actor", [request(str(n))]) for n in range(30))
        return [done[0].text for done in await asyncio.gather(*calls)]

    names = [str(n) for n in range(30)]
    orders = []
    for seed in (1, 1, 2):
        engine = ScriptedEngine(lambda role, request: request.id, shuffle_seed=seed)
        assert asyncio.run(go(engine)) == names
        orders.append(engine.finished)
    assert orders[0] == orders[1] != orders[2], "an order follows from its seed"
    assert sorted(orders[0]) == sorted(names) and orders[0] != names


def test_two_roles_in_flight_are_an_error():
    async def go(roles: tuple[Role, Role]) -> None:
        engine: Engine = ScriptedEngine(lambda role, request: "fine")
        await asyncio.gather(*(engine.generate(role, [request("a")]) for role in roles))

    asyncio.run(go(("actor", "actor")))
    with pytest.raises(AssertionError, match='"refiner" was called while "actor" is in flight'):
        asyncio.run(go(("actor", "refiner")))


def test_one_role_after_the_other_is_fine_even_after_a_failure():
    def fail(role: Role, request: Request) -> str:
        if role == "actor":
            raise ValueError("no")
        return "fine"

    async def go() -> None:
        engine = ScriptedEngine(fail)
        with pytest.raises(ValueError, match="no"):
            await engine.generate("actor", [request("a")])
        assert (await engine.generate("refiner", [request("b")]))[0].text == "fine"

    asyncio.run(go())
