"""Every architecture that we claim, as a tiny random model: load, generate, judge, train, restore.

The fast path must give the model's own logits, or be refused by name and served by plain
``generate``. ``python -m pytest tests/test_architectures.py -rP -k refused`` prints what was found.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers

from spar_lite.engines.base import Completion, Request, Sampling
from spar_lite.errors import EngineError
from spar_lite.judge import judge_answer
from spar_lite.model import Policy, RolloutEngine, self_check
from spar_lite.model.merged import Weights
from spar_lite.recipe import Dpo, EngineSettings, Judge, Model
from spar_lite.records import Message, Prompt
from spar_lite.train import train_actor
from tests.architectures import CASES, IN_4_BIT, PAIRS, TEXTS, WINDOW, load
from tests.tiny import write_model

pytestmark = pytest.mark.tensors


def ask(policy: Policy, path: str, sampling: Sampling, texts: Sequence[str] = TEXTS) -> list[str]:
    """The replies' texts; both paths draw greedily alike."""
    engine = RolloutEngine(policy, EngineSettings(path=path, batch=4), 3)  # type: ignore[arg-type]
    requests = [
        Request(f"r{n}", (Message("user", text),), 12, sampling) for n, text in enumerate(texts)
    ]
    done: list[Completion] = asyncio.run(engine.generate("actor", requests))
    return [c.text for c in done]


DPO = Dpo(lr=1e-2, batch_size=2, max_length=256, gradient_checkpointing=False)


def through(folder: Path, name: str, quantization: str = "none") -> dict[str, Any]:
    """One architecture through everything; what was found, for the table."""
    policy = load(folder / "model", name, quantization)
    prompts = [policy.encode((Message("user", text),)) for text in TEXTS]
    checks = [self_check(policy, 4, weights, prompts, 60) for weights in get_args(Weights)]
    said: list[str] = []
    engine = RolloutEngine(policy, EngineSettings(batch=4), 3, said.append)
    request = Request("a", (Message("user", TEXTS[1]),), 8, Sampling(0.8, 0.9))
    asyncio.run(engine.generate("actor", [request]))
    judged = asyncio.run(
        judge_answer(engine, Prompt("p", "Say hi."), "Hi.", "p/0", Judge(votes=3, max_new_tokens=8))
    )
    report = train_actor(policy, PAIRS, DPO, 0)
    policy.save("actor", folder / "actor")
    again = load(folder / "model", name, quantization)
    again.restore("actor", folder / "actor")
    ids = torch.tensor([prompts[1]])
    with torch.no_grad():
        ours = policy.inner(input_ids=ids).logits
        theirs = again.inner(input_ids=ids).logits
    return {
        "checks": checks,
        "said": said,
        "votes": len(judged.votes),
        "term": report.metrics["dpo_term_step0"],
        "moved": report.metrics["rewards/margins_last"],
        "restored": torch.equal(ours, theirs),
        "greedy": None if checks[0].fault else ask(policy, "continuous", Sampling()),
        "plain": ask(policy, "static", Sampling()),
    }


def row(name: str, quantization: str, found: dict[str, Any]) -> str:
    """A line for the table: path, logits' distance (separate, merged), ln 2, restored."""
    gaps = [
        c.proved.partition("spread, ")[2].removesuffix(" at most") if c.proved else "-"
        for c in found["checks"]
    ]
    path = f"plain: {fault}" if (fault := found["checks"][0].fault) else "fast"
    same = "yes" if found["restored"] else "NO"
    what = name if quantization == "none" else f"{name}, NF4"
    return f"| {what} | {path} | {gaps[0]} | {gaps[-1]} | {found['term']:.6f} | {same} |\n"


