"""A small run of the whole loop: its recipe, a model that is scripted by rule, what it left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spar_lite.ablations import pairs_of
from spar_lite.constraints import TOPICS
from spar_lite.engines.base import Request
from spar_lite.evaluation.scoring import score
from spar_lite.loop import self_play
from spar_lite.recipe import Recipe, parse_recipe
from spar_lite.records import PreferencePair, Role, stable_seed
from spar_lite.run import Run
from spar_lite.steps import StepFolder
from spar_lite.templates import REFINE
from tests.scripted import ScriptedEngine, Silence

HOSTILE = (
    "<script>alert(1)</script> </script><img src=x onerror=alert(2)> javascript:alert(3) {{DATA}} "
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd zero\u200bwidth \x1b[31mred\x1b[0m "
    "[bold]rich[/bold] line\u2028separator & <!-- comment"
)
"""What no screen, page or card may act on."""


def recipe(model: Path, **changes: Any) -> Recipe:
    small = {"batch_size": 4, "gradient_checkpointing": False}
    data: dict[str, Any] = {
        "iterations": 2,
        # One thread: sums of floats, and so bytes, follow their number.
        "model": {"id": str(model), "lora": {"r": 4, "alpha": 8}, "device": "cpu", "threads": 1},
        "prompts": {"count": 6, "kinds": ("no_commas", "starts_with"), "per_prompt": (1, 2)},
        "bootstrap": {"prompts": 6, "max_new_tokens": 16, **small},
        "sample": {"k": 2, "max_new_tokens": 16},
        "judge": {"mode": "hybrid", "votes": 3, "max_new_tokens": 16},
        "search": {"branch": 2, "keep": 1, "depth": 2, "max_new_tokens": 16},
        "dpo": {**small, "lr": 1e-3},
        "rft": {**small, "epochs": 1, "lr": 1e-3},
        "evaluate": {"prompts": 4, "review": 2, "max_new_tokens": 16, "reply_tokens": 16},
    }
    return parse_recipe(changed(data, changes))


def changed(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data with other values, by key or ``section__key``."""
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data[section] = {**data.get(section, {}), name: value} if name else value
    return data


def mends(role: Role, request: Request, says: str) -> str:
    """Only a node's second refinement is mended, and only what is mended passes the judge."""
    last = request.messages[-1].content
    if last == REFINE:
        good = request.id.endswith("0.1/r0")
        return f"Better.\n[[start]] {'mended' if good else 'still wrong'} [[end]]"
    if "<answer>" in last:
        return "It holds.\nFinal Judgement: " + ("Yes" if "mended" in last else "No")
    return says


def about(ask: str) -> str:
    """A sentence about what the request is about."""
    topic = max((t for t in TOPICS if t in ask), key=len, default="tea")
    return f"{topic} gives warm light to many people."


def rule(role: Role, request: Request) -> str:
    """Answers hold a comma; judges are split; the second refinement of a node is right."""
    last = request.messages[-1].content
    coin = stable_seed("rule", request.id)
    if last == REFINE:
        ask = request.messages[0].content.partition("<instruction>")[2]
        phrase = re.search(r'"([A-Z][^"]*)"', ask)
        body = f"{phrase.group(1) if phrase else 'Fine'}: {about(ask)}" if coin % 2 else "no, wrong"
        return f"To change: it.\n[[start]] {body} [[end]]" if coin % 5 else "no idea"
    if "<answer>" in last:
        return f"1. It: so. {'Yes' if coin % 2 else 'No'}\nFinal Judgement: " + (
            "Yes" if coin % 2 else "No"
        )
    return f"Well, {about(last)}"


def scripted(seed: int) -> Any:
    return lambda run: ScriptedEngine(rule, shuffle_seed=seed)


def play(folder: Path, extra: str = "", **changes: Any) -> Path:
    """A base's score, self-play, its pairs and a score after them, all without a model."""

    def reply(role: Role, request: Request) -> str:
        said = rule(role, request)
        return said.replace(" [[end]]", f" {extra} [[end]]") if "[[" in said else f"{said} {extra}"

    def loop(run: Run) -> None:
        score(run, "base", None)
        found = self_play(run, 1)
        StepFolder(run, "iteration-1").once(
            "pairs",
            PreferencePair,
            lambda: pairs_of(run.recipe, run.recipe.seed, found.within(0), found.others),
            keys=["pairs", "iterate.tokens", "iterate.pairs"],
            inputs=[*found[:4]],
        )
        run.make_engine = lambda _: ScriptedEngine(lambda *_: f"No comma here. {extra}")
        run._engine = None
        score(run, "iteration-1", 1)

    settings = recipe(folder / "no-model", bootstrap={"source": "none"}, iterations=1, **changes)
    Run(settings, folder, Silence(), make_engine=lambda _: ScriptedEngine(reply)).work(loop)
    return folder


def start(folder: Path, settings: Recipe, seed: int = 1) -> Run:
    return Run(settings, folder, Silence(), make_engine=scripted(seed))


def records_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every record file (not ledger, markers or adapters)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.jsonl"))
        if path.name != "ledger.jsonl"
    }


def adapters_of(folder: Path) -> dict[str, bytes]:
    found = sorted(folder.rglob("adapter_model.safetensors"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
