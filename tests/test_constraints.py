"""What the constraints promise, on hand-written answers and on many sampled ones."""

import importlib
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spar_lite.constraints import VALUES
from spar_lite.constraints.kinds import (
    KINDS,
    AllLowercase,
    AllUppercase,
    BulletCount,
    CapitalWords,
    CharSequence,
    Constraint,
    EndsWith,
    EndsWithQuestion,
    HasNumber,
    Highlights,
    JsonObject,
    KeywordExclude,
    KeywordFrequency,
    KeywordInclude,
    NoCommas,
    NoDigits,
    NumberedList,
    ParagraphCount,
    Placeholders,
    Postscript,
    Quoted,
    SentenceCount,
    StartsWith,
    StoryBookends,
    Title,
    TwoAnswers,
    WordCount,
    check_all,
    conflict,
    critique,
    from_json,
    mend_all,
)
from spar_lite.constraints.text import FILLERS, sentence_spans

STORY = StoryBookends("It began with a letter.", "And that was enough.")

# constraint, answer, verdict, and why
EXAMPLES: list[tuple[Constraint, str, bool, str]] = [
    (StartsWith("Well"), "  Well, it rains.", True, "white space before it does not count"),
    (StartsWith("Well"), "Wellington is a city.", False, "the phrase must end at a word's end"),
    (StartsWith("Well"), "Well-being matters.", False, "a hyphen carries the word on"),
    (StartsWith("Well then"), "well then it rains.", False, "capitals count"),
    (StartsWith("Well then"), "Well\nthen it rains.", True, "a line end is a space"),
    (EndsWith("The end"), "It rains. The end.", True, "a bare phrase allows one final mark"),
    (EndsWith("The end"), "It rains. The end", True, "nor does it need one"),
    (EndsWith("The end"), "It rains. The end...", False, "three marks are not one"),
    (EndsWith("Be well."), "Stay home. Be well", False, "a mark in the phrase is part of it"),
    (EndsWith("end"), "It is a weekend.", False, "the phrase must begin at a word's start"),
    (KeywordInclude("river"), "The River's bank is steep.", True, "capitals aside, whole word"),
    (KeywordInclude("river"), "Two rivers meet.", False, "the plural is another word"),
    (KeywordInclude("river"), "We follow the _river_ home.", True, "markdown does not hide it"),
    (KeywordExclude("very"), "Every day is new.", True, '"every" is another word'),
    (KeywordExclude("very"), "VERY warm.", False, "capitals aside"),
    (KeywordFrequency("tea", 2), "Tea is tea.", True, "twice, capitals aside"),
    (KeywordFrequency("tea", 3), "Tea is tea.", False, "twice is not three times"),
    (NoCommas(), "Tea and milk.", True, "no comma"),
    (Title(), "<<My Tea>>\nIt is warm.", True, "a title of its own"),
    (Title(), "<< >> It is warm.", False, "nothing between the brackets"),
    (Title(), "<< My Tea >> It is warm.", True, "spaces inside"),
    (Title(), "<My Tea> It is warm.", False, "single brackets"),
    (Highlights(2), "*Tea* is *very warm*.", True, "a word and a phrase"),
    (Highlights(2), "**Tea** is *warm*.", True, "bold is a highlight too"),
    (Highlights(1), "It is ** ** and * *.", False, "nothing between the asterisks"),
    (Highlights(1), "* tea\n* milk", False, "bullets are no highlights"),
    (Placeholders(1), "Dear [name], come soon.", True, "one placeholder"),
    (Placeholders(2), "Dear [name], [ ] come soon.", True, "an empty bracket is one too"),
    (Placeholders(2), "Dear [name], [come\nsoon].", False, "one over two lines is none"),
    (CapitalWords(2), "TEA is GOOD.", True, "two words in capitals"),
    (CapitalWords(2), "I drink TEA.", True, "a single letter counts"),
    (CapitalWords(1), "Tea-TIME is iPhone time.", False, "a part of a word does not"),
    (CapitalWords(2), "It is B2B, not b2c.", False, "a figure has no case"),
    (NoDigits(), "Five cups.", True, "a number in letters"),
    (NoDigits(), "5 cups.", False, "a digit"),
    (HasNumber(), "It costs 3.50 today.", True, "a decimal number"),
    (HasNumber(), "It costs three.", False, "a number in letters"),
    (NumberedList(2), "Why:\n1. It is warm.\n2. It is kind.", True, "a line before is allowed"),
    (NumberedList(2), "1) Warm.\n2) Kind.", False, "a dot is wanted"),
    (Postscript(), "It is warm.\nP.S. It is cheap.", True, "the last line"),
    (Postscript(), "P.S. It is cheap.\nIt is warm.", False, "not the last line"),
    (Postscript(), "It is warm. P.S. It is cheap.", False, "not a line of its own"),
    (TwoAnswers(), "Tea is warm.\n******\nTea is kind.", True, "two parts"),
    (TwoAnswers(), "Tea is warm.\n******\nTea is warm.", False, "twice the same"),
    (TwoAnswers(), "Tea is warm.\n******\n", False, "one part"),
    (NoCommas(), "Tea, milk.", False, "one comma"),
    (AllLowercase(), "tea at 5 o'clock.", True, "digits have no case"),
    (AllLowercase(), "Tea at five.", False, "T is a capital"),
    (AllLowercase(), "12345", False, "no letter at all is no lowercase answer"),
    (AllUppercase(), "TEA AT 5!", True, "digits have no case"),
    (AllUppercase(), "TEA at 5!", False, "a and t are small"),
    (WordCount(None, 3), "Don't over-think it.", True, "three words: don't, over-think, it"),
    (WordCount(4, None), "Don't over-think it.", False, "three are fewer than four"),
    (WordCount(2, 4), "One two three four", True, "both bounds are meant inclusively"),
    (SentenceCount(2), "Dr. Lee has 3.5 cups. He smiles!", True, "Dr. and 3.5 end no sentence"),
    (SentenceCount(1), "Wait... what?", True, "dots before a small letter end no sentence"),
    (SentenceCount(2), "It rained... Then it stopped.", True, "before such a word they do"),
    (SentenceCount(2), "The U.S. is a large country.", False, "an abbreviation ends none either"),
    (SentenceCount(2), "A heading\nA line", True, "a line end ends a sentence"),
    (SentenceCount(2), 'He said "Go." She went.', True, "a quote mark may follow the stop"),
    (ParagraphCount(2), "One.\n\n \nTwo.", True, "more blank lines are one gap"),
    (ParagraphCount(2), "One.\nTwo.", False, "a line end is no blank line"),
    (BulletCount(2), "My list:\n- tea\n- milk", True, "other lines are allowed"),
    (BulletCount(2), "* tea\n* milk", False, "stars are not hyphens"),
    (BulletCount(1), "- tea\n-milk", True, "a hyphen without a space is no bullet"),
    (JsonObject(("title",)), '{"title": "Tea"}', True, "exactly this key"),
    (JsonObject(("title",)), '{"title": "Tea", "x": 1}', False, "x was not asked for"),
    (JsonObject(("title",)), 'Here: {"title": "Tea"}', False, "the whole answer must be JSON"),
    (JsonObject(("title",)), '{"title": NaN}', False, "NaN is not JSON"),
    (CharSequence("x", 4), "xX xx", True, "case free, spaces allowed"),
    (CharSequence("x", 4), "xxx", False, "three are not four"),
    (CharSequence("x", 4), "xxxx!", False, "the mark is something else"),
    (STORY, "It began with a letter. It burned. And that was enough.", True, "both in place"),
    (STORY, "It began with a letter. It burned.", False, "the last sentence is missing"),
    (STORY, "It began with a letter. And that was enough.", False, "no story between them"),
    (EndsWithQuestion(), "Tea is warm. Or not?", True, "the last character is ?"),
    (EndsWithQuestion(), "Is it? Yes.", False, "the last character is a full stop"),
    (Quoted(), '"Tea is warm."', True, "one pair around it"),
    (Quoted(), '"Tea" and "milk"', False, "two pairs, each around a part"),
    (Quoted(), '"', False, "one mark is no pair"),
]

