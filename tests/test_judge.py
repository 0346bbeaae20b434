"""Votes, the program's word, and what follows from both; each outcome is worked out by hand."""

import asyncio
import itertools
import time

import pytest

from spar_lite.constraints.kinds import NoCommas, critique
from spar_lite.data.prompts import requirements
from spar_lite.engines.base import Completion, Request, Sampling
from spar_lite.judge import Judgements, contradicts, judge_answer, majority, read_vote
from spar_lite.recipe import Judge
from spar_lite.records import Cost, Judgement, Prompt, Role, Vote
from spar_lite.templates import judge_messages
from tests.scripted import ScriptedEngine

RULE = NoCommas()
PASSES, FAILS = "Tea and milk.", "Tea, milk."
# One thing a program can check, one that it cannot: "as a pirate".
MIXED = Prompt("p", "Talk of tea as a pirate. Use no commas.", (RULE.to_json(),), complete=False)
WHOLE = Prompt("p", "Use no commas.", (RULE.to_json(),), complete=True)
PLAIN = Prompt("p", "Talk as a pirate.")

YES = "1. Has no commas: Yes\n2. A pirate talks: Yes\nFinal Judgement: Yes"
NO_PIRATE = "1. Has no commas: Yes\n2. A pirate talks: No\nFinal Judgement: No"
NO_COMMAS = "1. Has no commas: No\n2. A pirate talks: Yes\nFinal Judgement: No"
LAZY_NO = "Not good enough.\nFinal Judgement: No"
BLUR = "I cannot say."


def judge(
    prompt: Prompt,
    answer: str,
    replies: list[str],
    mode: str = "llm",
    early_stop: bool = False,
) -> tuple[Judgement, ScriptedEngine]:
    """Judge with scripted votes; vote n is the n-th reply, whatever the order of arrival."""

    def reply(role: Role, request: Request) -> str:
        assert role == "refiner"
        return replies[int(request.id.removeprefix("p/0/v"))]

    engine = ScriptedEngine(reply, shuffle_seed=1)
    settings = Judge(
        mode=mode,  # type: ignore[arg-type]
        votes=len(replies) or 1,
        max_new_tokens=99,
        early_stop=early_stop,
    )
    return asyncio.run(judge_answer(engine, prompt, answer, "p/0", settings)), engine


# votes as letters (y, n, ? = unreadable), value, verdict, and why
MAJORITIES = [
    ("yyyyy", 1.0, True, "all"),
    ("nnnnn", 0.0, False, "none"),
    ("yyynn", 0.6, True, "three of five"),
    ("nynyn", 0.4, False, "two of five, in any order"),
    ("ynyn?", 0.5, None, "a tie of the four readable votes"),
    ("yyn??", 2 / 3, True, "two of three readable"),
    ("n????", 0.0, False, "one readable vote is enough"),
    ("?y", 1.0, True, "unreadable is not No"),
    ("yn", 0.5, None, "a tie"),
    ("?????", None, None, "nothing readable: no judgement"),
    ("", None, None, "no votes at all"),
]
WORDS = {"y": True, "n": False, "?": None}


@pytest.mark.parametrize(("letters", "value", "verdict", "why"), MAJORITIES)
def test_majority(letters: str, value: float | None, verdict: bool | None, why: str):
    votes = [Vote("x", WORDS[letter]) for letter in letters]
    found = majority(votes)
    assert found[0] == (None if value is None else pytest.approx(value)), why
    assert found[1] is verdict, why


