"""The parser of a judge's reply: its last line says "Final Judgement: Yes" or No, or ought to.

Small models write around it, take it back, or repeat the question; a verdict is read only where the
word stands for itself, and everything else is None: a missing vote, never a No.
"""

from __future__ import annotations

import re

JUDGEMENT = re.compile(r"final[\s*_#:-]*judge?ment", re.IGNORECASE)
# The template's own words: a reply that repeats the question, or thinks about it, has not answered.
_QUOTED = r"\s+with\s+[\"'`\u201c]Final Judge?ment: (?:Yes|No)\b[\"'`\u201d]?"
_QUESTION = re.compile(
    rf"(?-i:\bEnd){_QUOTED}|\botherwise(?:\s+\w+){{0,3}}?{_QUOTED}"
    rf"|\bends?(?:\s+\w+){{0,3}}?{_QUOTED}(?=,?\s+(?:if|when|only|unless|or|and)\b)",
    re.IGNORECASE,
)
_ECHO = re.compile(r"(?<![^\W_])yes[\"'`*_]*\s*(?:or|/|\|)\s*[\"'`*_]*no(?![^\W_])", re.IGNORECASE)
# Whole words only: markdown's underscores may touch them, no_commas and no-comma are others.
_YES_NO = re.compile(
    r"(?<![^\W_])(?<![^\W_][_-])(?:(not)[\W_]{1,8})?(?:(yes)|no)(?!_*[^\W_]|-[^\W_])", re.IGNORECASE
)
_MARKUP = re.compile(r"</?[a-z]+\d?>|\\[a-z]+", re.IGNORECASE)
# No question mark: "Is any broken? No." is no verdict.
_STOP = re.compile(r"[.!\u2026\u3002\uff01][^\w\s]{0,8}+(?=\s|$)|\n")
_WORD = re.compile(r"[^\W_]+")
# A word follows on the line: "no comma" and "yes to both" are no verdicts, "no because" is one.
_GOES_ON = re.compile(
    r"[^\S\r\n]+[\"'`*_\u201c\u2018]{0,8}+(?!(?:because|since|as|due)\b)[^\W_]", re.IGNORECASE
)
_WOULD = re.compile(r"\W{0,8}\b(?:would|could|might)\b", re.IGNORECASE)
_IF = re.compile(r"\b(?:if|unless|when|whether|either|else|otherwise)\b|\bor\W*$", re.IGNORECASE)
# What leads to a verdict: a colon or dash without quotes, or the words of a conclusion.
_COLONS = frozenset(":|=-\u2013\u2014\u2192\uff1a")
_MARKS = frozenset("\"'`\u201c\u201d\u2018\u2019")
_SO = re.compile(
    r"(?:.* )?(?:so|thus|hence|therefore|overall|(?:verdict|judge?ment|conclusion) is)"
)
# What takes one back: later in its sentence, or as the first word of another.
_TURN = re.compile(
    r"\b(?:but|if|unless|except|however|(?:al)?though|otherwise|provided|partly|partially|mostly|"
    r"almost|nearly)\b",
    re.IGNORECASE,
)
_WAIT = re.compile(r"\W{0,8}(?:but|however|wait|actually|correction|hmm|sorry)\b", re.IGNORECASE)


def parse_verdict(text: str) -> bool | None:
    """Read a judge reply: True for Yes, False for No, None where it cannot be read.

    The word must stand alone after the last "Final Judg(e)ment": at once, as a sentence or line of
    its own, after a colon or dash, or as what it comes to ("so Yes", "the verdict is No"). "No
    comma is used" is no No, "Not Yes" is one. None where the other word stands there too, or what
    follows takes it back ("Yes, but"). Echoes of the prompt or of "(Yes or No)" are no judgement,
    nor is one under a condition. Case, markdown and punctuation do not matter.
    """
    rest = _after_last_mention(_QUESTION.sub("", text))
    said: set[bool] = set()
    doubts: set[bool] = set()
    for n, sentence in enumerate(_STOP.split(_MARKUP.sub(" ", _ECHO.sub(" ", rest)))):
        if said and _WAIT.match(sentence):
            doubts |= {True, False}
        _hear(sentence, n == 0, said, doubts)
    return said.pop() if len(said) == 1 and doubts <= said else None


def _after_last_mention(text: str) -> str:
    """What follows the last mention that is under no condition; "" where there is none."""
    mentions = list(JUDGEMENT.finditer(text))
    for n in reversed(range(len(mentions))):
        begin, end = mentions[n].span()
        before = _STOP.split(text[mentions[n - 1].end() if n else 0 : begin])[-1]
        if not _IF.search(before) and not _WOULD.match(text, end):
            return text[end:]
    return ""


def _hear(sentence: str, first: bool, said: set[bool], doubts: set[bool]) -> None:
    """Add to ``said`` the verdicts of a sentence, and to ``doubts`` what might be one.

    ``first``: it begins with the mention. A verdict settles the doubts before it.
    """
    condition, would = _IF.search(sentence), _WOULD.search(sentence)
    begin, stood = 0, len(sentence)
    for word in _YES_NO.finditer(sentence):
        negated, yes = bool(word.group(1)), bool(word.group(2))
        lead, begin = sentence[begin : word.start()], word.end()
        whole = len(lead) == word.start()
        plain = not (negated and not yes) and not (condition and condition.start() < word.start())
        if _GOES_ON.match(sentence, begin):
            doubts |= {True} if yes and not _WOULD.match(sentence, begin) else set()
        elif would and would.start() < word.start():
            continue
        elif plain and _stands(lead, whole, first):
            said.add(yes and not negated)
            doubts.clear()
            stood = begin
        else:
            doubts.add(yes)
    if _TURN.search(sentence, stood):
        doubts |= {True, False}


def _stands(lead: str, whole: bool, first: bool) -> bool:
    """Whether a word stands alone after ``lead``, which is ``whole`` where no Yes or No was before.

    Right after the mention, ``first``, an "s" and an "is" are nothing.
    """
    words = list(_WORD.finditer(lead))
    names = [word.group().lower() for word in words]
    while first and whole and names and names[0] in ("s", "is", "was"):
        names.pop(0)
    if not names:
        return whole
    gap = set(lead[words[-1].end() :])
    ends = " ".join(names[-2:])
    return bool(gap & _COLONS and not gap & _MARKS) or bool(_SO.fullmatch(ends))
