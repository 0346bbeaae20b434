"""What the bench command measures: engine and training, beside plain ``generate`` and the machine.

Its workloads are what a SPaR iteration asks of an engine. Random-weight or untrained models would
stop anywhere; here every reply runs to a length drawn beforehand, the same for every engine that is
compared. One run gives one dictionary of figures.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from spar_lite.app.shapes import give_adapters_weight
from spar_lite.app.tables import make_table, memory_cell
from spar_lite.engines.base import Engine, Request, Sampling
from spar_lite.model import Policy, RolloutEngine
from spar_lite.model.cache import bytes_per_position
from spar_lite.model.machine import give_back, peak_memory, reset_peak
from spar_lite.recipe import Recipe
from spar_lite.records import Message, PreferencePair, Role, TrainingExample, stable_seed
from spar_lite.train import TrainingReport, train_actor, train_on_examples

Figures = dict[str, Any]


# --- What is asked --------------------------------------------------------------------------------

BRANCH, VOTES = 2, 2
"""Answers to a prompt and refinements of an answer; votes on each of them."""

PROMPT, LONG_PROMPT = (30, 60), (100, 200)
"""Tokens of a sampled answer's prompt, of a judgement's or refinement's; both ends included."""

REPLY, VOTE = (8, 160), (8, 64)
"""Tokens of an answer or refinement, of a judgement."""

SAMPLING = Sampling(temperature=0.7)

Asked = list[tuple[Request, list[Request]]]
"""Requests, each with those that follow once it is answered."""


@dataclass(frozen=True)
class Writer:
    """Makes texts of a wanted length in tokens."""

    encode: Callable[[Sequence[Message]], list[int]]
    seed: int

    def chat(self, id: str, span: tuple[int, int]) -> tuple[Message, ...]:
        """One user turn whose whole prompt has about as many tokens as ``span`` says."""
        rng = random.Random(stable_seed(self.seed, id))
        wanted = rng.randint(*span)
        text = id
        while len(self.encode((Message("user", text),))) < wanted:
            text += " " + rng.choice("abcdefghijklmnopqrstuvwxyz")
        return (Message("user", text),)

    def group(
        self, id: str, prompt: tuple[int, int], reply: tuple[int, int], count: int
    ) -> list[Request]:
        """``count`` requests with one prompt, each with a length of its own."""
        chat = self.chat(id, prompt)
        lengths = random.Random(stable_seed(self.seed, id, "lengths"))
        return [Request(f"{id}/{n}", chat, lengths.randint(*reply), SAMPLING) for n in range(count)]


def workloads(writer: Writer, trees: int) -> dict[str, Asked]:
    """Sampling, judging, and a search: two votes on each child of a node, as it comes."""

    def groups(name: str, prompt: tuple[int, int], reply: tuple[int, int], count: int) -> Asked:
        ids = [f"{name}-{n}" for n in range(trees)]
        return [(r, []) for id in ids for r in writer.group(id, prompt, reply, count)]

    children = groups("tree", LONG_PROMPT, REPLY, BRANCH)
    return {
        "sample": groups("sample", PROMPT, REPLY, BRANCH),
        "judge": groups("judge", LONG_PROMPT, VOTE, VOTES),
        "search": [(r, writer.group(f"{r.id}/v", LONG_PROMPT, VOTE, VOTES)) for r, _ in children],
    }


def flat(asked: Asked) -> list[Request]:
    """Every request, as if none depended on another."""
    return [r for request, after in asked for r in (request, *after)]


async def ask(engine: Engine, role: Role, asked: Asked) -> None:
    """Ask for everything: what depends on a reply as soon as it is there."""

    async def one(request: Request, after: list[Request]) -> None:
        await engine.generate(role, [request])
        await asyncio.gather(*(engine.generate(role, [r]) for r in after))

    await asyncio.gather(*(one(request, after) for request, after in asked))


# --- What is measured -----------------------------------------------------------------------------

NAIVE_SAMPLE = 16
"""Requests that are also answered one at a time: that is slow, and the rate is steady."""

