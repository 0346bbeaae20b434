"""What can be scored: one file a task, and a file here is all that a task takes.

It holds a ``Task`` (see ``runner``) and a click command of the file's name, which ``eval`` finds.
What several of them need is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from spar_lite.errors import SparError
from spar_lite.evaluation.inference_search import Final, Plan
from spar_lite.evaluation.runner import Job, Task, plan_settings, texts_digest
from spar_lite.evaluation.stats import Interval, share
from spar_lite.records import Prompt
from spar_lite.store import StageFile

T = TypeVar("T")

INSTALL = "pip install 'spar-lite[eval]'"


class Decoded(Task[T]):
    """A program's ``check`` of one final answer a prompt, decoded in any way.

    ``file`` is "NAME-greedy" and the like if ""; ``own``: settings of its own.
    """

    def __init__(self, prompts: Sequence[Prompt], plan: Plan, file: str = "", **own: Any) -> None:
        self.prompts, self.plan, self.own = prompts, plan, own
        self.file = file or f"{self.name}-{plan.name}"

    def settings(self, job: Job) -> dict[str, Any]:
        found = {"prompts": len(self.prompts), **self.own, "texts": texts_digest(self.prompts)}
        return found | plan_settings(self.plan)

    def results(self, job: Job, file: StageFile[T]) -> list[T]:
        finals = job.answers(self.file, self.prompts, self.plan)
        results = [self.check(p, final) for p, final in zip(self.prompts, finals, strict=True)]
        file.finish(results)
        return results

    @staticmethod
    def check(prompt: Any, final: Final) -> T:
        """The program's word on one final answer."""
        raise NotImplementedError


def by_group(name: str, cases: Iterable[tuple[str, bool]]) -> dict[str, Interval]:
    """The share of true cases in each group, (group, truth) each, as "NAME/GROUP" in order."""
    groups: dict[str, list[bool]] = {}
    for group, truth in cases:
        groups.setdefault(group, []).append(truth)
    return {f"{name}/{group}": share(groups[group]) for group in sorted(groups)}


def from_hub(name: str, config: str | None, advice: str) -> Any:
    """A data set's rows by split, as the Hub has it.

    Raises:
        SparError: it cannot be reached; ``advice`` says what to give then.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # noqa: BLE001 - offline, gated, changed: the advice is the same
        raise SparError(
            f"{name} cannot be loaded ({type(error).__name__}). Give {advice}"
        ) from None
