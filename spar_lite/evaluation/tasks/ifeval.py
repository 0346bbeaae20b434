"""IFEval (arXiv 2311.07911): 541 prompts whose instructions a program verifies.

The verifiers and their strict and loose rules are lm-evaluation-harness's own (extra ``eval``);
values equal the harness's own aggregate to the last digit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from spar_lite.evaluation.verified import Verified, VerifiedPrompt, load_verifiers, make_command

NLTK = {"punkt_tab": "tokenizers/punkt_tab/english/"}


class Ifeval(Verified):
    """IFEval's prompts on a target's answers."""

    name = "ifeval"
    title = "IFEval"
    by = "lm-evaluation-harness's"
    hub = "google/IFEval"
    source = "input_data.jsonl (google-research, instruction_following_eval)"

    @staticmethod
    def known() -> Mapping[str, Any]:
        registry: Mapping[str, Any] = verifiers().instructions_registry.INSTRUCTION_DICT
        return registry

    @staticmethod
    def verdicts(prompt: VerifiedPrompt, text: str) -> tuple[Iterable[bool], Iterable[bool]]:
        doc = {
            "key": prompt.key,
            "prompt": prompt.text,
            "instruction_id_list": list(prompt.names),
            "kwargs": [dict(kwargs) for kwargs in prompt.kwargs],
        }
        found = verifiers().process_results(doc, [text])
        return found["inst_level_strict_acc"], found["inst_level_loose_acc"]


@cache
def verifiers() -> Any:
    """lm-evaluation-harness's own IFEval task, with its random parts fixed.

    Raises:
        SparError: the extra is not installed, or NLTK's sentence splitter is not on disk.
    """
    utils = load_verifiers(Ifeval.title, "lm_eval.tasks.ifeval.utils", NLTK)
    import langdetect

    # A text without letters is no error of ours, and its line would tear the screen.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    langdetect.DetectorFactory.seed = 0  # else short texts change their language between runs
    return utils


command = make_command(Ifeval)