ANSWERS = [
    "The sun is warm and bright.",
    "Tea is a gentle drink. It warms the hands, the heart and the morning.",
    "I really like the river; it is very calm. The river, however, is never still. What a day!",
    "- Walk slowly.\n- Drink water.\n- Rest often.",
    "1. Take a lamp\n2. Find the key\n3. Open the door",
    "First paragraph here. It has two sentences.\n\nSecond one is short.",
    '{"title": "The sea", "text": "Waves, wind and salt."}',
    '"A good book is a quiet friend."',
    "xxxxxxx",
    "x x x",
    "all in small letters and without an end",
    "ALL IN CAPITALS, AS LOUD AS IT GETS.",
    "Is it far? No.",
    "In short: it is a beautiful old house. That is all.",
    "Das Café öffnet um 8 Uhr – schön, oder? 🙂",  # noqa: RUF001
    "茶は温かい。飲みます。",
    "!!!",
    "{",
    "Well",
]

GOLDEN = Path(__file__).parent / "golden" / "constraint_words.txt"


def samples(kind: str, count: int = 60) -> list[Constraint]:
    rng = random.Random(f"samples of {kind}")
    return [KINDS[kind].sample(rng) for _ in range(count)]


@pytest.mark.parametrize(("constraint", "answer", "verdict", "why"), EXAMPLES)
def test_verdict(constraint: Constraint, answer: str, verdict: bool, why: str) -> None:
    assert constraint.check(answer) is verdict, why


