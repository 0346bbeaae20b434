"""Measuring: the engine, the two baselines, the machine's limits, the training steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spar_lite.app.bench.baselines import one_at_a_time, static_batches
from spar_lite.app.bench.doctor import give_adapters_weight
from spar_lite.app.bench.roofline import roofline
from spar_lite.app.bench.workloads import (
    Group,
    Sizes,
    Writer,
    flat,
    judge_groups,
    sample_groups,
    search_groups,
    work,
)
from spar_lite.engines.base import Request
from spar_lite.errors import ModelError
from spar_lite.model import Policy, RolloutEngine
from spar_lite.model.machine import give_back, is_out_of_memory, peak_memory, reset_peak
from spar_lite.recipe import Recipe
from spar_lite.records import PreferencePair, TrainingExample

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What to measure.

    ``baselines``: also run plain ``generate``, one at a time and in static batches of
    ``static_batch``. ``train_tokens``: tokens of one training example; 0 skips training.
    ``memory_bytes``: a cap; exceeding it is an error. 0 is no cap.
    """

    sizes: Sizes
    static_batch: int = 16
    train_tokens: int = 256
    train_steps: int = 3
    baselines: bool = True
    memory_bytes: int = 0
    seed: int = 0


def bench(policy: Policy, recipe: Recipe, plan: Bench, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure everything in one run.

    Raises:
        ModelError: the memory cap was exceeded.
    """
    give_adapters_weight(policy)
    found: dict[str, Any] = {"model": recipe.model.id, "date": time.strftime("%Y-%m-%d")}
    found |= _machine(policy)
    checks: list[str] = []
    engine = RolloutEngine(
        policy, recipe.engine, plan.seed, checks.append, recipe.model.memory_fraction
    )
    fast = engine.fast("refiner")
    engine.eos = ()  # every reply runs to its scripted length
    writer = Writer(policy.encode, plan.seed)
    workloads = {
        "sample": sample_groups(writer, plan.sizes),
        "judge": judge_groups(writer, plan.sizes),
        "search": search_groups(writer, plan.sizes),
    }
    found["self_check"] = {"fast_path": fast, "said": checks}
    found["workloads"] = {}
    try:
        for name, groups in workloads.items():
            say(f"{name}: {len(flat(groups))} requests")
            found["workloads"][name] = _measure(policy, engine, groups)
        search = found["workloads"]["search"]
        say("the machine's bandwidth and arithmetic")
        found["roofline"] = roofline(policy, search)
        policy.switch("refiner")
        policy.slow_down()
        if plan.baselines:
            found |= _against(policy, plan, flat(workloads["search"]), search, say)
        if plan.train_tokens:
            found["training"] = training(policy, recipe, plan, say)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _too_much(plan, "the allocator had no more to give") from None
    found["decode_tokens_per_s"] = search["decode_tokens_per_s"]
    found["occupancy"] = search["occupancy"]
    found["roofline_share"] = found["roofline"]["share"]
    peaks = [*found["workloads"].values(), *found.get("training", {}).values()]
    found["peak_memory_bytes"] = max(part["peak_memory_bytes"] for part in peaks)
    if plan.memory_bytes and found["peak_memory_bytes"] > plan.memory_bytes:
        raise _too_much(plan, f"{found['peak_memory_bytes'] / 2**30:.1f} GiB at the peak")
    return found


def _too_much(plan: Bench, what: str) -> ModelError:
    return ModelError(
        f"wanted at most {plan.memory_bytes / 2**30:.1f} GiB, found {what}. Try a smaller "
        "-o engine.batch, --train-tokens or model."
    )


def _machine(policy: Policy) -> dict[str, Any]:
    cuda = policy.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(policy.inner.dtype).removeprefix("torch."),
        "quantized": policy.quantized,
    }


def _measure(policy: Policy, engine: RolloutEngine, groups: Sequence[Group]) -> dict[str, Any]:
    """One workload through the engine."""
    give_back(policy.device)
    reset_peak(policy.device)
    engine.take_usage()
    start = time.perf_counter()
    asyncio.run(work(engine, "refiner", groups))
    seconds = time.perf_counter() - start
    used = engine.take_usage()
    in_step = used.prefill_seconds + used.decode_seconds
    return {
        "requests": used.calls,
        "seconds": seconds,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "computed_prompt_tokens": used.prefill_tokens,
        "finished_tokens_per_s": used.completion_tokens / seconds,
        "prompt_tokens_per_s": _rate(used.prefill_tokens, used.prefill_seconds),
        "decode_tokens_per_s": _rate(used.running, used.decode_seconds),
        "steps": used.steps,
        "seconds_per_step": used.decode_seconds / max(1, used.steps),
        "occupancy": used.occupancy,
        "slots": engine.slots,
        "merged_weights": policy.fast is not None,
        # On CUDA the model's own time is not known without stopping it at every call.
        "outside_model_share": None
        if policy.device.type == "cuda"
        else 1 - used.model_seconds / seconds,
        "outside_steps_share": 1 - in_step / seconds,
        "peak_memory_bytes": peak_memory(policy.device),
    }


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0


def _against(
    policy: Policy, plan: Bench, requests: Sequence[Request], ours: dict[str, Any], say: Say
) -> dict[str, Any]:
    """The same requests through plain ``generate``; ratios of finished tokens a second."""
    say("plain generate, one at a time")
    naive = one_at_a_time(policy, requests)
    say(f"plain generate, batches of {plan.static_batch} sorted by the reply's length")
    static = static_batches(policy, requests, plan.static_batch)
    rate = ours["finished_tokens_per_s"]
    return {
        "baselines": {"naive": naive, "static": static},
        "ratios": {
            "naive": rate / naive["finished_tokens_per_s"],
            "static": rate / static["finished_tokens_per_s"],
        },
    }


# --- Training -------------------------------------------------------------------------------------


def training(policy: Policy, recipe: Recipe, plan: Bench, say: Say) -> dict[str, Any]:
    """A few DPO and SFT steps on examples of one length, with the recipe's settings."""
    from spar_lite.train import train_actor, train_on_examples

    half = plan.train_tokens // 2
    writer = Writer(policy.encode, plan.seed)
    found = {}

    def text(id: str) -> str:
        return writer.chat(id, (half, half))[0].content

    dpo = recipe.dpo.model_copy(update={"max_length": 4 * plan.train_tokens, "epochs": 1})
    pairs = [
        PreferencePair(
            f"p{n}", f"p{n}", writer.chat(f"p{n}", (half, half)), text(f"c{n}"), text(f"r{n}")
        )
        for n in range(plan.train_steps * dpo.batch_size)
    ]
    say(f"DPO: {plan.train_steps} steps of {dpo.batch_size} pairs")
    found["dpo"] = _train(policy, lambda: train_actor(policy, pairs, dpo, plan.seed))
    rft = recipe.rft.model_copy(update={"max_length": 4 * plan.train_tokens, "epochs": 1})
    rows = [
        TrainingExample(f"e{n}", "bench", writer.chat(f"e{n}", (half, half)), text(f"t{n}"))
        for n in range(plan.train_steps * rft.batch_size)
    ]
    say(f"SFT: {plan.train_steps} steps of {rft.batch_size} examples")
    found["sft"] = _train(
        policy, lambda: train_on_examples(policy, "refiner", rows, rft, plan.seed)
    )
    return found


def _train(policy: Policy, call: Callable[[], Any]) -> dict[str, Any]:
    give_back(policy.device)
    reset_peak(policy.device)
    done = call()
    return {
        "steps": done.steps,
        "tokens": done.tokens,
        "seconds": done.seconds,
        "tokens_per_s": done.tokens / done.seconds,
        "peak_memory_bytes": peak_memory(policy.device),
    }
