"""Each chat template beside the parser of its replies; training and inference use the same ones.

The structure is the paper's (arXiv 2412.11605, appendix): the refiner checks requirement by
requirement and ends with "Final Judgement: Yes|No"; a refinement is a reflection and then the new
answer between [[start]] and [[end]]. The words are ours, short enough for small models. The fixed
text comes first, so that every prompt of a stage shares a prefix.

Knows chat messages as text; knows no tokenizer, no constraint and no record of a run.
"""

from __future__ import annotations

import re

from spar_lite.records import Message

JUDGE = """\
Check if the answer follows the instruction. Go through the requirements one by one. \
End with "Final Judgement: Yes" if all are met, otherwise with "Final Judgement: No".

<instruction>
{instruction}
</instruction>
<answer>
{answer}
</answer>"""

REFINE = """\
Rewrite the answer so that every requirement is met. Change as little as possible. \
First say what to change, then write the new answer like this: [[start]] xxx [[end]]"""

EVOLVE = """\
Rewrite the instruction so that it also sets a constraint on the answer of this kind: {kind} \
({about}). Keep everything that it asks for. If such a constraint does not fit it, reply None. \
Reply with the new instruction alone.

<instruction>
{instruction}
</instruction>"""

TAXONOMY = {
    "length": "a number of words, sentences or paragraphs",
    "text format": "JSON, Markdown, a list, a table, bullets or a postscript",
    "letters": "uppercase, lowercase or how often a letter appears",
    "template": "an example to follow or choices to pick from",
    "punctuation": "marks to leave out, to repeat, or to start or end with",
    "numbers": "how numbers are written",
    "keywords": "words to include, to leave out or to repeat",
    "symbols": "a title mark, an emoji or a placeholder",
    "sentences": "a sentence to start with, to end with or to include",
    "genre": "a kind of text such as a letter, a poem or a review",
    "language": "the language of the answer",
    "situation": "a role to play or a scene to write from",
    "style": "formal, humorous, literary, or that of an era or a job",
    "sentiment": "the feeling that the answer conveys",
}
"""The paper's main groups of constraints (its appendix and public code), in our words."""

_JUDGEMENT = re.compile(r"final[\s*_#:-]*judge?ment", re.IGNORECASE)
# The template's own words: a reply that repeats the question, or thinks about it, has not answered.
_QUOTED = r"\s+with\s+[\"'`\u201c]Final Judge?ment: (?:Yes|No)\b[\"'`\u201d]?"
_QUESTION = re.compile(
    rf"(?-i:\bEnd){_QUOTED}|\botherwise(?:\s+\w+){{0,3}}?{_QUOTED}"
    rf"|\bends?(?:\s+\w+){{0,3}}?{_QUOTED}(?=,?\s+(?:if|when|only|unless|or|and)\b)",
    re.IGNORECASE,
)
_ECHO = re.compile(r"(?<![^\W_])yes[\"'`*_]*\s*(?:or|/|\|)\s*[\"'`*_]*no(?![^\W_])", re.IGNORECASE)
# Whole words only: markdown's underscores may touch them, no_commas and no-comma are others.
_YES_NO = re.compile(r"(?<![^\W_])(?<![^\W_][_-])(?:(yes)|no)(?!_*[^\W_]|-[^\W_])", re.IGNORECASE)
_MARKER = re.compile(r"(?<!\[)\[{2,}\s*(start|end)\s*\]{2,}", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"[\s!-/:-@\[-`{-~\u2026]*(?:x{3,}[\s!-/:-@\[-`{-~\u2026]*)?", re.IGNORECASE
)
_FENCE = re.compile(r"</?instruction>|```\w*")
_HEADING = re.compile(r"^\W*(?:new|rewritten|revised)\s+instruction\W*", re.IGNORECASE)
_TAG = re.compile(r"<(?=\s*+/?\s*+(?:answer|instruction)\s*>)", re.IGNORECASE)


