"""What a word, a sentence and a paragraph are, and how evidence is quoted.

Every constraint counts with these functions, so "two sentences" means the same everywhere. All of
them take time linear in the text.
"""

import re
import zlib
from collections.abc import Sequence

# What begins a list item, in any of the usual ways.
LIST_MARK = re.compile(r"^[^\S\n]*(?:[*\u2022\u2013-]|\d{1,3}[.)])[^\S\n]*(?=\S)", re.MULTILINE)
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
# Possessive quantifiers and the look-behind keep a long run of dots linear.
_STOP = re.compile(
    r"""(?<![.!?\u2026])([.!?\u2026]++)["'\u201d\u2019)\]*_]*+(?=\s|$)"""
    r"""|[\u3002\uff01\uff1f]++["\u201d\u2019\u300d\u300f]*+"""
)
_NEXT_WORD = re.compile(r"[^\S\n]+(?:[^\w\n]|_){0,8}+([^\W_]+)")
_OPENING = "\"'\u201c\u2018([*_"
_LINE = re.compile(r"[^\n]+")
# A single letter, or several with a stop after each: J., p.m., U.S.
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
# Most of them are punkt's. Those with a capital are words when they are written small.
_ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "messrs", "mme", "mlle", "dr", "prof", "gov", "sen", "rep", "reps", "gen",
    "col", "lt", "capt", "cpt", "sgt", "maj", "adm", "cmdr", "rev", "pres", "supt", "st", "mt",
    "ft", "ave", "blvd", "bros", "co", "corp", "inc", "ltd", "cie", "jr", "sr", "esq", "dept",
    "est", "univ", "assn", "mg", "yr", "yrs", "chg", "tel", "ext", "misc", "ph.d", "m.sc", "b.sc",
    "jan", "feb", "aug", "sep", "sept", "oct", "nov", "dec", "tues", "fri", "ala", "ariz", "calif",
    "colo", "conn", "fla", "ga", "kan", "ky", "mich", "minn", "nev", "okla", "tenn", "va", "vt",
    "wis",
    "Ill", "Ore", "Pa", "Wash", "Wed",
})  # fmt: skip
# What follows belongs to the same sentence, whatever it is ...
_LEADING = frozenset({"e.g", "i.e", "eg", "ie", "cf", "viz", "vs", "approx", "incl"})
# ... or where it is a number.
_COUNTING = frozenset({"fig", "figs", "No", "Nos", "vol", "vols", "p", "pp", "ch", "chap", "eq"})
# Words that have a capital only where they begin a sentence; the FILLERS begin with such.
_STARTERS = frozenset({
    "a", "according", "after", "all", "although", "an", "and", "are", "at", "because", "before",
    "both", "but", "by", "despite", "did", "do", "does", "even", "every", "everyone", "everything",
    "finally", "for", "from", "he", "her", "here", "his", "how", "however", "i", "if", "in",
    "indeed", "instead", "is", "it", "its", "many", "meanwhile", "moreover", "most", "my",
    "nevertheless", "next", "nobody", "now", "of", "often", "on", "once", "or", "our", "people",
    "please", "she", "since", "so", "some", "sometimes", "still", "that", "the", "their", "then",
    "there", "therefore", "these", "they", "this", "those", "though", "thus", "to", "today",
    "under", "unfortunately", "was", "we", "were", "what", "when", "where", "while", "who", "why",
    "with", "yes", "yet", "you", "your",
})  # fmt: skip
_CLOSING = ".!?\u2026\u3002\uff01\uff1f\"'\u201d\u2019)"

# Words that no text ends with.
DANGLING = {
    "a", "an", "the", "and", "or", "but", "of", "in", "on", "to", "with", "for", "is", "are",
    "its", "their", "your", "that", "which", "as", "by", "from", "at", "it",
}  # fmt: skip

# Sentences that fit after any answer, for edits that make it longer.
FILLERS = (
    "It is that simple.",
    "There is more to say about it.",
    "Many people feel the same way.",
    "Everyone can see why.",
    "This is easy to forget.",
    "It has always been so.",
)

Span = tuple[int, int]


