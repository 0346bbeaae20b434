"""Step 2: N votes of the refiner on one answer, and the program's word where it can check.

Modes: ``llm`` is the paper's self-consistency (section 2.3.2); ``code`` asks only the program;
``hybrid`` asks both, the program's verdict being the one of record for what it can check. A vote
that cannot be read is missing, never a No; a tie or no readable vote is "no judgement".

Knows the engine protocol, the templates and the constraints; nothing of trees, pairs or files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spar_lite import constraints
from spar_lite.engine import Completion, Engine, strip_thinking
from spar_lite.prompts import judge_messages, judge_reply, parse_verdict
from spar_lite.recipe import Judge
from spar_lite.records import Cost, Judgement, Prompt, Vote
from spar_lite.sample import complete

_NUMBERED = re.compile(
    r"^[^\S\n]*+(\d+)[.)].*(?<![^\W_])(yes|no)(?:[^\w\n]|_)*+$", re.IGNORECASE | re.MULTILINE
)


async def judge_answer(
    engine: Engine, prompt: Prompt, answer: str, id: str, settings: Judge
) -> Judgement:
    """Judge one answer under the recipe's mode; vote ids are ``ID/v0`` and so on.

    A blank answer (a thought that was cut off) is none: it gets no vote and no judgement.

    With ``early_stop`` votes are asked for in rounds, each the fewest that could decide, so that
    none is drawn in vain and which are drawn depends on nothing but the votes themselves.
    """
    if not answer.strip():
        return Judgement(id, (), None, None, None, None, (), Cost())
    replies: list[Completion] = []
    messages = judge_messages(prompt.text, answer)
    while settings.mode != "code" and (more := missing(replies, settings)):
        replies += await asyncio.gather(
            *(
                complete(engine, "refiner", f"{id}/v{n}", messages, settings)
                for n in range(len(replies), len(replies) + more)
            )
        )
    votes = tuple(read_vote(reply.text) for reply in replies)
    cost = sum((reply.cost for reply in replies), Cost())
    return decide(id, prompt, answer, votes, settings.mode, cost)


def read_vote(reply: str) -> Vote:
    """Turn a judge reply into a vote, thinking removed."""
    text = strip_thinking(reply)
    return Vote(text, parse_verdict(text))


def missing(replies: Sequence[Completion], settings: Judge) -> int:
    """How many votes to ask for next; 0 once all are there or the rest could change nothing."""
    left = settings.votes - len(replies)
    if not settings.early_stop:
        return left
    verdicts = [read_vote(reply.text).verdict for reply in replies]
    lead = abs(verdicts.count(True) - verdicts.count(False))
    # Decided: lead > left. With k more votes for the leader that is lead + k > left - k.
    return 0 if lead > left else (left - lead) // 2 + 1 if left else 0


def majority(votes: Sequence[Vote]) -> tuple[float | None, bool | None]:
    """Return (fraction of readable votes saying Yes, majority), None where there is none."""
    readable = [vote.verdict for vote in votes if vote.verdict is not None]
    if not readable:
        return None, None
    value = sum(readable) / len(readable)
    return value, None if value == 0.5 else value > 0.5


@dataclass(frozen=True, slots=True)
class Program:
    """What a program knows of one answer: ``checks`` per constraint and a critique with evidence.

    ``complete``: nothing else is left to judge.
    """

    checks: tuple[bool, ...]
    critique: str
    complete: bool

    @property
    def verdict(self) -> bool | None:
        """All constraints met; None where there are none to check."""
        return all(self.checks) if self.checks else None


def program_view(prompt: Prompt, answer: str) -> Program:
    """Check an answer against the prompt's machine-checkable constraints."""
    known = [constraints.from_json(data) for data in prompt.constraints]
    return Program(
        constraints.check_all(known, answer),
        constraints.critique(known, answer) if known else "",
        prompt.complete,
    )


def decide(
    id: str, prompt: Prompt, answer: str, votes: tuple[Vote, ...], mode: str, cost: Cost
) -> Judgement:
    """Combine votes and program into the judgement of record.

    hybrid: a fail by either is a fail; what the program cannot check is the model's to say; a
    critique that contradicts the program is replaced by the program's own.
    """
    program = program_view(prompt, answer)
    value, verdict = majority(votes)
    said = program.verdict
    if mode == "code" or (mode == "hybrid" and said is not None and (not said or program.complete)):
        value, verdict = (None if said is None else float(said)), said
    trusted = program if mode != "llm" else Program((), "", False)
    critique, by = _critique(votes, verdict, trusted)
    return Judgement(id, votes, value, verdict, critique, by, program.checks, cost)


def contradicts(critique: str, checks: Sequence[bool]) -> bool:
    """Whether a critique's numbered lines deny what the program found for the same numbers.

    Lines that are missing or unreadable deny nothing: only a readable claim can contradict.
    """
    said = {int(n): word.lower() == "yes" for n, word in _NUMBERED.findall(critique)}
    return any(said.get(n, met) != met for n, met in enumerate(checks, start=1))


def _critique(
    votes: Sequence[Vote], verdict: bool | None, program: Program
) -> tuple[str | None, Literal["model", "program"] | None]:
    """The first vote's text that agrees with the verdict and the program, else the program's."""
    if verdict is None:
        return None, None
    for vote in votes:
        if vote.verdict is verdict and not contradicts(vote.text, program.checks):
            return vote.text, "model"
    text = program.critique
    if program.verdict and not verdict:
        text += f"\n{len(program.checks) + 1}. The rest of the instruction: It is not followed. No"
    return judge_reply(text, verdict), "program"