def test_every_kind_has_a_passing_and_a_failing_example() -> None:
    seen = {(constraint.kind, verdict) for constraint, _, verdict, _ in EXAMPLES}
    assert seen == {(kind, verdict) for kind in KINDS for verdict in (True, False)}
    assert len(KINDS) >= 24


@pytest.mark.parametrize("kind", KINDS)
def test_mend_passes_and_spoil_fails(kind: str) -> None:
    mended_some = spoiled_some = False
    for constraint in samples(kind):
        for answer in ANSWERS:
            mended = constraint.mend(answer)
            if constraint.check(answer):
                assert mended == answer
            if mended is None:
                continue
            assert constraint.check(mended)
            mended_some = True
            spoiled = constraint.spoil(mended)
            if spoiled is not None:
                spoiled_some = True
                assert not constraint.check(spoiled)
                assert spoiled.strip()
    assert mended_some and spoiled_some


@pytest.mark.parametrize("kind", KINDS)
def test_explain_is_one_short_sentence_that_begins_alike_for_yes_and_no(kind: str) -> None:
    for constraint in samples(kind):
        begun = set()
        for answer in [*ANSWERS, *filter(None, map(constraint.mend, ANSWERS))]:
            said = constraint.explain(answer)
            assert said[:1].isupper() and said.endswith(".")
            assert "\n" not in said
            assert len(said) < 200
            begun.add(tuple(said.split()[:2]))
        assert len(begun) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_and_a_bad_text_have_different_evidence(kind: str) -> None:
    for constraint in samples(kind):
        for answer in ANSWERS:
            good = constraint.mend(answer)
            bad = constraint.spoil(good) if good else None
            if good and bad:
                assert constraint.explain(good) != constraint.explain(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_words_mention_the_arguments(kind: str) -> None:
    for constraint in samples(kind):
        assert len(set(constraint.phrasings())) >= 3
        for value in constraint.to_json().values():
            wanted = value if isinstance(value, list) else [value]
            for item in wanted:
                if item is not None and item != kind:
                    texts = [*constraint.phrasings(), constraint.label()]
                    assert all(str(item) in text for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_answer_never_passes(kind: str) -> None:
    for constraint in samples(kind, 5):
        for empty in ("", "  \n\t"):
            assert not constraint.check(empty)
            assert constraint.explain(empty) == "The answer is empty."
            assert constraint.mend(empty) is None


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(kind: str) -> None:
    for constraint in samples(kind):
        assert from_json(constraint.to_json()) == constraint
        assert constraint.to_json()["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_anything_but_the_generator(kind: str) -> None:
    assert samples(kind, 8) == samples(kind, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_long_and_odd_texts_are_quick(kind: str) -> None:
    odd = ["." * 20_000 + "x", "a" * 20_000, ",\n " * 8_000, "[" * 20_000, '." ' * 8_000]
    odd += ["e\u0301 \ud800 \u2028" * 500, "\n" * 20_000 + "x", "'-" * 15_000, "a-" * 15_000]
    odd += [piece * 4_000 for piece in ("Go now. ", "river ", "- very\n", "Very. ", '{"a":')]
    constraint = samples(kind, 1)[0]
    begin = time.process_time()
    for text in odd:
        assert "\n" not in constraint.explain(text)
        constraint.mend(text)
        constraint.spoil(text)
    assert time.process_time() - begin < 5


def test_evidence_is_what_the_verdict_rests_on() -> None:
    assert StartsWith("Well").explain("The sun is.") == 'The first words are "The".'
    assert StartsWith("Well").explain("Well it is.") == 'The first words are "Well".'
    assert StartsWith("Well,").explain("Well: it is.") == 'The first words are "Well".'
    assert EndsWith("The end").explain("So it was.") == 'The last words are "it was.".'
    assert NoCommas().explain("Tea, milk, salt") == 'Where it has a comma: after "Tea".'
    assert NoCommas().explain("Tea and milk") == "Where it has a comma: nowhere."
    assert KeywordInclude("sun").explain("I see the Sun at dawn.") == (
        'Where it says "sun": in "see the Sun at dawn".'
    )
    assert KeywordExclude("sun").explain("I see.") == 'Where it says "sun": nowhere.'
    assert KeywordFrequency("sun", 2).explain("The sun. It is.") == (
        'Where it says "sun": 1 "The sun. It is", 1 time.'
    )
    assert SentenceCount(3).explain("The sun is warm. It shines.") == (
        'Its sentences: 1 "The sun", 2 "It shines", 2 sentences.'
    )
    assert WordCount(None, 3).explain("The sun is warm.") == 'It has 4 words from "The" to "warm".'
    assert AllLowercase().explain("the Sun") == 'Words with capital letters: "Sun".'
    assert AllLowercase().explain("the sun") == "Words with capital letters: none."
    assert CharSequence("x", 4).explain("xxx") == (
        'It has 3 of "x" and these other characters: none.'
    )
    assert JsonObject(("a",)).explain("Tea is warm now") == (
        'Its JSON keys: none, as it begins with "Tea is warm".'
    )


@pytest.mark.parametrize("kind", ["starts_with", "ends_with"])
def test_a_failing_edge_is_not_quoted_as_the_phrase(kind: str) -> None:
    for constraint in samples(kind):
        phrase = str(constraint.to_json()["phrase"])
        for answer in (f"{phrase}ly it is {phrase}ly", f"x{phrase} it x{phrase}", phrase.lower()):
            if not constraint.check(answer):
                evidence = re.findall(r'"(.*?)"', constraint.explain(answer))[0]
                assert evidence != phrase


def test_mends_are_small() -> None:
    assert StartsWith("Well").mend("The sun is warm.") == "Well, the sun is warm."
    assert StartsWith("Well").mend("Tea is warm.") == "Well: Tea is warm."  # it may be a name
    assert StartsWith("Well").mend("In short: The sun.") == "Well: The sun."
    assert EndsWith("The end").mend("It rains.") == "It rains. The end."
    assert NoCommas().mend("Tea, milk.") == "Tea milk."
    assert AllLowercase().mend("Tea") == "tea"
    assert CapitalWords(3).mend("Tea is warm.") == "TEA IS WARM."
    assert CapitalWords(2).spoil("I drink TEA.") == "I drink tea."
    assert Highlights(1).spoil("* Tea is ***warm***.\n* So.") == "* Tea is warm.\n* So."
    assert Title().spoil("<< My Tea >>") == "My Tea"
    assert (
        KeywordInclude("river").mend("It runs. It falls.") == "It runs without a river. It falls."
    )
    assert KeywordInclude("quiet").mend("The sun is an orb.") == "The sun is a quiet orb."
    assert KeywordFrequency("river", 2).mend("It runs. It falls.") == (
        "It runs without a river. It falls far from the river."
    )
    assert KeywordExclude("very").mend("Very warm and very soft.") == "Warm and soft."
    assert SentenceCount(1).mend("Tea is warm. I like it.") == "Tea is warm."
    assert SentenceCount(3).mend("Tea is warm.") is None
    assert WordCount(9, None).mend("Tea is warm.") is None
    assert WordCount(None, 4).mend("Tea is warm and the milk is cold.") == "Tea is warm."
    assert BulletCount(2).mend("Walk. Rest.") == "- Walk.\n- Rest."
    assert BulletCount(2).mend("1. Walk\n2. Rest") == "- Walk\n- Rest"
    assert ParagraphCount(2).mend("Walk. Rest.") == "Walk.\n\nRest."
    assert Quoted().mend("Tea.") == '"Tea."'
    assert JsonObject(("a", "b")).mend("Walk. Rest.") == '{"a": "Walk.", "b": "Rest."}'
    assert CharSequence("x", 4).mend("XX") == "XXXX"
    assert CharSequence("x", 4).mend("Tea is next") is None


def test_mend_all_restores_what_an_edit_broke() -> None:
    both = [EndsWith("The end"), KeywordInclude("river"), AllLowercase()]
    assert conflict(both[0], both[2])
    rules = [StartsWith("Well"), EndsWith("The end"), SentenceCount(2), NoCommas()]
    mended = mend_all(rules, "Tea, milk and salt. They are cheap.")
    assert mended == "Well: Tea milk and salt. The end."
    rules = [AllUppercase(), KeywordInclude("river")]
    assert mend_all(rules, "Warm") == "WARM NEAR THE RIVER"
    assert mend_all([SentenceCount(1), KeywordInclude("river")], "Tea is warm.") == (
        "Tea is warm next to the river."
    )
    assert mend_all(rules, "") is None
    assert mend_all([], "as it is") == "as it is"


def test_mend_all_reaches_most_pairs() -> None:
    rng = random.Random(7)
    text = "Tea is a really warm drink, and many like it. It is old. Try it, at home."
    reached = tried = 0
    while tried < 400:
        pair = [KINDS[rng.choice(list(KINDS))].sample(rng) for _ in range(2)]
        if conflict(*pair):
            continue
        tried += 1
        mended = mend_all(pair, text)
        reached += mended is not None
        assert mended is None or all(check_all(pair, mended))
    # The rest asks for more words, sentences or bullets than there are: nothing to mend.
    assert reached / tried > 0.7


def test_critique_lines_agree_with_the_checks() -> None:
    rng = random.Random(11)
    for answer in ["", *ANSWERS]:
        constraints = [KINDS[kind].sample(rng) for kind in KINDS]
        lines = critique(constraints, answer).split("\n")
        assert len(lines) == len(constraints)
        for number, (line, met) in enumerate(
            zip(lines, check_all(constraints, answer), strict=True), start=1
        ):
            assert line.startswith(f"{number}. {constraints[number - 1].label()}: ")
            assert line.endswith(". Yes" if met else ". No")
    assert critique([StartsWith("Well")], "The sun.") == (
        '1. Begins with "Well": The first words are "The". No'
    )


CLASHES = [
    (AllLowercase(), AllUppercase()),
    (AllLowercase(), StartsWith("Well")),
    (AllUppercase(), JsonObject(("title",))),
    (NoCommas(), JsonObject(("a", "b"))),
    (KeywordExclude("end"), EndsWith("The end")),
    (KeywordExclude("river"), KeywordInclude("river")),
    (StartsWith("Well"), StartsWith("Indeed")),
    (StartsWith("Well"), Quoted()),
    (EndsWithQuestion(), EndsWith("The end")),
    (SentenceCount(4), WordCount(None, 8)),
    (SentenceCount(1), EndsWith("The end")),
    (CharSequence("x", 3), NoCommas()),
]
FRIENDS = [
    (AllLowercase(), KeywordInclude("river")),
    (AllLowercase(), JsonObject(("title",))),
    (NoCommas(), JsonObject(("a",))),
    (StartsWith("Well"), EndsWith("The end")),
    (KeywordInclude("river"), KeywordInclude("stone")),
    (SentenceCount(2), WordCount(None, 20)),
]


@pytest.mark.parametrize(("a", "b"), CLASHES)
def test_conflict(a: Constraint, b: Constraint) -> None:
    assert conflict(a, b) and conflict(b, a)


@pytest.mark.parametrize(("a", "b"), FRIENDS)
def test_no_conflict(a: Constraint, b: Constraint) -> None:
    assert not conflict(a, b) and not conflict(b, a)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "start_with", "phrase": "Well"}, 'Did you mean "starts_with"'),
        ({"phrase": "Well"}, "kind is a string, found None"),
        (["starts_with"], "found list"),
        ({"kind": "starts_with"}, "field 'phrase' is missing"),
        ({"kind": "starts_with", "phrse": "Well"}, 'Did you mean "phrase"'),
        ({"kind": "no_commas", "x": 1}, "It has no fields"),
        ({"kind": "starts_with", "phrase": 3}, "phrase must be a string, found 3"),
        ({"kind": "starts_with", "phrase": " "}, "phrase needs a word"),
        ({"kind": "sentence_count", "count": True}, "must be a whole number, found True"),
        ({"kind": "sentence_count", "count": 0}, "at least 1, found 0"),
        ({"kind": "word_count", "low": 9, "high": 3}, "low 9 is above high 3"),
        ({"kind": "word_count", "low": None, "high": None}, "give low or high"),
        ({"kind": "keyword_include", "word": "two words"}, "one word, found 'two words'"),
        ({"kind": "json_object", "keys": []}, "keys must not be empty"),
        ({"kind": "json_object", "keys": ["a", "a"]}, "given twice"),
        ({"kind": "char_sequence", "letter": "xy", "count": 2}, "one letter, found 'xy'"),
    ],
)
def test_bad_json_is_named(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_json(data)


def test_values_are_many_distinct_and_can_be_split() -> None:
    assert len(VALUES.starts) >= 30
    assert len(VALUES.ends) >= 30
    assert len(VALUES.keywords) >= 60
    train, heldout = VALUES.part(heldout=False), VALUES.part(heldout=True)
    for name in VALUES.__dataclass_fields__:
        items = getattr(VALUES, name)
        assert len(set(items)) == len(items)
        assert not set(getattr(train, name)) & set(getattr(heldout, name))
        assert set(getattr(train, name)) | set(getattr(heldout, name)) == set(items)
    for kind in KINDS.values():
        kind.sample(random.Random(1), heldout)


# --- The same verdicts as IFEval's ----------------------------------------------------------------

# text, its sentences, and IFEval's count where punkt is plainly wrong
SENTENCES: list[tuple[str, int, int]] = [
    ("The U.S. is a large country.", 1, 1),
    ("The U.S. Senate met in Washington, D.C. on Friday.", 1, 1),
    ("He left the U.S. It was cold.", 2, 2),
    ("We meet at 5 p.m. in the park.", 1, 1),
    ("We meet at 5 p.m. The park closed.", 2, 2),
    ("We meet at 5 P.M. Many people came.", 2, 2),
    ("We meet at 5 p.m. Tom came.", 1, 1),  # who knows
    ("Open from 9 a.m. to 5 p.m. daily.", 1, 1),
    ("Prof. Lee teaches there. He is old.", 2, 2),
    ("Dr. Lee, Mr. Fox and Mrs. Ray met Gen. Poe and Sen. Doe.", 1, 1),
    ("J. R. R. Tolkien wrote it.", 1, 1),
    ("John F. Kennedy spoke. She heard it.", 2, 2),
    ("Plan B. The team likes it.", 2, 2),
    ("Acme Inc. is old.", 1, 1),
    ("Acme Corp. and Fox Co. met Ray Ltd. here.", 1, 1),
    ("He works at Acme Inc. They like him.", 2, 2),
    ("Martin Luther King Jr. spoke.", 1, 1),
    ("She has a Ph.D. in art.", 1, 1),
    ("St. Louis is big. It is old.", 2, 2),
    ("On Jan. 5 and Sept. 9 it rained.", 1, 1),
    ("It is 3.5 ft. long.", 1, 1),
    ("It began in 1999. Then it grew.", 2, 2),
    ("Say it (1. softly; 2. loudly).", 1, 1),
    ("Wait... what?", 1, 1),
    ("It rained... The sun came.", 2, 2),
    ("tea is warm. milk is cold.", 2, 2),
    ("What?! Yes! Good.", 3, 3),
    ('He said "Go." She went.', 2, 2),
    ("I am OK. The rest are too.", 2, 2),
    # what punkt has not learnt
    ("It costs approx. 5 euros.", 1, 2),
    ("It costs approx. $5 today.", 1, 2),
    ("Lee et al. found it. It is new.", 2, 3),
    ("Use milk, e.g. goat milk, i.e. the best.", 1, 3),
    ("Tea, milk, etc. are here.", 1, 2),
    ("I like tea, milk, etc. Tom does too.", 2, 2),
    ("J.R.R. Tolkien wrote it.", 1, 2),
    ("Mt. Everest is high.", 1, 2),
    ("See fig. 3 and vol. 2 of it.", 1, 3),
    ("I said no. 5 of them left. Chanel No. 5 is old.", 3, 4),
    # where it sees no end: taken for an abbreviation, for a name, or hidden by a bracket
    ("Oranges have vitamin C. They are sweet.", 2, 1),
    ("I am ok. Tom is too.", 2, 1),
    ("We met at 5 p.m. She left.", 2, 1),
    ("(It rained at 5 p.m.) The sun came.", 2, 1),
    # what it counts in other ways, as the docstring says
    ("1. Walk.", 1, 2),
    ("It rained\u2026 Then it stopped.", 2, 1),
    ("A heading\nA line", 2, 1),
    ("\u8336\u3002\u8336\u3002", 2, 1),
]


@pytest.mark.parametrize(("text", "count", "ifeval"), SENTENCES)
def test_sentences(text: str, count: int, ifeval: int) -> None:
    rule = SentenceCount(count)
    assert rule.check(text), rule.explain(text)
    assert rule.mend(text) == text
    found = [text[begin:end] for begin, end in sentence_spans(text)]
    assert "".join("".join(found).split()) == "".join(text.split())


@pytest.mark.parametrize("filler", FILLERS)
def test_a_filler_is_a_sentence_after_anything(filler: str) -> None:
    for text in ("It opens at 5 p.m.", "He left the U.S.", "Tea, milk, etc.", "So...", "Plan B."):
        assert len(sentence_spans(f"{text} {filler}")) == 2


@pytest.fixture
def ifeval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness's verifiers; what NLTK learnt of sentences may be missing, as in test_ifeval."""
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    import nltk

    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [*nltk.data.path, str(tmp_path)])
    return importlib.import_module("lm_eval.tasks.ifeval.instructions")


