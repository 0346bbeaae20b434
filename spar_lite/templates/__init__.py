"""Each chat template beside the parser of its replies; training and inference use the same ones.

The structure is the paper's (arXiv 2412.11605, appendix): the refiner checks requirement by
requirement and ends with "Final Judgement: Yes|No"; a refinement is a reflection and then the new
answer between [[start]] and [[end]]. The words are ours, short enough for small models. The fixed
text comes first, so that every prompt of a stage shares a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spar_lite.records import Message
from spar_lite.templates.verdict import JUDGEMENT

JUDGE = """\
Check if the answer follows the instruction. Go through the requirements one by one; the last \
is that it is an answer: on the topic, in words of its own, saying nothing twice. \
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
Rewrite the instruction so that it also sets constraints of these kinds on the answer, the main \
one above all. Keep everything that it asks for and leave out a kind that contradicts it. Say the \
constraints in sentences, not in a list. If it is a mathematics or coding problem, reply None. \
Reply with the new instruction alone.

{constraints}

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

_MARKER = re.compile(r"(?<!\[)\[{2,}\s*(start|end)\s*\]{2,}", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"[\s!-/:-@\[-`{-~\u2026]*(?:x{3,}[\s!-/:-@\[-`{-~\u2026]*)?", re.IGNORECASE
)
_HEADING = re.compile(
    r"\A[\s*_#>]*(?:new|rewritten|revised)\s+instruction[*_]*(?:\s*:[*_]*|[*_#\s]*\n)\s*",
    re.IGNORECASE,
)
_BLOCK = re.compile(r"(`{3,}+)(?:[^\S\n]*[\w+-]*[^\S\n]*\n)?(.*)\1", re.DOTALL)
_QUOTES = {'"': '"', "\u201c": "\u201d"}
# A mark opens at a word's start; the curly one says so itself.
_OPENS = re.compile(r"(?:\A|(?<=[\s(\[]))\"(?=\S)|\u201c")
_TAG = re.compile(r"<\s*+/?\s*+(answer|instruction)(?:-([0-9]+))?\s*+>", re.IGNORECASE)


def answer_messages(instruction: str) -> tuple[Message, ...]:
    """The actor's chat: the instruction as the user's only turn."""
    return (Message("user", instruction),)


def judge_messages(instruction: str, answer: str) -> tuple[Message, ...]:
    """The judge's chat. What the answer quotes of our own markers is made harmless first."""
    return (Message("user", _fenced(JUDGE, instruction=instruction, answer=answer)),)


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


def evolve_messages(instruction: str, kinds: Sequence[str]) -> tuple[Message, ...]:
    """The chat that asks for constraints of these kinds in ``TAXONOMY``, the main one first."""
    names = ["Main constraint", *["Other constraint"] * (len(kinds) - 1)]
    lines = [f"{name}: {kind} ({TAXONOMY[kind]})" for name, kind in zip(names, kinds, strict=True)]
    text = _fenced(EVOLVE, constraints="\n".join(lines), instruction=instruction)
    return (Message("user", text),)


def _fenced(template: str, **texts: str) -> str:
    """The template with texts between tags that none of them holds, so that none can close one.

    Where a text asks for <answer></answer> itself, it stands between <answer-2> and </answer-2>.
    """
    shown = {name: neutralise(text) for name, text in texts.items()}
    for name in texts:
        tag = _free_tag(name, *shown.values())
        template = template.replace(f"<{name}>", f"<{tag}>").replace(f"</{name}>", f"</{tag}>")
    return template.format(**shown)


def _free_tag(name: str, *texts: str) -> str:
    """The name, or the first of name-2, name-3 and so on that is no tag in any of the texts."""
    found = [tag.groups() for text in texts for tag in _TAG.finditer(text)]
    taken = {number or "1" for word, number in found if word.lower() == name}
    free = next(n for n in range(1, len(taken) + 2) if str(n) not in taken)
    return name if free == 1 else f"{name}-{free}"


def parse_evolved(text: str, instruction: str) -> tuple[bool, str | None]:
    """Read an evolve reply: (readable, the new instruction or None where it said None).

    Readable means None, or another text that keeps at least half of the instruction's longer words
    and adds no more than it can hold: a reply that answers the instruction is no rewriting.
    """
    tag = _free_tag("instruction", instruction)
    text = _unwrapped(re.sub(f"</?{tag}>", "", text))
    if text.rstrip(".!").casefold() == "none":
        return True, None
    wanted = {word for word in re.findall(r"[^\W_]+", instruction.lower()) if len(word) > 3}
    kept = wanted & set(re.findall(r"[^\W_]+", text.lower()))
    fits = len(instruction) < len(text) <= 3 * len(instruction) + 400
    usable = fits and 2 * len(kept) >= len(wanted)
    return usable, text if usable else None


def _unwrapped(text: str) -> str:
    """The text without a heading and without quotes or code fences that go around all of it."""
    for _ in range(4):  # so deep at most: a fence, quotes, a heading, quotes
        text = _HEADING.sub("", text.strip())
        if block := _BLOCK.fullmatch(text):
            # They belong together unless the first fence inside closes instead of opening another.
            first = re.search(rf"^{block[1]}`*(.*)$", block[2], re.MULTILINE)
            if not first or first[1].strip():
                text = block[2].strip()
                continue
        if len(text) > 1 and text[-1] == _QUOTES.get(text[0]):
            # Those of `"x" and "y"` do not belong together.
            mark = re.search('["\u201c\u201d]', text[1:-1])
            if not mark or _OPENS.match(text[1:-1], mark.start()):
                text = text[1:-1].strip()
    return text


def neutralise(text: str) -> str:
    """Make text harmless inside a template: it cannot carry a marker.

    A reply that echoes the result holds nothing that the parsers take for a verdict or refinement.
    """
    return _MARKER.sub(r"[\1]", JUDGEMENT.sub("closing remark", text))


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
