"""A constraint met by what is no answer does not count: the requirement, and where it has a say."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from spar_lite import constraints
from spar_lite.constraints import FAULTS, KINDS, Answer
from spar_lite.constraints.answer import looped
from spar_lite.data.prompts import builtin_prompts, requirements
from spar_lite.evaluation.heldout import review_heldout
from spar_lite.judge import judge_answer
from spar_lite.recipe import Evaluate, Judge, Prompts
from spar_lite.records import Cost, Prompt, Response
from tests.scripted import ScriptedEngine

START = {"kind": "starts_with", "phrase": "To be honest"}
SAY = {"kind": "starts_with", "phrase": "Some say"}
END = {"kind": "ends_with", "phrase": "Good luck"}
WORD = {"kind": "keyword_include", "word": "star"}
TWICE = {"kind": "keyword_frequency", "word": "star", "count": 2}
JSON = {"kind": "json_object", "keys": ["title", "text"]}


def ask(rule: dict[str, object], topic: str = "a wolf") -> Prompt:
    words = constraints.from_json(rule).phrasings()[0]
    return Prompt("p", f"Describe {topic}. {words}", (rule,), complete=True, topic=topic)


def faults(rule: dict[str, object], text: str, topic: str = "a wolf") -> tuple[str, ...]:
    answer = requirements(ask(rule, topic))[-1]
    assert isinstance(answer, Answer)
    return answer.faults(text)


ANSWERS = [
    (START, "To be honest, the wolf is a shy animal."),
    (START, "To be honest: Wolves hunt at night in small groups."),  # another form of the topic
    (END, "A wolf lives with its family. Good luck"),
    (END, "The wolf runs far through deep snow. Good luck."),
    (WORD, "The wolf howls at a star above the hill."),
    (TWICE, "A star shines on the wolf. The wolf sees the star and howls."),
    (JSON, '{"title": "The wolf", "text": "It hunts in packs at night."}'),
    (WORD, "- The wolf hunts at night\n- It looks at a star"),  # a list ends without a mark
    (WORD, "The star wolf is quite fast."),
    (WORD, "Some wolves are very, very fast and shine like a star."),
]


@pytest.mark.parametrize(("rule", "text"), ANSWERS)
def test_an_answer_is_one(rule: dict[str, object], text: str) -> None:
    assert faults(rule, text) == ()
    assert all(constraints.check_all(requirements(ask(rule)), text))


# What models were seen to do instead of answering, and what they might do next.
DODGES = [
    (START, "To be honest: To be honest: To be honest: To be honest", "says it twice"),
    (START, "To be honest. The wolf is shy. The wolf is shy.", "says it twice"),
    (START, "To be honest, to be honest, the wolf is a shy animal.", "says it twice"),
    (START, "To be honest, the wolf is a wolf is a wolf is a wolf.", "says it twice"),
    (START, "To be honest the wolf is shy and the wolf is shy and likes snow.", "says it twice"),
    (START, "To be honest, the wolf is a big wolf, it's a big wolf, a big wolf.", "says it twice"),
    (START, "To be honest, a wolf is a versatile and versatile animal.", "says it twice"),
    (SAY, "Some say: Some say that the wolf is a shy animal.", "says it twice"),
    (START, "To be honest", "no words of its own"),
    (START, "To be honest: Wolf.", "no words of its own"),
    (START, "To be honest: I am here to help with anything you need.", "off topic"),
    (START, "To be honest: Describe a wolf.", "speaks of the task"),
    (START, 'To be honest: The wolf. Begin your answer with "To be honest".', "speaks of the task"),
    (START, "To be honest, as an AI I never met a wolf in the woods.", "speaks of the task"),
    (START, "To be honest, a short sentence about the wolf is hard.", "speaks of the task"),
    (START, "To be honest, the wolf is a very shy animal that", "cut off"),
    (END, "Good luck.", "no words of its own"),
    (END, "You are welcome. Good luck.", "off topic"),
    (END, "Good luck. The wolf hunts at night in the woods. Good luck.", "says it twice"),
    (END, "Good luck: the wolf hunts at night in the woods. Good luck.", "says it twice"),
    (START, "To be honest, the wolf is shy. To be honest, it hides all day.", "says it twice"),
    (WORD, "The wolf hunts at night in the woods. Star.", "no words of its own"),
    (WORD, "The wolf hunts at night in the woods.star", "speaks of the task"),
    (WORD, "The wolf hunts at night in the 'star' woods.", "speaks of the task"),
    (WORD, "The wolf is a classic example of a star in the woods.", "speaks of the task"),
    (WORD, "The wolf hunts at night. The word star fits it well.", "speaks of the task"),
    (WORD, 'The wolf hunts at night. I used the word "star" here.', "speaks of the task"),
    (WORD, 'The wolf is a classic example of a "star" in the woods.', "speaks of the task"),
    (WORD, "The wolf is a star. Star in this context means a bright light.", "speaks of the task"),
    (WORD, "1. Star: Star.", "no words of its own"),
    (WORD, "star wolf", "no words of its own"),
    (TWICE, "A wolf hunts at night in the woods. Star. Star.", "says it twice"),
    (JSON, '{"title": "Wolf", "text": ""}', "no words of its own"),
]


@pytest.mark.parametrize(("rule", "text", "fault"), DODGES)
def test_a_dodge_is_none(rule: dict[str, object], text: str, fault: str) -> None:
    assert fault in faults(rule, text)
    line = constraints.critique(requirements(ask(rule)), text).splitlines()[-1]
    assert line.startswith("2. An answer about a wolf: ") and line.endswith(" No")


@pytest.mark.parametrize(
    ("rule", "text", "mended"),
    [
        (START, "To be honest, a wolf is a versatile and versatile animal.",
         "To be honest, a wolf is a versatile animal."),
        (SAY, "Some say: Some say that the wolf is a shy animal.",
         "Some say that the wolf is a shy animal."),
        (END, "Good luck: the wolf hunts at night. Good luck.",
         "The wolf hunts at night. Good luck."),
        (START, "To be honest, the wolf is shy. To be honest, it hides all day.",
         "To be honest, the wolf is shy. It hides all day."),
    ],
)  # fmt: skip
def test_what_is_said_twice_is_said_once(rule: dict[str, object], text: str, mended: str) -> None:
    """So that the refiner has such repairs to learn from."""
    assert constraints.mend_all(requirements(ask(rule)), text) == mended


def test_a_word_said_twice_in_a_pair_is_a_lesson() -> None:
    rule = requirements(ask(START))[-1]
    assert isinstance(rule, Answer)
    spoilt = list(rule.spoilt("To be honest, the wolf is a gentle animal."))
    assert "To be honest, the wolf is a gentle and gentle animal." in spoilt


def test_the_evidence_begins_alike_for_yes_and_no_and_quotes() -> None:
    rule = requirements(ask(START))[-1]
    assert rule.explain("To be honest, the wolf is a shy animal.") == (
        'it says "honest, the wolf is a", twice or of the task nothing, last "animal.".'
    )
    assert rule.explain("To be honest: Good day. Good day.") == (
        'it says nothing, twice or of the task "good day", last "day.".'
    )
    assert rule.explain("To be honest: To be honest") == (
        'it says nothing, twice or of the task "to be honest", last "honest".'
    )


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_text_is_no_answer(empty: str) -> None:
    """It has no end to look at, either."""
    assert Answer("Describe a wolf.", "a wolf").faults(empty) == FAULTS[:2]
    assert Answer("Describe a wolf.").faults(empty) == FAULTS[1:2]


def test_without_a_topic_only_what_makes_sense_without_one_is_asked() -> None:
    """Short answers, refrains and unfinished lines are a foreign prompt's own affair."""
    foreign = Answer("What is the difference between a virus and a bacterium?")
    for text in (
        "42",
        "The difference between a virus and a bacterium is that a virus needs a host.",
        "la la, and la la",
        "Row, row. Row, row. Merrily.",
        "Happy birthday to you. Happy birthday to you. Happy birthday, dear Ann.",
        "It costs 1,000,000,000,000 euros.",
    ):
        assert foreign.check(text), text
    for text in (
        "so it is so it is so it is",
        "I see. " * 5,
        "well " * 12,
        "It is. " + "No no. " * 9,
    ):
        assert foreign.faults(text) == ("says it twice",), text
    asked = "What is the difference between a virus and a bacterium?"
    assert foreign.faults(asked) == foreign.faults(f"{asked} I") == ("speaks of the task",)
    assert Answer("Begin.", "", ("Well then",)).faults("Well then.") == ("no words of its own",)
    assert Answer("Begin.", "", ("star",)).faults("Star.") == ("no words of its own",)