@pytest.mark.parametrize(
    ("name", "quantization"),
    [*((name, "none") for name in CASES), *((name, "nf4") for name in IN_4_BIT)],
)
def test_an_architecture_works_or_is_refused_by_name(
    tmp_path: Path, name: str, quantization: str
) -> None:
    found = through(tmp_path, name, quantization)
    sys.stdout.write(row(name, quantization, found))
    if CASES[name].fast:
        assert {check.fault for check in found["checks"]} == {None}
        assert found["greedy"] == found["plain"]
    else:
        assert "linear_attention" in (found["checks"][0].fault or "")
        assert "using plain generate in static batches" in found["said"][-1]
    assert found["votes"] >= 2
    assert found["term"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["moved"] > 0
    assert found["restored"]


@pytest.mark.parametrize("name", ["Mistral, window", "Gemma 2", "Granite", "Cohere"])
def test_the_check_sees_a_window_scale_or_cap_that_is_left_out(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fast path did until it asked the model itself: full attention and a bare head."""
    from spar_lite.model.decoder import BatchDecoder

    policy = load(tmp_path, name)
    prompts = [policy.encode((Message("user", text),)) for text in TEXTS]
    whole: Callable[..., Any] = BatchDecoder._forward

    def bare(self: BatchDecoder, *rest: Any) -> torch.Tensor:
        config = policy.inner.config
        if name == "Mistral, window":
            self.windows = {"sliding_attention": None}
        logits: torch.Tensor = whole(self, *rest)
        if name == "Gemma 2":
            logits = torch.atanh(logits / config.final_logit_softcapping)
        if name == "Granite":
            logits = logits * config.logits_scaling
        return logits / config.logit_scale if name == "Cohere" else logits

    monkeypatch.setattr(BatchDecoder, "_forward", bare)
    assert "differs from plain forward passes" in (
        self_check(policy, 4, "separate", prompts).fault or ""
    )


def test_a_window_that_depends_on_the_longest_neighbour_is_seen(tmp_path: Path) -> None:
    """GPT-Neo reckons a row's place from the width of the batch: a short row loses its past."""
    write_model(
        tmp_path,
        transformers.GPTNeoConfig,
        num_layers=2,
        num_heads=4,
        window_size=WINDOW,
        attention_types=[[["global", "local"], 1]],
    )
    policy = Policy.load(Model(id=str(tmp_path), device="cpu", threads=1), 0)
    prompts = [policy.encode((Message("user", text),)) for text in ("Hi.", "Ho!", "He?")]
    assert "differs from plain" in (self_check(policy, 3, "separate", prompts, 100).fault or "")


def test_long_rope_ends_before_its_second_factors(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope["rope_theta"] = 10000.0
    more = {"rope_parameters": rope, "original_max_position_embeddings": 128}
    write_model(tmp_path, transformers.Phi3Config, **more)
    policy = Policy.load(Model(id=str(tmp_path), device="cpu", threads=1), 0)
    assert policy.positions == 128
    for path in ("auto", "continuous", "static"):
        engine = RolloutEngine(policy, EngineSettings(path=path), 0)  # type: ignore[arg-type]
        ask = Request("a", (Message("user", "Name a colour."),), 500, Sampling())
        (done,) = asyncio.run(engine.generate("base", [ask]))
        assert done.prompt_tokens + done.completion_tokens <= 128
        with pytest.raises(EngineError, match="the model reads 128 with the reply"):
            long = Request("b", (Message("user", "word " * 40),), 4, Sampling())
            asyncio.run(engine.generate("base", [long]))


def test_short_and_long_prompts_share_no_static_batch_beyond_the_positions(tmp_path: Path) -> None:
    """The shorter one's room is larger, and the batch would run past the longer one's end."""
    policy = load(tmp_path, "GPT-2")
    engine = RolloutEngine(policy, EngineSettings(path="static", batch=8), 0)
    requests = [
        Request(f"r{n}", (Message("user", "x" * (40 if n % 2 else 900)),), 150, Sampling())
        for n in range(4)
    ]
    found = asyncio.run(engine.generate("base", requests))
    alone = [
        asyncio.run(RolloutEngine(policy, EngineSettings(path="static"), 0).generate("base", [r]))
        for r in requests
    ]
    assert [[c] for c in found] == alone
    # The self-check keeps within them, too, with prompts that leave room for one token.
    prompts = [policy.encode((Message("user", "x" * n),)) for n in (1003, 1004)]
    assert max(map(len, prompts)) == 1023
    assert self_check(policy, 2, "separate", prompts).fault is None


def test_a_prompt_beyond_the_positions_is_one_line_and_a_reply_ends_where_they_do(
    tmp_path: Path,
) -> None:
    policy = load(tmp_path, "GPT-2")
    for path in ("static", "continuous"):
        with pytest.raises(
            EngineError, match=r"its prompt has 1\d+ tokens, and the model reads 1024"
        ):
            ask(policy, path, Sampling(), ["word " * 220])
        assert ask(policy, path, Sampling(), ["x" * 980])  # 15 to go, with the template's own