STATIC_BATCH, STATIC_SAMPLE = 16, 6
"""The size of a static batch, and how many are answered, for the same reason."""

TRAIN_STEPS = 3


def measure(
    policy: Policy, recipe: Recipe, trees: int, tokens: int, baselines: bool, console: Console
) -> Figures:
    """Everything in one run; ``tokens``: of a training example, 0 skips training."""

    def say(text: str) -> None:
        console.print(f"[dim]{text} …[/]")

    give_adapters_weight(policy)
    checks: list[str] = []
    share = recipe.model.memory_fraction
    engine = RolloutEngine(policy, recipe.engine, recipe.seed, checks.append, share)
    found: Figures = {
        "model": recipe.model.id,
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if policy.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(policy.inner.dtype).removeprefix("torch."),
        "quantized": policy.quantized,
        "self_check": {"fast_path": engine.fast("refiner"), "said": checks},
        "workloads": {},
    }
    engine.eos = ()  # every reply runs to its scripted length
    writer = Writer(policy.encode, recipe.seed)
    asked = workloads(writer, trees)
    for name, requests in asked.items():
        say(f"{name}: {len(flat(requests))} requests")
        found["workloads"][name] = engine_figures(policy, engine, requests)
    search = found["workloads"]["search"]
    say("the machine's bandwidth and arithmetic")
    found["roofline"] = roofline(policy, search)
    policy.switch("refiner")
    policy.slow_down()
    if baselines:
        plain = found["baselines"] = {}
        say("plain generate, one at a time")
        plain["naive"] = baseline(policy, flat(asked["search"]), 1, NAIVE_SAMPLE)
        say(f"plain generate, batches of {STATIC_BATCH} sorted by the reply's length")
        plain["static"] = baseline(policy, flat(asked["search"]), STATIC_BATCH, STATIC_SAMPLE)
        rate = "finished_tokens_per_s"
        found["ratios"] = {name: search[rate] / part[rate] for name, part in plain.items()}
    if tokens:
        found["training"] = training_figures(policy, recipe, writer, tokens, say)
    parts = [*found["workloads"].values(), *found.get("training", {}).values()]
    return {
        **found,
        "decode_tokens_per_s": search["decode_tokens_per_s"],
        "occupancy": search["occupancy"],
        "roofline_share": found["roofline"]["share"],
        "peak_memory_bytes": max(part["peak_memory_bytes"] for part in parts),
    }


def engine_figures(policy: Policy, engine: RolloutEngine, asked: Asked) -> Figures:
    """One workload through the engine."""
    give_back(policy.device)
    reset_peak(policy.device)
    engine.take_usage()
    start = time.perf_counter()
    asyncio.run(ask(engine, "refiner", asked))
    seconds = time.perf_counter() - start
    used = engine.take_usage()
    # On CUDA the model's own time is not known without stopping it at every call.
    known = policy.device.type != "cuda"
    return {
        "requests": used.calls,
        "seconds": seconds,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "computed_prompt_tokens": used.prefill_tokens,
        "finished_tokens_per_s": used.completion_tokens / seconds,
        "prompt_tokens_per_s": used.prefill_tokens / max(1e-9, used.prefill_seconds),
        "decode_tokens_per_s": used.running / max(1e-9, used.decode_seconds),
        "steps": used.steps,
        "seconds_per_step": used.decode_seconds / max(1, used.steps),
        "occupancy": used.occupancy,
        "slots": engine.slots,
        "merged_weights": policy.fast is not None and policy.fast.kind == "merged",
        "outside_model_share": 1 - used.model_seconds / seconds if known else None,
        "outside_steps_share": 1 - (used.prefill_seconds + used.decode_seconds) / seconds,
        "peak_memory_bytes": peak_memory(policy.device),
    }