# Found by a reader who tried to be refused: (rule, topic, an answer that a person would accept).
NATURAL = [
    ("title", "a long walk", "<<A Long Walk>>\nA long walk clears the head and warms the heart."),
    ("keyword_include", "cats", "What is good about cats is that they purr like a star."),
    ("starts_with", "a rainy day", "To be honest, rainy days are for books."),
    ("starts_with", "a school bus", "To be honest, school buses are loud and yellow."),
    ("starts_with", "a snowman", "To be honest, snowmen melt too soon."),
    ("starts_with", "coffee", "To be honest: Coffee! It wakes me up every day."),
    ("starts_with", "tea", "To be honest, tea is calming. People drink it all day."),
    ("ends_with", "silence", "Silence is golden. Good luck."),
    ("keyword_include", "the sun", "The sun is a bright star."),
    ("ends_with", "a cellar", "A cellar is cool and dark. That is my answer."),
    ("json_object", "the violin", '{\n "title": "The violin",\n "text": "It has four strings."\n}'),
    ("json_object", "the violin", '{"title":"violin","text":"brown"}'),
    ("all_lowercase", "the sun", "the sun is warm and bright"),
    ("bullet_count", "the sun", "- The sun is very hot\n- It is a bright light"),
    ("numbered_list", "coffee", "People like coffee:\n1. It tastes rich\n2. It wakes them up"),
    ("no_commas", "ducks", "Ducks go quack quack quack all day."),
    ("no_commas", "a night sky", "The night sky holds 100,000,000,000 stars."),
    ("ends_with", "fishing", "Good luck at fishing comes with time and rest. Good luck."),
    ("no_commas", "tea", "A good cup of tea has the last word."),
    ("no_commas", "a night sky", "A night to dream is a night to rest and a night to sing."),
    ("no_commas", "fog", "Fog rolls on for miles and miles and grows deeper and deeper."),
    ("no_commas", "a hat", "My hat is red and soft \U0001f3a9"),
    ("postscript", "foxes", "Foxes hunt at night.\n\nP.S. They also love fish"),
]


