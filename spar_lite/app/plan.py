"""The plan command: what a recipe will take, stage by stage, before anything is downloaded.

Requests and tokens follow from the recipe; how many answers fail, and how long replies get, are
assumptions (``ASSUMED``), so that all but memory is a range. Memory is the recipe's upper end.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import click
import psutil
from rich.table import Table

from spar_lite.app.console import make_console
from spar_lite.app.tables import make_table
from spar_lite.errors import ModelError, RecipeError, did_you_mean
from spar_lite.footprint import (
    ADAPTER_BYTES,
    PREFILL_TOKENS,
    SLOTS,
    TRAINED_BYTES,
    Shape,
    model_shape,
)
from spar_lite.recipe import Recipe, Training, load_recipe
from spar_lite.run import Screen, start_folder
from spar_lite.store import json_text, write_text
from spar_lite.warmup import ALONE, BEFORE_PAIRS


class Range(NamedTuple):
    """The least and the most that is expected."""

    low: float
    high: float

    def times(self, other: float | Range) -> Range:
        """The product with a number or another range."""
        low, high = other if isinstance(other, Range) else (other, other)
        return Range(self.low * low, self.high * high)

    def plus(self, other: Range) -> Range:
        """The sum."""
        return Range(self.low + other.low, self.high + other.high)


class Card(NamedTuple):
    """A device: gigabytes, gigabytes a second, tera-operations a second at 16 bits, has bf16."""

    memory: float
    bandwidth: float
    tera: float
    bf16: bool = True


CARDS = {
    "8gb": Card(8, 448, 41),
    "16gb": Card(16, 288, 44),
    "24gb": Card(24, 936, 71),
    "rtx3060": Card(12, 360, 51),
    "rtx3090": Card(24, 936, 71),
    "rtx4090": Card(24, 1008, 165),
    "rtx5090": Card(32, 1792, 210),
    "t4": Card(15, 320, 65, bf16=False),
    "l4": Card(24, 300, 121),
    "a100": Card(80, 2039, 312),
    "h100": Card(80, 3350, 989),
}
"""Cards by name: the makers' figures (8gb: RTX 3070, 16gb: 4060 Ti). ``cpu`` is this processor."""

ASSUMED: Mapping[str, Range] = {
    "builtin": Range(45, 55),
    "instruction": Range(50, 150),
    "answer": Range(100, 300),
    "judgement": Range(100, 200),
    "refinement": Range(150, 350),
    "failed": Range(0.35, 0.65),  # of the prompts
    "solved": Range(0.25, 0.6),  # of the trees
    "searched": Range(0.4, 0.8),  # of the nodes that a tree may have
}
"""Tokens of what a recipe does not say, and shares that only a run can tell."""

TEMPLATE = 90
"""Tokens of a judge's or refiner's own words."""

ROOFLINE = Range(0.10, 0.22)
"""Share of a decoding step's bytes a second that is reached (of a 4090's, by simulation)."""

LAUNCHES, LAUNCH = 129, Range(7e-6, 25e-6)
"""Kernels of a layer in a step, and the host's seconds for each (H100: 25 microseconds, LOG.md)."""

TRAINED = Range(0.2, 0.5)
"""Share of a card's operations that training reaches (H100: 0.21)."""

CPU_DECODED, CPU_TRAINED = Range(12e9, 25e9), Range(25e9, 45e9)
"""Operations a second and core that decoding and training reach in float32 (LOG.md)."""

JUDGED = {"responses": "judgements", "other_answers": "other_judgements"}
"""Which step judges the answers of which."""

NEAR = Range(0.8, 1.25)
"""How far a run is from what the bench command measured."""

CORES = psutil.cpu_count(logical=True) or 1
PLANNED = "planned.json"
"""A run's file of the seconds, least and most, that were planned for each step."""

DAY = 86_400
GB = 1e9


@dataclass(frozen=True)
class Stage:
    """One step: its label in the run, requests, tokens in and out, seconds, bytes at the peak."""

    label: str
    requests: Range
    tokens: Range
    seconds: Range
    memory: float
    rows: int = 0