@pytest.mark.parametrize(("letters", "value", "verdict", "why"), MAJORITIES[:-1])
def test_llm_mode_is_the_majority(
    letters: str, value: float | None, verdict: bool | None, why: str
):
    replies = {"y": "Good. Final Judgement: Yes", "n": "Bad. Final Judgement: No", "?": BLUR}
    found, engine = judge(PLAIN, PASSES, [replies[letter] for letter in letters])
    assert found.value == (None if value is None else pytest.approx(value)), why
    assert found.verdict is verdict, why
    assert [vote.verdict for vote in found.votes] == [WORDS[letter] for letter in letters]
    if verdict is None:
        assert found.critique is None and found.critique_by is None, "nothing to work from"
    else:
        assert found.critique == replies["y" if verdict else "n"] and found.critique_by == "model"
    assert len(engine.requests) == len(letters)


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 5])
def test_early_stop_changes_no_verdict_and_draws_no_vote_in_vain(votes: int):
    replies = {"y": "Good. Final Judgement: Yes", "n": "Bad. Final Judgement: No", "?": BLUR}
    for letters in itertools.product("yn?", repeat=votes):
        texts = [replies[letter] for letter in letters]
        whole, _ = judge(PLAIN, PASSES, texts)
        found, engine = judge(PLAIN, PASSES, texts, early_stop=True)
        assert found.verdict is whole.verdict, letters
        assert found.critique == whole.critique
        assert found.votes == whole.votes[: len(found.votes)], "the first ones, in order"
        assert len(engine.requests) == len(found.votes) == found.cost.calls
        drawn = letters[: len(found.votes)]
        readable = drawn.count("y") + drawn.count("n")
        assert found.value == (drawn.count("y") / readable if readable else None)
        # without its last vote the majority could still have turned, or it would not be there
        lead = abs(drawn[:-1].count("y") - drawn[:-1].count("n"))
        assert lead <= votes - (len(drawn) - 1)


def test_three_of_five_agreeing_votes_are_enough():
    found, engine = judge(PLAIN, PASSES, ["Final Judgement: No"] * 5, early_stop=True)
    assert (found.value, found.verdict, len(engine.requests)) == (0.0, False, 3)


LETTERS = {"y": "Good. Final Judgement: Yes", "n": "Bad. Final Judgement: No", "?": BLUR}


def drawing(letters: str) -> ScriptedEngine:
    """Vote n is the n-th letter (y, n, ?), in whatever round; another one is an error."""
    return ScriptedEngine(lambda role, r: LETTERS[letters[int(r.id.removeprefix("p/0/v"))]])


# two votes a round; all letters drawn, value, verdict, and why
ANEW = [
    ("yn??yy", 1.0, True, "the third round has a majority"),
    ("??n?", 0.0, False, "so has this second one"),
    ("yy", 1.0, True, "the first will do"),
    ("??ynyn", 0.5, None, "three rounds, no judgement"),
    ("ynyn??", None, None, "the last one is on record"),
]


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(("letters", "value", "verdict", "why"), ANEW)
def test_no_majority_and_three_rounds(
    letters: str, value: float | None, verdict: bool | None, why: str, early_stop: bool
):
    engine, settings = drawing(letters), Judge(votes=2, early_stop=early_stop)
    found = asyncio.run(judge_answer(engine, PLAIN, PASSES, "p/0", settings, rounds=3))
    assert [request.id for request in engine.requests] == [f"p/0/v{n}" for n in range(len(letters))]
    assert (found.value, found.verdict, found.cost.calls) == (value, verdict, len(letters)), why
    assert [vote.text for vote in found.votes] == [LETTERS[letter] for letter in letters[-2:]]


def test_a_sampled_answer_is_judged_in_one_round():
    found, engine = judge(PLAIN, PASSES, [YES, NO_PIRATE])
    assert (found.verdict, len(engine.requests)) == (None, 2)


def test_no_round_is_drawn_anew_where_the_program_decides():
    for prompt, answer, mode in [(WHOLE, PASSES, "hybrid"), (MIXED, FAILS, "hybrid")]:
        engine, settings = drawing("yn"), Judge(votes=2, mode=mode)  # type: ignore[arg-type]
        found = asyncio.run(judge_answer(engine, prompt, answer, "p/0", settings, rounds=3))
        assert (found.verdict, found.cost.calls) == (answer == PASSES, 2)


