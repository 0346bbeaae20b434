"""Step 2: N votes of the refiner on one answer, and the program's word where it can check.

Modes: ``llm`` is the paper's self-consistency (section 2.3.1); ``code`` asks only the program;
``hybrid`` asks both, the program's verdict being the one of record for what it can check. A vote
that cannot be read is missing, never a No; a tie or no readable vote is "no judgement". Early
stop leaves votes out once the verdict is sure; who needs the value as well has them added.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from spar_lite import constraints
from spar_lite.constraints import Answer
from spar_lite.data.prompts import requirements
from spar_lite.engines.base import Engine, strip_thinking
from spar_lite.recipe import Judge
from spar_lite.records import Cost, Judgement, Prompt, Vote
from spar_lite.sample import complete
from spar_lite.templates import judge_messages, judge_reply
from spar_lite.templates.verdict import parse_verdict

_NUMBERED = re.compile(
    r"^[^\S\n]*+(\d+)[.)].*(?<![^\W_])(yes|no)(?:[^\w\n]|_)*+$", re.IGNORECASE | re.MULTILINE
)


async def judge_answer(
    engine: Engine, prompt: Prompt, answer: str, id: str, settings: Judge, *, rounds: int = 1
) -> Judgement:
    """Judge one answer under the recipe's mode; vote ids are ``ID/v0`` and so on.

    A blank answer (a thought that was cut off) is none: it gets no vote and no judgement.

    With ``early_stop`` votes are asked for in turns, each the fewest that could decide, so that
    none is drawn in vain and which are drawn depends on nothing but the votes themselves.

    ``rounds``: where votes decide and end without a verdict, all of them are drawn anew, up to so
    many rounds in all. The judgement holds the last round's votes, its cost is that of all rounds.
    """
    if not answer.strip():
        return Judgement(id, (), None, None, None, None, (), Cost())
    if settings.mode == "code":
        return decide(id, prompt, answer, (), settings.mode, Cost())
    cost = Cost()
    for _ in range(rounds):
        votes: tuple[Vote, ...] = ()
        while more := missing(votes, settings):
            drawn, spent = await _ask(engine, prompt, answer, id, cost.calls, more, settings)
            votes, cost = votes + drawn, cost + spent
        found = decide(id, prompt, answer, votes, settings.mode, cost)
        if found.verdict is not None:
            break
    return found


@dataclass(slots=True)
class Judgements:
    """What is known of several answers to one prompt, by text: a text is judged once.

    Those ``known`` from the start stay as they are; ``cost`` is what was spent on the others.
    """

    engine: Engine
    prompt: Prompt
    settings: Judge
    known: dict[str, Judgement]
    cost: Cost = field(default_factory=Cost)
    _given: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._given = frozenset(self.known)

    async def judge(self, ids: Mapping[str, str], rounds: int) -> None:
        """Judge the texts that are not known yet, each under its id, in up to ``rounds``."""
        new = {text: id for text, id in ids.items() if text not in self.known}
        found = await asyncio.gather(
            *(
                judge_answer(self.engine, self.prompt, text, id, self.settings, rounds=rounds)
                for text, id in new.items()
            )
        )
        self.known.update(zip(new, found, strict=True))
        self.cost = sum((judgement.cost for judgement in found), self.cost)

    async def complete(self, texts: Collection[str]) -> None:
        """Draw the votes early stop left out; verdict and critique stay, the value may move."""
        await asyncio.gather(*(self._complete(text) for text in texts))

    def bounds(self, text: str) -> tuple[float, float]:
        """The least and the greatest value that an answer with a verdict could have in the end.

        The votes left out may all say No, or all Yes; with unreadable ones it ends in between.
        """
        found = self.known[text]
        assert found.value is not None
        left = self._left(text)
        if not left:
            return found.value, found.value
        verdicts = [vote.verdict for vote in found.votes]
        yes, readable = verdicts.count(True), len(verdicts) - verdicts.count(None)
        return yes / (readable + left), (yes + left) / (readable + left)

    def _left(self, text: str) -> int:
        """How many votes that early stop left out could still change the value.

        0 where the program decides, which has a verdict without any vote.
        """
        votes, mode = self.known[text].votes, self.settings.mode
        left = self.settings.votes - len(votes)
        if not left or not votes or text in self._given:
            return 0
        alone = decide("", self.prompt, text, (), mode, Cost())
        return left if alone.verdict is None else 0

    async def _complete(self, text: str) -> None:
        if left := self._left(text):
            old, first = self.known[text], self.known[text].cost.calls
            votes, cost = await _ask(
                self.engine, self.prompt, text, old.id, first, left, self.settings
            )
            self.cost += cost
            votes = old.votes + votes
            # The critique stays: somebody may have worked from it already.
            self.known[text] = replace(
                old, votes=votes, value=majority(votes)[0], cost=old.cost + cost
            )


async def _ask(
    engine: Engine, prompt: Prompt, answer: str, id: str, first: int, count: int, settings: Judge
) -> tuple[tuple[Vote, ...], Cost]:
    """Draw votes number ``first`` and on, all at once.

    A round that ended without a verdict was drawn whole, so the number of calls so far is the
    number of the next vote, in whatever round.
    """
    messages = judge_messages(prompt.text, answer)
    replies = await asyncio.gather(
        *(
            complete(engine, "refiner", f"{id}/v{n}", messages, settings)
            for n in range(first, first + count)
        )
    )
    cost = sum((reply.cost for reply in replies), Cost())
    return tuple(read_vote(reply.text) for reply in replies), cost


def read_vote(reply: str) -> Vote:
    """Turn a judge reply into a vote, thinking removed."""
    text = strip_thinking(reply)
    return Vote(text, parse_verdict(text))


def missing(votes: Sequence[Vote], settings: Judge) -> int:
    """How many votes to ask for next; 0 once all are there or the rest could change no verdict."""
    left = settings.votes - len(votes)
    if not settings.early_stop:
        return left
    verdicts = [vote.verdict for vote in votes]
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
    known = requirements(prompt)
    # Where a model has a say, that it is an answer is only said if it is none: the number of
    # its line belongs to what else is asked.
    if not prompt.complete and known[-1].check(answer) and isinstance(known[-1], Answer):
        known = known[:-1]
    checks = constraints.check_all(known, answer)
    return Program(checks, constraints.critique(known, answer) if known else "", prompt.complete)


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


def share_met(judgement: Judgement, settings: Judge) -> float:
    """Share of the constraints met, by which equal values are parted where a program judges.

    0 in llm mode, where the paper's rule stands alone.
    """
    checks = judgement.checks if settings.mode != "llm" else ()
    return sum(checks) / len(checks) if checks else 0.0


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