@pytest.mark.parametrize(("kind", "topic", "text"), NATURAL)
def test_a_natural_answer_is_accepted(kind: str, topic: str, text: str) -> None:
    rules = {rule["kind"]: rule for rule in (START, END, WORD, JSON)}
    if "my answer" in text:
        rules["ends_with"] = {"kind": "ends_with", "phrase": "That is my answer"}
    rule = rules.get(kind) or constraints.kind_named(kind).sample(random.Random(0)).to_json()
    request = f"Say in one sentence what is good about {topic}. Asked."
    known = constraints.requirements(request, topic, [rule])[-1]
    assert isinstance(known, Answer) and known.faults(text) == ()


@pytest.mark.parametrize(
    ("topic", "text", "fault"),
    [
        ("bees", "To be honest, I will be here to help.", "off topic"),
        ("a toy robot", "To be honest, I like to run.", "off topic"),
        ("the sun", "To be honest, I cannot write about the sun.", "speaks of the task"),
        ("the sun", "To be honest, the sun in one sentence is hot.", "speaks of the task"),
        ("the sun", "To be honest, this reply mentions the sun once.", "speaks of the task"),
        ("the sun", "To be honest, here is the text you asked for: the sun.", "speaks of the task"),
        ("the sun", "To be honest, the sun:\n- It is hot\n- It gives us the", "cut off"),
        (
            "the sun",
            "To be honest. The sun is hot. The sun is warm. The sun is big.",
            "says it twice",
        ),
    ],
)
def test_what_a_person_would_refuse_is_refused(topic: str, text: str, fault: str) -> None:
    assert fault in faults(START, text, topic)


def test_a_task_that_is_its_constraint_wants_no_answer_beside_it() -> None:
    rule = {"kind": "char_sequence", "letter": "a", "count": 4}
    prompt = Prompt("p", 'Generate 4 of letter "a".', (rule,), complete=True)
    assert len(requirements(prompt)) == 1
    assert all(constraints.check_all(requirements(prompt), "aaaa"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a b a b", ""),  # "tick tock, tick tock"
        ("a b a b a b a b", "a b"),
        ("x a b c a b c y", "a b c"),
        ("a b c a b d", ""),
        ("very very good", ""),
        ("very very very good", ""),
        ("very very very very good", "very"),
        ("1 000 000 000 000 stars", ""),
        ("a b c d", ""),
        ("", ""),
    ],
)
def test_looped(text: str, found: str) -> None:
    assert " ".join(looped(text.split())) == found


