"""IFBench (arXiv 2507.02833): 300 prompts, 58 kinds of instructions that no training set has.

The verifiers are those of its authors (github.com/allenai/IFBench, November 2025), as the package
``if-verifiable`` ships them (extra ``eval``); strict and loose are IFEval's rules, and the paper
reports the loose prompt level. The authors have since changed 8 of the 58 and how sentences are
split, which turned 2 of 334 verdicts on their own sample answers. Faults are left as they are, so
that figures can be compared: ``repeat:repeat_span`` (4 prompts) leaves out the span's last word.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from spar_lite.evaluation.verified import Verified, VerifiedPrompt, load_verifiers, make_command

TAGGER = "averaged_perceptron_tagger_eng"
NLTK = {
    "punkt": "tokenizers/punkt/",  # asked for by the package, and then not used
    "punkt_tab": "tokenizers/punkt_tab/english/",
    "stopwords": "corpora/stopwords/english",
    TAGGER: f"taggers/{TAGGER}/{TAGGER}.weights.json",
}
STUMBLES = (IndexError, KeyError, ArithmeticError, ValueError, csv.Error)
"""What a verifier raises at an answer that it is not made for, such as one of marks alone.

No LookupError: NLTK's word for data that are not there.
"""


class Ifbench(Verified):
    """IFBench's prompts on a target's answers."""

    name = "ifbench"
    title = "IFBench"
    by = "its authors'"
    hub = "allenai/IFBench_test"
    source = "IFBench_test.jsonl (github.com/allenai/IFBench, data)"
    package = "if-verifiable"

    @staticmethod
    def known() -> Mapping[str, Any]:
        return verifiers()

    @staticmethod
    def verdicts(prompt: VerifiedPrompt, text: str) -> tuple[Iterable[bool], Iterable[bool]]:
        from if_verifiable.common import get_loose_transformations

        strict, loose = [], []
        for name, kwargs in zip(prompt.names, prompt.kwargs, strict=True):
            verifier = verifiers()[name](name)
            # The Hub's copy has every argument on every instruction, most of them null.
            verifier.build_description(**{k: v for k, v in kwargs.items() if v is not None})
            strict.append(_met(verifier, text))
            loose.append(any(_met(verifier, way) for way in get_loose_transformations(text)))
        return strict, loose


def _met(verifier: Any, text: str) -> bool:
    """The verifier's word; an answer that it stumbles over is not met."""
    try:
        return bool(text.strip()) and bool(verifier.check_following(text))
    except STUMBLES:
        return False


@cache
def verifiers() -> Mapping[str, Any]:
    """The authors' verifiers by the names of their instructions.

    Raises:
        SparError: the extra is not installed, or NLTK's data are not on disk.
    """
    module = load_verifiers(Ifbench.title, "if_verifiable.ifbench.instructions_registry", NLTK)
    registry: Mapping[str, Any] = module.INSTRUCTION_DICT
    return registry


command = make_command(Ifbench)