def follows(ifeval: Any, checker: str, text: str, **kwargs: Any) -> bool:
    """The harness's verdict."""
    rule = getattr(ifeval, checker)("x")
    rule.build_description(**kwargs)
    return bool(rule.check_following(text))


PIECES = [
    *("I", "A", "a", "TEA", "tea", "Tea", "I'm", "I'M", "Tom's", "TOM's", "TOM'S", "DON'T"),
    *("don't", "CANNOT", "cannot", "GIMME", "WANNA", "gonna", "O'NEILL", "Q&A", "A/B", "B2B"),
    *("COVID-19", "3D", "5", "5,000", "X-RAY", "x-ray", "U.S.", "p.m.", "\u00c9T\u00c9", "\u00df"),
    *("O\u2019CLOCK", "WE'LL", "a_B", "_TEA_", "*a*", "**B**", "***c***", "*", "* one", "[name]"),
    *("[]", "[ ]", "[", "[NAME]", "]", "<<My Tea>>", "<< T >>", "<<>>", "<<", ">>", "- ", "`TEA`"),
    *("\u8336", "\u2028"),
]
GAPS = [
    *(" ", " ", " ", " ", ", ", ". ", "! ", "? ", ": ", "; ", " - ", " -- ", "--", "\u2014"),
    *("\u2013", "... ", "\n", "\n\n", " (", ") ", '" ', ' "', "*", " *", "* ", "**", "\u201c"),
]
TWINS: dict[str, tuple[str, str]] = {
    "highlights": ("HighlightSectionChecker", "num_highlights"),
    "placeholders": ("PlaceholderChecker", "num_placeholders"),
    "capital_words": ("CapitalWordFrequencyChecker", "capital_frequency"),
    "title": ("TitleChecker", ""),
}