@dataclass(frozen=True)
class Machine:
    """A card, or this processor, and what the recipe's model takes on it."""

    name: str
    recipe: Recipe
    shape: Shape
    measured: tuple[float, float] | None = None
    """Tokens a second of the bench command here: generated, trained."""
    memory: float | None = None
    """Bytes of the card that is there, whatever its name stands for elsewhere."""

    @property
    def cpu(self) -> bool:
        return self.name == "cpu"

    @property
    def kind(self) -> str:
        return "cpu" if self.cpu else "cuda"

    @property
    def quantized(self) -> bool:
        wanted = self.recipe.model.quantization
        return wanted == "nf4" or (wanted == "auto" and not self.cpu)

    @property
    def item(self) -> int:
        return 4 if self.cpu else 2

    @property
    def total(self) -> float:
        """Bytes of the device."""
        if self.cpu:
            return float(psutil.virtual_memory().total)
        return self.memory or CARDS[self.name].memory * GB

    @property
    def limit(self) -> float:
        """Bytes that the recipe lets a run take of them."""
        return self.recipe.model.memory_fraction * self.total

    @property
    def resting(self) -> float:
        """Base and both adapters."""
        weights = self.shape.adapter_weights(self.recipe.model.lora.r)
        base = self.shape.base_bytes(self.item, self.quantized)
        # On a CPU a role answers with merged weights, a copy of the linear layers.
        merged = self.shape.linear_weights * self.item if self.cpu else 0
        return base + merged + 2 * weights * ADAPTER_BYTES

    def answer(self, label: str, requests: Range, prompt: Range, reply: Range, most: int) -> Stage:
        """A stage in which a role answers; ``most``: tokens of the longest prompt and reply."""
        prefill = self.shape.prefill_bytes(self.item) * PREFILL_TOKENS[self.kind]
        free = max(0.0, self.limit - self.resting - prefill)
        token = self.shape.cache_bytes(self.item)
        asked = max(1, math.ceil(requests.high))
        slots = min(asked, self.recipe.engine.batch or SLOTS[self.kind])
        rows, usual = (
            int(min(slots, free // (token * n))) for n in (most, prompt.plus(reply).high)
        )
        step = self._step(usual, prompt.plus(reply).high)
        # Of the prompts' tokens many are copied from another request's.
        seconds = reply.times(step).plus(prompt.times(Range(0.3, 1)).times(self._read()))
        memory = self.resting + prefill + max(rows, 1) * token * most
        return Stage(label, requests, requests.times(reply), requests.times(seconds), memory, rows)

    def _step(self, rows: int, context: float) -> Range:
        """Seconds of one token of one of ``rows`` replies."""
        rows = max(1, rows)
        if self.measured:
            return NEAR.times(1 / self.measured[0])
        if self.cpu:
            rate, work = CPU_DECODED.times(CORES), 2 * self.shape.parameters
            return Range(work / rate.high, work / rate.low)
        read = self.shape.base_bytes(self.item, self.quantized)
        read += int(rows * context * self.shape.cache_bytes(self.item))
        roofline = read / (CARDS[self.name].bandwidth * GB)
        host = LAUNCH.times(LAUNCHES * self.shape.layers)
        return Range(
            max(roofline / ROOFLINE.high, host.low) / rows,
            max(roofline / ROOFLINE.low, host.high) / rows,
        )

    def _read(self) -> Range:
        """Seconds of one prompt token that is computed: a third of a trained one's work."""
        if self.measured:
            return Range(0, 0)  # it is part of what was measured
        rate, work = self._trained(), 2 * self.shape.parameters
        return Range(work / rate.high, work / rate.low)

    def _trained(self) -> Range:
        """Operations a second in training."""
        if self.cpu:
            return CPU_TRAINED.times(CORES)
        return TRAINED.times(CARDS[self.name].tera * 1e12)

    def train(
        self, label: str, examples: Range, tokens: Range, settings: Training, rows: int
    ) -> Stage:
        """A training of examples of so many tokens; ``rows``: replies of one example (DPO: two)."""
        all_tokens = examples.times(tokens).times(settings.epochs)
        # Forward, backward to the inputs, and the forward pass again where it was not kept.
        passes = 6 if settings.gradient_checkpointing else 4
        work, rate = all_tokens.times(passes * self.shape.parameters), self._trained()
        seconds = Range(work.low / rate.high, work.high / rate.low)
        if self.measured:
            seconds = all_tokens.times(NEAR).times(1 / self.measured[1])
        # The longest example alone, or as many as a pass takes; no more than a step has.
        longest = rows * (tokens.high if self.cpu else settings.max_length)
        wide = max(longest, min(settings.pass_tokens, settings.batch_size * longest))
        weights = self.shape.adapter_weights(self.recipe.model.lora.r)
        each = self.shape.trained_token_bytes(self.item, settings.gradient_checkpointing)
        memory = self.resting + TRAINED_BYTES * weights + wide * each
        return Stage(label, examples, all_tokens, seconds, memory)


def planned(recipe: Recipe, machine: Machine) -> Iterator[Stage]:
    """Every step that costs more than a moment, under the run's own label, in order.

    But not what is taught from files: how many rows they hold is not known here.
    """
    warm, prompt = recipe.bootstrap, _instruction(recipe)
    lines = {
        "judge": _reply("judgement", recipe.judge.max_new_tokens),
        "refine": _reply("refinement", recipe.search.max_new_tokens),
    }
    yield from _score(recipe, machine, "base")
    if warm.source == "constraints" and not warm.start_from:
        answer = _reply("answer", warm.max_new_tokens)
        asked = float(warm.prompts * warm.k)
        most = int(prompt.high) + warm.max_new_tokens
        yield machine.answer("bootstrap/answers", Range(asked, asked), prompt, answer, most)
        rows = Range(0.5 * asked, 2 * asked)
        rows = _at_most(rows, warm.examples or math.inf)
        chat = prompt.plus(answer).plus(Range(TEMPLATE, TEMPLATE)).plus(lines["judge"])
        parts = 2 if warm.curriculum == "judgements" else 1
        yield machine.train("bootstrap/refiner", rows.times(parts), chat, warm, 1)
        if warm.actor:
            good = Range(0.2 * asked, 0.5 * asked)
            own = BEFORE_PAIRS if warm.pairs else "actor"
            label = f"bootstrap/{ALONE if recipe.refiner == 'shared' else own}"
            yield machine.train(label, good, prompt.plus(answer), warm, 1)
    if start_folder(recipe) == "bootstrap":
        yield from _score(recipe, machine, "bootstrap")
    for number in range(1, recipe.iterations + 1):
        yield from _iteration(recipe, machine, f"iteration-{number}", prompt, lines)


def _iteration(
    recipe: Recipe, machine: Machine, name: str, prompt: Range, lines: Mapping[str, Range]
) -> Iterator[Stage]:
    sample, judge, search = recipe.sample, recipe.judge, recipe.search
    answer = _reply("answer", sample.max_new_tokens)
    # 1. Answers, and votes on each of them.
    answers = float(recipe.prompts.count * sample.k)
    asked = {"responses": answers}
    initial = recipe.dpo.rejected == "initial" and name != "iteration-1"
    if recipe.pairs.source == "constraint-drop" or initial:
        asked["other_answers"] = float(recipe.prompts.count)
    longest = int(prompt.high) + sample.max_new_tokens
    votes = 0.0 if judge.mode == "code" else float(judge.votes)
    each = Range(math.ceil((votes + 1) / 2) if judge.early_stop else votes, votes)
    judged = prompt.plus(answer).plus(Range(TEMPLATE, TEMPLATE))
    most = longest + TEMPLATE + judge.max_new_tokens
    for step, count in asked.items():
        yield machine.answer(f"{name}/{step}", Range(count, count), prompt, answer, longest)
        if votes:
            label = f"{name}/{JUDGED[step]}"
            yield machine.answer(label, each.times(count), judged, lines["judge"], most)
    # 2. Trees: some are solved at their first level, some take all.
    trees = ASSUMED["failed"].times(recipe.prompts.count if search.most else 0)
    nodes = trees.times(ASSUMED["searched"]).times(search.most)
    refined = judged.plus(lines["judge"]).plus(Range(TEMPLATE, TEMPLATE))
    reply = lines["refine"].plus(lines["judge"].times(each))
    longest = int(refined.high) + search.max_new_tokens
    yield machine.answer(f"{name}/trees", nodes, refined, reply, longest)
    # 3. What both adapters learn.
    pairs = solved = trees.times(ASSUMED["solved"])
    if recipe.pairs.source not in ("refined", "first-refinement"):
        pairs = Range(0, recipe.prompts.count)
    pairs = _at_most(pairs, recipe.iterate.pairs or math.inf).plus(Range(0, recipe.dpo.passed))
    label = f"{name}/{ALONE if recipe.refiner == 'shared' else 'actor'}"
    sides = 2 if recipe.actor.method == "dpo" else 1
    yield machine.train(label, pairs, prompt.plus(answer).times(sides), recipe.dpo, sides)
    rft = recipe.rft
    # Of each tree at most its refinement and two critiques; of the answers those that split votes.
    critiques = trees.times(2), Range(0.1 * answers, 0.3 * answers)
    caps = rft.tree_positive + rft.tree_negative, rft.answer_positive + rft.answer_negative
    rows = solved
    for each, cap in zip(critiques, caps, strict=True):
        rows = rows.plus(_at_most(each, cap))
    if recipe.refiner != "frozen":
        yield machine.train(f"{name}/refiner", rows, refined.plus(lines["refine"]), rft, 1)
    yield from _score(recipe, machine, name)


def _score(recipe: Recipe, machine: Machine, name: str) -> Iterator[Stage]:
    settings, prompt = recipe.evaluate, ASSUMED["builtin"]
    if not settings.prompts:
        return
    asked, answer = float(settings.prompts), _reply("answer", settings.max_new_tokens)
    longest = int(prompt.high) + settings.max_new_tokens
    label = f"{name}/heldout_answers"
    yield machine.answer(label, Range(asked, asked), prompt, answer, longest)
    if settings.review:
        again = Range(settings.review, 2.0 * settings.review)
        judged = prompt.plus(answer).plus(Range(TEMPLATE, TEMPLATE))
        reply = _reply("judgement", settings.reply_tokens)
        longest += TEMPLATE + settings.reply_tokens
        yield machine.answer(f"{name}/heldout", again, judged, reply, longest)


def _instruction(recipe: Recipe) -> Range:
    return ASSUMED["builtin" if recipe.prompts.source == "builtin" else "instruction"]


def _at_most(found: Range, most: float) -> Range:
    return Range(min(found.low, most), min(found.high, most))


def _reply(kind: str, most: int) -> Range:
    return Range(min(ASSUMED[kind].low, 0.5 * most), min(ASSUMED[kind].high, most))


# --- What is said ---------------------------------------------------------------------------------


def plan_machine(recipe: Recipe, card: str, bench: Path | None = None) -> Machine:
    """The machine of this name, with the speed that ``spar-lite bench --json`` found for it.

    Raises:
        RecipeError: there is no such card, or the file is none of this model's.
        ModelError: the model's shape is not known.
    """
    if card != "cpu" and card not in CARDS:
        near = did_you_mean(card, [*CARDS, "cpu"])
        raise RecipeError(f"--card: wanted cpu, {', '.join(CARDS)}; found {card}.{near}")
    return Machine(card, recipe, model_shape(recipe.model), _measured(recipe, bench))


def _measured(recipe: Recipe, bench: Path | None) -> tuple[float, float] | None:
    if bench is None:
        return None
    try:
        found = json.loads(bench.read_text(encoding="utf-8"))
        generated = found["workloads"]["search"]["finished_tokens_per_s"]
        rates = float(generated), float(found["training"]["sft"]["tokens_per_s"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"--bench: {bench} has no figures ({type(error).__name__}: {error}). "
            "spar-lite bench RECIPE --json > FILE makes them."
        ) from None
    if found.get("model") != recipe.model.id:
        raise RecipeError(f"--bench: {bench} is of {found.get('model')}, not {recipe.model.id}.")
    return rates


def too_large(stages: list[Stage], machine: Machine) -> str | None:
    """The one setting to change where a step does not fit, in one line; None: everything fits."""
    worst = max(stages, key=lambda stage: stage.memory, default=None)
    if worst is None or worst.memory <= machine.limit:
        return None
    found = f"{worst.label} takes {worst.memory / GB:.1f} GB of {machine.limit / GB:.1f}"
    # "actor_alone" and "actor_before_pairs" are the actor's too.
    recipe, section = machine.recipe, worst.label.rpartition("/")[2].partition("_")[0]
    if machine.resting > 0.9 * machine.limit:
        quantize = "" if machine.quantized else "-o model.quantization=nf4, or "
        return f"{found}: the model itself is too large. Take {quantize}a smaller one."
    if worst.rows or section not in ("actor", "refiner"):
        return f"{found} with one reply at a time. Lower its max_new_tokens."
    key = "bootstrap" if worst.label.startswith("bootstrap") else "dpo"
    key = key if section == "actor" or key == "bootstrap" else "rft"
    settings: Training = getattr(recipe, key)
    if not settings.gradient_checkpointing:
        return f"{found}. Set -o {key}.gradient_checkpointing=true"
    weights = machine.shape.adapter_weights(recipe.model.lora.r)
    left = machine.limit - machine.resting - TRAINED_BYTES * weights
    fit = int(left / machine.shape.trained_token_bytes(machine.item, True)) // 64 * 64
    rows = 2 if key == "dpo" and recipe.actor.method == "dpo" else 1
    if fit < rows * settings.max_length:
        return f"{found}. Set -o {key}.max_length={max(64, fit // rows)}"
    return f"{found}. Set -o {key}.pass_tokens={fit}"


def in_time(seconds: Range) -> str:
    """A range of seconds in the unit that suits it."""
    units = ((1, "s"), (60, "min"), (3600, "h"))
    size, unit = next((u for u in units if seconds.high < 120 * u[0]), units[-1])
    low, high = seconds.times(1 / size)
    digits = 0 if high >= 10 else 1
    return f"{low:.{digits}f} to {high:.{digits}f} {unit}"


def total(stages: list[Stage]) -> Range:
    """Seconds of all steps."""
    return Range(sum(s.seconds.low for s in stages), sum(s.seconds.high for s in stages))


def local_machine(recipe: Recipe) -> Machine:
    """This machine: its card by name, or one with as much memory; its processor without any.

    Raises:
        ModelError: the model's shape is not known.
    """
    import torch

    if recipe.model.device == "cpu" or not torch.cuda.is_available():
        return plan_machine(recipe, "cpu")
    size = float(torch.cuda.mem_get_info()[1])
    card = card_named(torch.cuda.get_device_name(), size)
    return replace(plan_machine(recipe, card), memory=size)


def card_named(device: str, size: float) -> str:
    """The card that a device's name says; else the largest of ours within its bytes."""
    name = device.lower().replace(" ", "")
    named = [card for card in CARDS if re.search(rf"{card}(?!\d)", name)]
    others = [card for card in ("24gb", "16gb", "8gb") if CARDS[card].memory * GB <= size + GB]
    return (named or others or ["8gb"])[0]


def announce(recipe: Recipe, folder: Path, screen: Screen, left: Collection[str]) -> None:
    """Say what the steps that are ``left`` will take, and keep all steps' seconds for ``status``.

    Nothing is said of a model whose shape is not known, or of another machine's engine.
    """
    if recipe.engine.kind != "local":
        return
    try:
        machine = local_machine(recipe)
    except ModelError:
        return
    every = list(planned(recipe, machine))
    stages = [stage for stage in every if stage.label in left]
    fault, seconds = too_large(stages, machine), total(stages)
    peak = max((s.memory for s in stages), default=0.0)
    screen.say(
        f"planned on {machine.name}: {in_time(seconds)}, {peak / GB:.1f} of "
        f"{machine.limit / GB:.1f} GB (spar-lite plan RECIPE shows the steps)"
    )
    if fault:
        screen.say(f"this will hardly fit: {fault}")
    if seconds.low > DAY:
        screen.say("this takes more than a day: lower prompts.count, sample.k or search.depth")
    write_text(folder / PLANNED, json_text({s.label: list(s.seconds) for s in every}))


def plan_table(stages: list[Stage], machine: Machine) -> Table:
    """Requests, tokens, rows at a time, memory and time of every step."""
    columns = ("step", "requests", "tokens", "at a time", "GB", "time")
    table = make_table(f"{machine.recipe.model.id} on {machine.name}", *columns)

    def cells(found: Range) -> str:
        low, high = (f"{value:,.0f}" for value in found)
        return low if low == high else f"{low} to {high}"

    iterations = machine.recipe.iterations
    for stage in stages:
        name = stage.label.partition("/")[0]
        if name.startswith("iteration-") and name != "iteration-1":
            continue
        table.add_row(
            stage.label,
            cells(stage.requests),
            cells(stage.tokens),
            str(stage.rows or "-"),
            f"{stage.memory / GB:.1f}",
            in_time(stage.seconds),
        )
    if iterations > 1:
        table.add_row(f"iterations 2 to {iterations}", "as the first", "", "", "", "")
    table.add_section()
    peak = max((s.memory for s in stages), default=0.0)
    table.add_row("all", "", "", "", f"{peak / GB:.1f}", in_time(total(stages)))
    return table


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--card", default="", help=f"cpu, {', '.join(CARDS)} [default: cpu].")
@click.option("--bench", type=click.Path(path_type=Path), help="What bench --json wrote there.")
@click.option("--price", default=0.0, help="What an hour of the machine costs.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key.")
def plan_command(
    recipe: Path, card: str, bench: Path | None, price: float, overrides: tuple[str, ...]
) -> None:
    """Say what a recipe will take on a card, before it runs.

    Nothing is downloaded. Steps with their requests, tokens, memory and time as a range; whether it
    fits, or the one setting to change. Exits with 1 if it does not fit.
    """
    settings = load_recipe(recipe, overrides)
    machine = plan_machine(settings, card.lower() or "cpu", bench)
    stages = list(planned(settings, machine))
    console, shape = make_console(), machine.shape
    console.print(plan_table(stages, machine))
    weights = shape.adapter_weights(settings.model.lora.r)
    base = shape.base_bytes(machine.item, machine.quantized)
    disk = 2 * shape.parameters + 2 * ADAPTER_BYTES * weights * (1 + settings.iterations)
    seconds = total(stages)
    lines = [
        f"memory at rest: base {base / GB:.1f} GB, two adapters "
        f"{2 * ADAPTER_BYTES * weights / GB:.2f} GB; {shape.cache_bytes(machine.item):,} bytes a "
        f"token in the cache, {TRAINED_BYTES * weights / GB:.2f} GB more while an adapter learns",
        f"disk: {disk / GB:.1f} GB, the model's download among it",
    ]
    if price:
        hours = seconds.times(1 / 3600)
        lines.append(f"cost: {price * hours.low:.2f} to {price * hours.high:.2f}")
    if not machine.cpu and not CARDS[machine.name].bf16:
        lines.append("no bf16 units on this card: it computes in fp16")
    if settings.bootstrap.source not in ("constraints", "none") or settings.bootstrap.pairs:
        lines.append("not planned: training on the rows of bootstrap.source and bootstrap.pairs")
    fault = too_large(stages, machine)
    lines.append(fault or f"fits: at most {machine.limit / GB:.1f} GB may be taken")
    for line in lines:
        console.print(line, highlight=False)
    if fault:
        raise SystemExit(1)