def baseline(policy: Policy, requests: Sequence[Request], size: int, most: int) -> Figures:
    """Plain ``generate`` on about ``most`` batches, evenly chosen; each runs to its longest reply.

    They are sorted by the reply's length, which no real batch knows before.
    """
    ordered = sorted(requests, key=lambda r: r.max_new_tokens)
    batches = [ordered[n : n + size] for n in range(0, len(ordered), size)]
    every = max(1, len(batches) // most)
    batches = batches[every // 2 :: every]
    tokens = sum(r.max_new_tokens for batch in batches for r in batch)
    start = time.perf_counter()
    for batch in batches:
        prompts = {"input_ids": [policy.encode(r.messages) for r in batch]}
        padded = policy.tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            policy.inner.generate(
                **padded.to(policy.device),
                max_new_tokens=batch[-1].max_new_tokens,
                min_new_tokens=batch[-1].max_new_tokens,
                pad_token_id=policy.tokenizer.pad_token_id,
                do_sample=True,
                temperature=SAMPLING.temperature,
                top_k=0,
            )
    seconds = time.perf_counter() - start
    return {
        "batch": size,
        "requests": sum(map(len, batches)),
        "tokens": tokens,
        "seconds": seconds,
        "finished_tokens_per_s": tokens / seconds,
    }


def roofline(policy: Policy, ours: Figures) -> Figures:
    """The least time that a mean decoding step could take on this machine, and our share of it.

    bytes: all weights as they are stored (once), plus the keys and values of the running rows, over
    the measured bandwidth; operations: two a parameter and row, over the measured rate of a large
    product. The larger of both bounds the step.
    """
    rows = ours["occupancy"] * ours["slots"]
    length = (ours["prompt_tokens"] + ours["completion_tokens"] / 2) / max(1, ours["requests"])
    config, merged = policy.inner.config.get_text_config(), ours["merged_weights"]
    head, itemsize = config.vocab_size * config.hidden_size, policy.inner.dtype.itemsize
    moved = rows * length * bytes_per_position(config, itemsize)
    if config.tie_word_embeddings:  # the head reads the embedding's weights
        moved += head * itemsize
    for name, weight in policy.inner.named_parameters():
        other = "lora_" in name and (merged or ".refiner." not in name)
        if not (other or "embed_tokens" in name):
            unpacked = merged and weight.dtype == torch.uint8  # two 4-bit weights share a byte
            moved += weight.numel() * (2 * itemsize if unpacked else weight.itemsize)
    linear = (m for n, m in policy.inner.named_modules() if n.endswith("base_layer"))
    products = head + sum(m.in_features * m.out_features for m in linear)
    # Bandwidth: a sum over far more than any cache. Arithmetic: a product in the model's dtype.
    device, cuda = policy.device, policy.device.type == "cuda"
    numbers = torch.ones((1 << 30 if cuda else 256 << 20) // 4, device=device)
    size = 8192 if cuda else 1024
    square = torch.ones(size, size, dtype=policy.inner.dtype, device=device)
    needs = {"bytes": moved, "operations": 2 * products * rows}
    gives = {
        "bytes": 4 * numbers.numel() / _least_seconds(device, numbers.sum),
        "operations": 2 * size**3 / _least_seconds(device, lambda: square @ square),
    }
    shares = {key: needs[key] / gives[key] / ours["seconds_per_step"] for key in needs}
    bound = max(shares, key=lambda key: shares[key])
    return {
        **{f"{key}_per_step": amount for key, amount in needs.items()},
        **{f"{key}_per_s": rate for key, rate in gives.items()},
        "bound": bound,
        "bytes_share": shares["bytes"],
        "share": shares[bound],
    }


def _least_seconds(device: torch.device, call: Callable[[], object]) -> float:
    """The shortest of seven calls."""
    took, wait = [], torch.get_device_module(device).synchronize
    for _ in range(7):
        wait()
        start = time.perf_counter()
        call()
        wait()
        took.append(time.perf_counter() - start)
    return min(took)


def training_figures(
    policy: Policy, recipe: Recipe, writer: Writer, tokens: int, say: Callable[[str], None]
) -> Figures:
    """A few DPO and SFT steps on examples of one length, with the recipe's settings."""

    def chat(id: str) -> tuple[Message, ...]:
        return writer.chat(id, (tokens // 2, tokens // 2))

    def text(id: str) -> str:
        return chat(id)[0].content

    def figures(name: str, batch: str, train: Callable[[], TrainingReport]) -> Figures:
        say(f"{name}: {TRAIN_STEPS} steps of {batch}")
        give_back(policy.device)
        reset_peak(policy.device)
        done = train()
        return {
            "steps": done.steps,
            "tokens": done.tokens,
            "seconds": done.seconds,
            "tokens_per_s": done.tokens / done.seconds,
            "peak_memory_bytes": peak_memory(policy.device),
        }

    long = {"max_length": 4 * tokens, "epochs": 1}
    dpo, rft = recipe.dpo.model_copy(update=long), recipe.rft.model_copy(update=long)
    pairs = [
        PreferencePair(f"p{n}", f"p{n}", chat(f"p{n}"), text(f"c{n}"), text(f"r{n}"))
        for n in range(TRAIN_STEPS * dpo.batch_size)
    ]
    rows = [
        TrainingExample(f"e{n}", "bench", chat(f"e{n}"), text(f"t{n}"))
        for n in range(TRAIN_STEPS * rft.batch_size)
    ]
    actor = partial(train_actor, policy, pairs, dpo, recipe.seed)
    refiner = partial(train_on_examples, policy, "refiner", rows, rft, recipe.seed)
    return {
        "dpo": figures("DPO", f"{dpo.batch_size} pairs", actor),
        "sft": figures("SFT", f"{rft.batch_size} examples", refiner),
    }


# --- What is shown --------------------------------------------------------------------------------


def bench_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Engine, limits and training, as far as they were measured."""
    weights = "4-bit NF4" if found["quantized"] else found["dtype"]
    where = f"{found['device']}, {found['threads']} threads, {weights}"
    table = make_table(
        f"{found['model']} on {where}, torch {found['torch']}",
        *("workload", "requests", "seconds", "finished tokens/s", "prompt tokens/s"),
        *("decode tokens/s", "busy", "outside model", "peak memory"),
    )
    for name, part in found["workloads"].items():
        outside = part["outside_model_share"]
        table.add_row(
            name,
            str(part["requests"]),
            f"{part['seconds']:.1f}",
            *(f"{part[f'{key}_tokens_per_s']:.1f}" for key in ("finished", "prompt", "decode")),
            f"{100 * part['occupancy']:.0f} % of {part['slots']}",
            "-" if outside is None else f"{100 * outside:.1f} %",
            memory_cell(part["peak_memory_bytes"], 2),
        )
    names = {"naive": "search, one at a time", "static": "search, static batches"}
    for name, part in found.get("baselines", {}).items():
        ratio = f"ours is {found['ratios'][name]:.1f} x"
        rate = f"{part['finished_tokens_per_s']:.1f}"
        table.add_row(
            names[name], str(part["requests"]), f"{part['seconds']:.1f}", rate, ratio, *[""] * 4
        )
    yield table

    roof, step = found["roofline"], found["workloads"]["search"]["seconds_per_step"]
    table = make_table(
        "A decoding step of the search, against the machine's limits",
        *("", "a step needs", "the machine gives", "share reached"),
    )
    for name, unit, places in (("bytes", "GB", 1), ("operations", "G", 0)):
        needs, gives = roof[f"{name}_per_step"], roof[f"{name}_per_s"]
        share = f"{100 * needs / gives / step:.0f} %"
        table.add_row(
            name, f"{needs / 1e9:.2f} {unit}", f"{gives / 1e9:.{places}f} {unit}/s", share
        )
    yield table

    if "training" in found:
        columns = ("", "steps", "tokens", "seconds", "tokens/s", "peak memory")
        table = make_table("Training", *columns)
        for name, part in found["training"].items():
            table.add_row(
                name.upper(),
                str(part["steps"]),
                str(part["tokens"]),
                f"{part['seconds']:.1f}",
                f"{part['tokens_per_s']:.1f}",
                memory_cell(part["peak_memory_bytes"], 2),
            )
        yield table