def clean(text: str) -> str:
    """The text every check looks at: line ends as \\n, nothing around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def squeeze(text: str) -> str:
    """Every run of white space as one space."""
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """Runs of letters and digits; "don't" and "well-known" are one word each."""
    return WORD.findall(text)


def sentence_spans(text: str) -> list[Span]:
    """Where each sentence lies.

    A sentence ends at . ! ? or … before white space (or at a CJK full stop), and at a line
    end. A piece without a letter or digit is none. Which stops end none is said in `_ends`.
    """
    spans: list[Span] = []
    for line in _LINE.finditer(text):
        begin = line.start()
        for stop in (*_STOP.finditer(text, *line.span()), None):
            if stop and not _ends(text, begin, stop):
                continue
            end = stop.end() if stop else line.end()
            bare = text[begin:end].strip()
            if WORD.search(bare):
                start = text.index(bare, begin)
                spans.append((start, start + len(bare)))
            begin = end
    return spans


def _ends(text: str, begin: int, stop: re.Match[str]) -> bool:
    """Whether a stop ends the sentence that begins at `begin`.

    The guide is NLTK's punkt, which IFEval counts with: an abbreviation's stop and dots ("...")
    end a sentence only before a word that has a capital for no other reason ("The"). Unlike here,
    it does not know "e.g.", "et al." and some more, and takes a list's "1." for a sentence.
    """
    marks = stop.group(1)
    after = _NEXT_WORD.match(text, stop.end())
    if marks is None or not after or "!" in marks or "?" in marks:
        return True
    follower = after.group(1)
    starts = follower[0].isupper() and follower.lower() in _STARTERS
    window = max(begin, stop.start() - 24)
    pieces = text[window : stop.start()].split()
    if marks != "." or not pieces:
        return starts
    word = pieces[-1].lstrip(_OPENING).rpartition("-")[2]
    if len(pieces) == 1 and (word.isdigit() or len(word) == 1) and window == begin:
        return False
    return _ends_after(pieces, word, follower, starts)


def _ends_after(before: list[str], word: str, follower: str, starts: bool) -> bool:
    """Whether a full stop after this word ends a sentence; `before` has it and those before it."""
    names = {word, word.lower()}
    if names & _LEADING or (word[-1:].isdigit() and follower[0].islower()):
        return False
    if names & _COUNTING and len(before) > 1 and follower[0].isdigit():
        return False
    if "etc" in names:
        return follower[0].isupper()
    short = names & _ABBREVIATIONS or _INITIALS.fullmatch(word) or before[-2:] == ["et", "al"]
    return starts if short else True


def sentences(text: str) -> list[str]:
    return [text[begin:end] for begin, end in sentence_spans(text)]


def head(text: str, count: int) -> str:
    """The text's own characters up to the end of its `count`-th word."""
    ends = [match.end() for match in WORD.finditer(text[:600])][:count]
    return text[: ends[-1] if ends else 12]


def tail(text: str, count: int) -> str:
    """The text's own characters from its `count`-th last word on."""
    piece = text[-600:]
    starts = [match.start() for match in WORD.finditer(piece)][-count:]
    return piece[starts[0] :] if starts else piece[-12:]


def around(text: str, span: Span) -> str:
    """The words at `span` with up to two neighbours on each side."""
    begin, end = span
    left = text[max(0, begin - 40) : begin].rpartition("\n")[2]
    right = text[end : end + 40].partition("\n")[0]
    before = [match.start() for match in WORD.finditer(left)][-2:]
    after = [match.end() for match in WORD.finditer(right)][:2]
    lead = left[before[0] :] if before else ""
    return lead + text[begin:end] + (right[: after[-1]] if after else "")


def where(text: str, span: Span | None) -> str:
    """The words around `span` as evidence, "nowhere" without one."""
    return f"in {quote(around(text, span))}" if span else "nowhere"


def quote(snippet: str, chars: int = 60) -> str:
    """The snippet on one line in double quotes, with single quotes inside it."""
    flat = re.sub('["\u201c\u201d]', "'", squeeze(snippet[: chars * 8]))
    return f'"{flat[:chars].rstrip()}..."' if len(flat) > chars else f'"{flat}"'


def number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def enumerated(pieces: list[str], noun: str, whole: bool = False) -> str:
    """'1 "The sun", 2 "It is", 2 sentences': a count that can be read off.

    Of each piece two words are shown, or the ``whole``.
    """
    heads = [piece if whole else head(piece, 2) for piece in pieces[:6]]
    shown = [f"{index} {quote(piece, 24)}" for index, piece in enumerate(heads, 1)]
    dots = ["..."] if len(pieces) > 6 else []
    return ", ".join([*shown, *dots, number(len(pieces), noun)])


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def closed(text: str) -> str:
    """The text with a full stop, where it has no closing mark yet."""
    bare = text.rstrip().rstrip(",;:-\u2013\u2014").rstrip()
    return bare if not bare or bare[-1] in _CLOSING else bare + "."


def with_sentence(text: str, sentence: str) -> str:
    """One sentence more: after the first, so that the answer keeps its start and its end."""
    spans = sentence_spans(text)
    if len(spans) < 2:
        return f"{closed(text)} {sentence}"
    cut = spans[0][1]
    return f"{closed(text[:cut])} {sentence}{text[cut:]}"


def spliced(text: str, clause: str) -> str:
    """A clause more inside the last sentence, before its closing mark."""
    body = text.rstrip(_CLOSING)
    return f"{body.rstrip(',;: ')} {clause}{text[len(body) :]}"


def toss(text: str, sides: int) -> int:
    """A number below `sides` that depends on the text only: variety without a generator."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % sides


def pick(options: Sequence[str], text: str) -> str:
    """One of the options, by the text only."""
    return options[toss(text, len(options))]