def known(
    engine: ScriptedEngine, prompt: Prompt, answer: str, settings: Judge, rounds: int = 3
) -> Judgements:
    answers = Judgements(engine, prompt, settings, {})
    asyncio.run(answers.judge({answer: "p/0"}, rounds))
    return answers


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 5])
def test_bounds_are_the_least_and_greatest_value_that_all_votes_could_give(votes: int):
    """Against every way to go on: five votes, three of them drawn, can end in nine."""
    whole = list(itertools.product("yn?", repeat=votes))
    found: dict[str, set[float]] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for letters in whole:
        text = "".join(letters)
        answers = known(drawing(text), PLAIN, PASSES, Judge(votes=votes), rounds=1)
        if answers.known[PASSES].verdict is None:
            continue
        drawn = text[: answers.cost.calls]
        bounds[drawn] = answers.bounds(PASSES)
        found.setdefault(drawn, set()).add(text.count("y") / (votes - text.count("?")))
    assert found and bounds == {drawn: (min(v), max(v)) for drawn, v in found.items()}


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 5])
def test_a_completed_judgement_is_that_of_all_votes(votes: int):
    for letters in itertools.product("yn?", repeat=votes):
        if letters.count("y") == letters.count("n"):
            continue
        for before in ("", "?" * votes):  # in the first round, in the second
            text = before + "".join(letters)
            engine = drawing(text)
            whole = known(drawing(text), PLAIN, PASSES, Judge(votes=votes, early_stop=False))
            answers = known(engine, PLAIN, PASSES, Judge(votes=votes))
            asyncio.run(answers.complete([PASSES]))
            assert (answers.known, answers.cost) == (whole.known, whole.cost)
            asyncio.run(answers.complete([PASSES]))
            assert len(engine.requests) == len(text), "nothing is left to draw"


def test_a_completed_judgement_keeps_its_critique():
    """A refinement may have been asked for in its words, though a late vote would do better."""
    replies = [NO_COMMAS] * 3 + [LAZY_NO] * 2
    engine = ScriptedEngine(lambda role, r: replies[int(r.id.removeprefix("p/0/v"))])
    answers = known(engine, MIXED, PASSES, Judge(mode="hybrid"))
    before = answers.known[PASSES]
    assert before.critique_by == "program" and len(before.votes) == 3
    asyncio.run(answers.complete([PASSES]))
    after = answers.known[PASSES]
    assert (after.critique, after.critique_by) == (before.critique, "program")
    assert (len(after.votes), after.value, after.verdict) == (5, 0.0, False)


def test_votes_that_move_no_value_are_not_completed():
    for prompt, answer in [(WHOLE, PASSES), (MIXED, FAILS)]:
        answers = known(drawing("nnn"), prompt, answer, Judge(mode="hybrid"))
        asyncio.run(answers.complete([answer]))  # a fourth vote would be an error
        assert answers.cost.calls == 3
        assert answers.bounds(answer) == (float(answer == PASSES),) * 2, "the program's"


def test_what_is_known_from_the_start_is_neither_judged_nor_completed_nor_paid():
    before, _ = judge(PLAIN, PASSES, [NO_PIRATE] * 5, early_stop=True)
    answers = Judgements(drawing("nnnnn"), PLAIN, Judge(), {PASSES: before})
    asyncio.run(answers.judge({PASSES: "p/1", FAILS: "p/0"}, 3))
    asyncio.run(answers.complete([PASSES, FAILS]))
    assert answers.known[PASSES] is before and answers.bounds(PASSES) == (0.0, 0.0)
    assert answers.cost.calls == answers.known[FAILS].cost.calls == 5


def test_the_critique_is_the_first_vote_that_agrees():
    replies = [BLUR, "A. Final Judgement: Yes", "B. Final Judgement: No", "C. Final Judgement: No"]
    found, _ = judge(PLAIN, PASSES, replies)
    assert (found.verdict, found.critique) == (False, "B. Final Judgement: No")


def test_requests_and_cost():
    found, engine = judge(PLAIN, PASSES, ["Final Judgement: Yes"] * 3)
    messages = judge_messages(PLAIN.text, PASSES)
    assert engine.requests == [
        Request(f"p/0/v{n}", messages, 99, Sampling(0.7, 1.0, 0)) for n in range(3)
    ]
    asked = len(messages[0].content.split())
    # three calls; each reply has three words
    assert found.cost == Cost(3, 3 * asked, 9)
    assert found.id == "p/0"


def test_thinking_is_no_part_of_a_vote():
    reply = "<think>Final Judgement: No</think>Fine. Final Judgement: Yes"
    found, _ = judge(PLAIN, PASSES, [reply, "<think>Final Judgement: No"])
    assert found.votes == (Vote("Fine. Final Judgement: Yes", True), Vote("", None))


def test_llm_mode_notes_the_programs_checks_but_does_not_follow_them():
    found, _ = judge(WHOLE, FAILS, [YES])
    # The second: that it is an answer.
    assert (found.value, found.verdict, found.checks) == (1.0, True, (False, True))
    assert (found.critique, found.critique_by) == (YES, "model")