def test_looped_and_faults_take_long_texts() -> None:
    text = "The " + " ".join(f"word{n}" for n in range(5000))
    begin = time.perf_counter()
    assert looped(text.split()) == ()
    assert Answer("Describe tea.", "tea").faults(text) == ("off topic", "cut off")
    assert Answer("Describe tea.").faults(text) == ()
    assert time.perf_counter() - begin < 5, "linear, not quadratic"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_prompt_asks_for_an_answer(kind: str) -> None:
    settings = Prompts(kinds=(kind,), per_prompt=(1, 1))
    for split in ("warmup", "train", "heldout"):
        for prompt in builtin_prompts(settings, 0, split, 5):
            known = requirements(prompt)
            standalone = constraints.kind_named(kind).standalone
            assert isinstance(known[-1], Answer) is not standalone
            if not standalone:
                assert prompt.topic and prompt.topic in prompt.text
                assert not known[-1].check(prompt.text), "the request read back"
                assert not known[-1].check("Good luck. Good luck. Good luck.")


@pytest.mark.parametrize("kind", sorted(k for k, c in KINDS.items() if not c.standalone))
def test_a_good_answer_can_be_spoilt_in_several_ways(kind: str) -> None:
    """The constraint stays met by some of them: that is what the judge has to learn."""
    text = "A wolf hunts at night in the dark woods. It lives with its family and howls."
    settings = Prompts(kinds=(kind,), per_prompt=(1, 1))
    for prompt in builtin_prompts(settings, 0, "train", 20):
        rule = Answer(prompt.text, "a wolf")
        bad = list(rule.spoilt(text))
        assert len(bad) >= 2 and not any(rule.check(edit) for edit in bad)


# Where it has a say -----------------------------------------------------------------------------


def judged(prompt: Prompt, text: str, mode: str, said: str = "Yes"):
    engine = ScriptedEngine(lambda role, request: f"1. Fine: Yes\nFinal Judgement: {said}")
    settings = Judge(mode=mode, votes=3)  # type: ignore[arg-type]
    return asyncio.run(judge_answer(engine, prompt, text, "p/0", settings))


@pytest.mark.parametrize("mode", ["hybrid", "code"])
def test_the_verdict_of_record_is_a_no(mode: str) -> None:
    found = judged(ask(START), "To be honest: To be honest: To be honest.", mode)
    assert (found.verdict, found.value, found.checks) == (False, 0.0, (True, False))
    assert found.critique and "2. An answer about a wolf: it says nothing" in found.critique
    assert found.critique.endswith("Final Judgement: No")
    assert judged(ask(START), "To be honest, the wolf is a shy animal.", mode).verdict is True


def test_of_a_foreign_prompt_a_loop_is_a_no_and_the_rest_is_the_models_to_say() -> None:
    foreign = Prompt("p", "Tell me about the tax law.")
    assert judged(foreign, "It is law. It is law. It is law.", "hybrid").verdict is False
    for said in ("Yes", "No"):
        found = judged(foreign, "It changes every year.", "hybrid", said)
        assert found.verdict is (said == "Yes") and found.checks == ()
    assert judged(foreign, "It changes every year.", "code").verdict is None
    assert judged(foreign, "It is law. It is law. It is law.", "llm").verdict is True  # its own say


def test_the_heldout_score_counts_answers() -> None:
    engine = ScriptedEngine(lambda role, request: "Final Judgement: Yes")

    def review(text: str, finished: bool = True):
        response = Response("p", "p", text, finished, Cost())
        return asyncio.run(review_heldout(engine, ask(START), response, Evaluate()))

    thin = review("To be honest. To be honest.")
    assert thin.checks == (True,) and "says it twice" in thin.faults and not thin.counts
    good = review("To be honest, the wolf is a shy animal.")
    assert good.checks == (True,) and good.faults == () and good.counts
    cut = review("To be honest, the wolf is a shy animal.", finished=False)
    assert cut.sound and not cut.counts


def test_heldout_prompts_are_the_same_for_every_seed_and_share_no_phrase_with_the_others() -> None:
    settings = Prompts(kinds=("starts_with", "ends_with", "keyword_include"), per_prompt=(1, 1))
    held = builtin_prompts(settings, 0, "heldout", 100)
    assert held == builtin_prompts(settings, 7, "heldout", 100)

    def asked(prompts: list[Prompt]) -> set[str]:
        return {
            str(p.constraints[0].get("phrase") or p.constraints[0].get("word")) for p in prompts
        }

    for split in ("warmup", "train"):
        others = builtin_prompts(settings, 0, split, 300)
        assert others != builtin_prompts(settings, 1, split, 300)
        assert not asked(held) & asked(others)
        assert not {p.topic for p in held} & {p.topic for p in others}