@pytest.mark.parametrize("kind", TWINS)
def test_marks_and_capitals_are_counted_as_ifeval_does(kind: str, ifeval: Any) -> None:
    rng = random.Random(f"IFEval's {kind}")
    drawn = [
        "".join(rng.choice(PIECES) + rng.choice(GAPS) for _ in range(rng.randint(1, 12)))
        for _ in range(1500)
    ]
    texts = [*ANSWERS, *(text for _, text, _, _ in EXAMPLES), *drawn]
    checker, name = TWINS[kind]
    more = {"capital_relation": "at least"} if kind == "capital_words" else {}
    verdicts = set()
    for text in filter(str.strip, texts):
        for count in (1, 2, 3, 5) if name else (1,):
            wanted = follows(ifeval, checker, text, **({name: count} if name else {}), **more)
            rule = from_json({"kind": kind, **({"count": count} if name else {})})
            assert rule.check(text) is wanted, (text, count, rule.explain(text))
            verdicts.add(wanted)
    assert verdicts == {True, False}


def test_sentences_as_ifeval_counts_them(ifeval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what punkt learnt of English, where that is on disk."""
    from nltk.tokenize.punkt import PunktTokenizer

    splitter = PunktTokenizer("english")
    if not splitter._params.abbrev_types:
        pytest.skip("NLTK's punkt_tab is not there: set NLTK_DATA to its folder")
    monkeypatch.setattr(ifeval.instructions_util, "_get_sentence_tokenizer", lambda: splitter)
    for text, _, count in SENTENCES:
        for wanted in (count, count + 1):
            kwargs = {"num_sentences": wanted, "relation": "at least"}
            assert follows(ifeval, "NumberOfSentences", text, **kwargs) is (wanted == count), text


def words_of_all_kinds() -> Iterator[str]:
    """What each kind says, of three instances, and what it claims."""
    for kind in sorted(KINDS):
        drawn = (KINDS[kind].sample(random.Random(seed)) for seed in range(40))
        for rule in list(dict.fromkeys(drawn))[:3]:
            yield f"## {json.dumps(rule.to_json(), ensure_ascii=False)}"
            marks = {
                "; capitals count": rule.case_bound,
                "; alone": rule.standalone,
                "; roomy": rule.roomy,
            }
            more = "".join(mark for mark, holds in marks.items() if holds)
            claims = ", ".join(sorted(rule.claims))
            yield f"{rule.label()} [{claims}; least words {rule.least_words()}{more}]"
            yield from rule.phrasings()


def test_the_words_of_every_kind_are_those_written_down() -> None:
    """If they are meant to change: python -m tests.test_constraints, and read the difference."""
    assert GOLDEN.read_text().splitlines() == list(words_of_all_kinds())


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(words_of_all_kinds()) + "\n")
