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

_JUDGEMENT = re.compile(r"final[\s*_#:-]*judge?ment", re.IGNORECASE)
# The template's own words: a reply that repeats the question has not answered it.
_QUESTION = re.compile(r'(?:End|otherwise)\s+with\s+"Final Judgement: (?:Yes|No)\b')
_ECHO = re.compile(r"(?<![^\W_])yes[\"'`*_]*\s*(?:or|/|\|)\s*[\"'`*_]*no(?![^\W_])", re.IGNORECASE)
# Whole words only: markdown's underscores may touch them, no_commas and no-comma are others.
_YES_NO = re.compile(r"(?<![^\W_])(?<![^\W_][_-])(?:(yes)|no)(?!_*[^\W_]|-[^\W_])", re.IGNORECASE)
_MARKER = re.compile(r"(?<!\[)\[{2,}\s*(start|end)\s*\]{2,}", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"[\s!-/:-@\[-`{-~\u2026]*(?:x{3,}[\s!-/:-@\[-`{-~\u2026]*)?", re.IGNORECASE
)
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