def answer_messages(instruction: str) -> tuple[Message, ...]:
    """The actor's chat: the instruction as the user's only turn."""
    return (Message("user", instruction),)


def judge_messages(instruction: str, answer: str) -> tuple[Message, ...]:
    """The judge's chat. What the answer quotes of our own markers is made harmless first."""
    text = JUDGE.format(instruction=neutralise(instruction), answer=neutralise(answer))
    return (Message("user", text),)


def refine_messages(instruction: str, answer: str, critique: str) -> tuple[Message, ...]:
    """The refiner's two-turn chat: judge prompt, critique, refine prompt."""
    return (
        *judge_messages(instruction, answer),
        Message("assistant", _MARKER.sub(r"[\1]", critique)),
        Message("user", REFINE),
    )


def judge_reply(critique: str, verdict: bool) -> str:
    """A judge reply in the format that ``parse_verdict`` reads."""
    return f"{critique}\nFinal Judgement: {'Yes' if verdict else 'No'}"


def refine_reply(reflection: str, answer: str) -> str:
    """A refine reply in the format that ``parse_refinement`` reads."""
    return f"{reflection}\n[[start]] {answer} [[end]]"


def evolve_messages(instruction: str, kind: str) -> tuple[Message, ...]:
    """The chat that asks for a constraint of one of the kinds in ``TAXONOMY``."""
    text = EVOLVE.format(kind=kind, about=TAXONOMY[kind], instruction=neutralise(instruction))
    return (Message("user", text),)


def parse_evolved(text: str, instruction: str) -> tuple[bool, str | None]:
    """Read an evolve reply: (readable, the new instruction or None where it said None).

    Readable means None, or another text that keeps at least half of the instruction's longer words
    and adds no more than it can hold: a reply that answers the instruction is no rewriting.
    """
    text = _FENCE.sub("", text).strip().strip('"').strip()
    text = _HEADING.sub("", text).strip().strip('"').strip()
    if text.rstrip(".!").casefold() == "none":
        return True, None
    wanted = {word for word in re.findall(r"[^\W_]+", instruction.lower()) if len(word) > 3}
    kept = wanted & set(re.findall(r"[^\W_]+", text.lower()))
    fits = len(instruction) < len(text) <= 3 * len(instruction) + 400
    usable = fits and 2 * len(kept) >= len(wanted) and "<instruction>" not in text
    return usable, text if usable else None


def neutralise(text: str) -> str:
    """Make text harmless inside a template: it can neither close its tag nor carry a marker.

    A reply that echoes the result holds nothing that the parsers take for a verdict or refinement.
    """
    text = _JUDGEMENT.sub("closing remark", text)
    text = _MARKER.sub(r"[\1]", text)
    return _TAG.sub("(", text)


def parse_verdict(text: str) -> bool | None:
    """Read a judge reply: True for Yes, False for No, None where it cannot be read.

    What follows the last "Final Judg(e)ment" counts, on its line or the next ones, as a whole word,
    whatever the case, markdown or punctuation. Of both words the first decides, except that an echo
    of "(Yes or No)" is skipped. An echo of the judge prompt is no judgement.
    """
    text = _QUESTION.sub("", text)
    ends = [mention.end() for mention in _JUDGEMENT.finditer(text)]
    if not ends:
        return None
    word = _YES_NO.search(_ECHO.sub(" ", text[ends[-1] :]))
    return None if word is None else word.group(1) is not None


def parse_refinement(text: str) -> str | None:
    """Read a refine reply: the text between the last complete [[start]] and its [[end]].

    None where an end is missing, the body is empty, or it only echoes the template's "xxx".
    """
    body, start = None, None
    for marker in _MARKER.finditer(text):
        if marker.group(1).casefold() == "start":
            start = marker.end()
        elif start is not None:
            body, start = text[start : marker.start()].strip(), None
    return None if not body or _PLACEHOLDER.fullmatch(body) else body