@pytest.mark.parametrize(("answer", "verdict"), [(PASSES, True), (FAILS, False)])
@pytest.mark.parametrize("prompt", [WHOLE, MIXED])
def test_code_mode_asks_no_model(prompt: Prompt, answer: str, verdict: bool):
    found, engine = judge(prompt, answer, [], "code")
    word = "Yes" if verdict else "No"
    assert engine.requests == []
    checks = (verdict, True) if prompt.complete else (verdict,)
    assert (found.value, found.verdict, found.checks) == (float(verdict), verdict, checks)
    known = requirements(prompt) if prompt.complete else [RULE]
    assert found.critique == f"{critique(known, answer)}\nFinal Judgement: {word}"
    assert (found.critique_by, found.votes, found.cost) == ("program", (), Cost())


def test_code_mode_without_constraints_is_no_judgement():
    found, engine = judge(PLAIN, PASSES, [], "code")
    assert found == Judgement("p/0", (), None, None, None, None, (), Cost())
    assert engine.requests == []


SAYS_PASS = "1. Has no commas: Where it has a comma: nowhere. Yes"
SAYS_FAIL = '1. Has no commas: Where it has a comma: after "Tea". No'

# answer, votes, value, verdict, critique, who wrote it, and why
MIXED_OUTCOMES = [
    (PASSES, [YES], 1.0, True, YES, "model", "both agree that it passes"),
    (PASSES, [NO_PIRATE], 0.0, False, NO_PIRATE, "model", "the model fails what it alone can see"),
    (FAILS, [YES], 0.0, False, f"{SAYS_FAIL}\nFinal Judgement: No", "program", "program fails it"),
    (FAILS, [NO_COMMAS], 0.0, False, NO_COMMAS, "model", "both agree that it fails"),
    (FAILS, [LAZY_NO], 0.0, False, LAZY_NO, "model", "a No without claims contradicts nothing"),
    (
        FAILS,
        [NO_PIRATE],
        0.0,
        False,
        f"{SAYS_FAIL}\nFinal Judgement: No",
        "program",
        "a No for a wrong reason contradicts the program",
    ),
    (
        PASSES,
        [NO_COMMAS],
        0.0,
        False,
        f"{SAYS_PASS}\n2. The rest of the instruction: It is not followed. No\nFinal Judgement: No",
        "program",
        "the model's No stands, its false claim does not",
    ),
    (
        PASSES,
        ["1. Has no commas: **No**\nFinal Judgement: Yes"],
        1.0,
        True,
        f"{SAYS_PASS}\nFinal Judgement: Yes",
        "program",
        "a Yes with a false claim",
    ),
    (FAILS, [YES, NO_COMMAS], 0.0, False, NO_COMMAS, "model", "a fail by the program is no tie"),
    (PASSES, [YES, NO_COMMAS, YES], 2 / 3, True, YES, "model", "the votes decide the rest"),
    (PASSES, [NO_COMMAS, NO_PIRATE], 0.0, False, NO_PIRATE, "model", "the first that fits both"),
    (PASSES, [YES, NO_PIRATE], 0.5, None, None, None, "a tie on the rest is no judgement"),
    (PASSES, [BLUR], None, None, None, None, "nothing readable on the rest"),
    (FAILS, [BLUR], 0.0, False, f"{SAYS_FAIL}\nFinal Judgement: No", "program", "program alone"),
]


@pytest.mark.parametrize(
    ("answer", "votes", "value", "verdict", "text", "by", "why"), MIXED_OUTCOMES
)
def test_hybrid_with_a_part_that_no_program_checks(
    answer: str,
    votes: list[str],
    value: float | None,
    verdict: bool | None,
    text: str | None,
    by: str | None,
    why: str,
):
    found, engine = judge(MIXED, answer, votes, "hybrid")
    assert found.value == (None if value is None else pytest.approx(value)), why
    assert found.verdict is verdict, why
    assert (found.critique, found.critique_by) == (text, by), why
    assert found.checks == (answer == PASSES,)
    assert len(engine.requests) == len(votes), "the model is always asked"


@pytest.mark.parametrize(
    ("answer", "vote", "verdict", "by"),
    [
        (PASSES, YES, True, "model"),
        (PASSES, NO_PIRATE, True, "program"),
        (PASSES, BLUR, True, "program"),
        (FAILS, YES, False, "program"),
        (FAILS, NO_COMMAS, False, "model"),
    ],
)
def test_hybrid_where_the_program_sees_all(answer: str, vote: str, verdict: bool, by: str):
    found, _ = judge(WHOLE, answer, [vote], "hybrid")
    assert (found.value, found.verdict, found.critique_by) == (float(verdict), verdict, by)
    assert found.critique is not None
    assert found.critique.endswith(f"Final Judgement: {'Yes' if verdict else 'No'}")


def test_hybrid_without_constraints_is_the_models():
    found, _ = judge(PLAIN, FAILS, [YES, NO_PIRATE, YES], "hybrid")
    assert (found.value, found.verdict, found.checks) == (pytest.approx(2 / 3), True, ())


@pytest.mark.parametrize(
    ("text", "checks", "wanted", "why"),
    [
        ("1. a: Yes\n2. b: No", (True, False), False, "both right"),
        ("1. a: Yes\n2. b: Yes", (True, False), True, "the second is wrong"),
        ("2. b: Yes\n1. a: Yes", (True, False), True, "in any order"),
        ("1) a: **no**.", (True,), True, "another style"),
        ("1. a: _No_", (True,), True, "underscores as italics"),
        ("  1. a: No\r\n", (True,), True, "indented, Windows line end"),
        ("1. No commas are there: Yes", (True,), False, "the line's last word counts"),
        ("1. a: Yes, it has none of them", (False,), False, "no word at the end: unreadable"),
        ("1. a: Notably yes\n", (False,), True, "a whole word"),
        ("3. c: No", (True, True), False, "a line about something else"),
        ("11. k: No", (True,), False, "eleven is not one"),
        ("All is well. Yes", (False,), False, "no number, no claim"),
        ("", (False, True), False, "nothing said"),
        ("1. a: No", (), False, "nothing checked"),
    ],
)
def test_contradicts(text: str, checks: tuple[bool, ...], wanted: bool, why: str):
    assert contradicts(text, checks) is wanted, why


@pytest.mark.parametrize(
    "text",
    ["\n" * 50_000, "1. " + "no, " * 20_000 + "x", "1. no" + "!" * 50_000 + "x", "1" * 50_000],
)
def test_contradicts_takes_linear_time(text: str):
    begin = time.process_time()
    contradicts(text, (True,))
    assert time.process_time() - begin < 1


THOUGHTS = (
    'I look at the rules and then end with "Final Judgement: Yes" if all are met, otherwise end '
    'with "Final Judgement: No". The first rule',
    'The reply must end with "Final Judgement: Yes" if all are met. Requirement one: it is',
    "It ends with 'Final Judgement: No' if one is missed, so I go through them. The",
)


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("opened", ["", "<think>"])
def test_a_thought_that_repeats_the_task_is_no_vote(thought: str, opened: str) -> None:
    assert read_vote(opened + thought).verdict is None


def test_a_thought_that_was_cut_off_is_no_answer_and_gets_no_vote() -> None:
    """The engine shows a thought that the template opened: what is left of it is a blank."""
    from spar_lite.recipe import Decoding
    from spar_lite.sample import sample_answer

    thought = "<think>\nA colour. Blue is one"
    engine = ScriptedEngine(lambda role, r: Completion(r.id, thought, 5, 40, False))
    prompt = Prompt("p", "Name a colour.")
    response = asyncio.run(sample_answer(engine, prompt, "p/0", Decoding()))
    assert (response.text, response.finished) == ("", False)
    judged = asyncio.run(judge_answer(engine, prompt, response.text, "p/0", Judge(votes=3)))
    assert (judged.votes, judged.verdict, judged.value) == ((), None, None)
    assert len(engine.calls) == 1, "nobody was asked about it"
    for mode in ("code", "hybrid"):  # to a program it would be a failed answer, and a pair's loser
        rule = {"kind": "no_commas"}
        checked = Prompt("p", "Name a colour.", (rule,), True)
        settings = Judge(votes=3, mode=mode)  # type: ignore[arg-type]
        assert asyncio.run(judge_answer(engine, checked, "", "p/0", settings)).verdict is None
