"""Budgets, running out of memory, merged weights, threads: right first, then fast."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import pytest
import torch

from spar_lite.engines.base import Completion, Request, Sampling
from spar_lite.errors import EngineError
from spar_lite.model import Policy, RolloutEngine, self_check
from spar_lite.model.cache import BLOCK, SlotCache, bytes_per_position, generate_bytes
from spar_lite.model.decoder import BatchDecoder, TokenSequence
from spar_lite.model.machine import (
    best_threads,
    cache_budget,
    free_memory,
    is_out_of_memory,
    peak_memory,
    reset_peak,
)
from spar_lite.model.merged import MergedWeights, Weights, copy_bytes, dense
from spar_lite.recipe import EngineSettings, Training
from spar_lite.records import Message, Role, TrainingExample

pytestmark = pytest.mark.tensors

Factory = Callable[..., Policy]
CPU = torch.device("cpu")
ROLES: tuple[Role, ...] = ("base", "actor", "refiner")


def stir(policy: Policy) -> Policy:
    generator = torch.Generator().manual_seed(7)
    for role in ("actor", "refiner"):
        for tensor in policy.weights(role).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return policy


@pytest.fixture
def policy(tiny_policy: Factory) -> Policy:
    return stir(tiny_policy())


def requests(count: int = 12, temperature: float = 0.8) -> list[Request]:
    """Short and long prompts, some shared, replies of 3 to 40 tokens."""
    return [
        Request(
            f"r{n}",
            (Message("user", "Say " + "na " * (1 + (n // 2 * 7) % 31)),),
            3 + (n * 11) % 38,
            Sampling(temperature),
        )
        for n in range(count)
    ]


def complete(
    policy: Policy, wanted: Sequence[Request], said: list[str] | None = None, **settings: Any
) -> list[Completion]:
    chosen = EngineSettings(**{"path": "continuous", "batch": 8, **settings})
    engine = RolloutEngine(policy, chosen, 3, (said if said is not None else []).append)
    return asyncio.run(engine.generate("actor", wanted))


# --- The cache's budget ---------------------------------------------------------------------------


def test_bytes_per_position_are_what_the_cache_takes(policy: Policy) -> None:
    policy.switch("actor")
    decoder = BatchDecoder(policy.inner, 4, policy.eos, 64)
    decoder.add(TokenSequence(policy.encode((Message("user", "Hello"),)), 3, Sampling(), 0))
    decoder.step()
    cache = decoder.cache
    taken = sum(t.nbytes for t in (*cache.keys, *cache.values))
    assert taken == cache.rows * cache.length * cache.position_bytes
    config = policy.inner.config
    # 2 layers, keys and values, 2 heads of 16, 4 bytes
    assert bytes_per_position(config, 4) == 2 * 2 * 2 * 16 * 4


def test_rows_that_fit() -> None:
    cache = SlotCache(position_bytes=10, budget=10 * 64 * 3)
    assert cache.rows_at(1) == cache.rows_at(64) == 3
    assert cache.rows_at(65) == 1
    assert cache.rows_at(10_000) == 0
    assert SlotCache(10).rows_at(10_000) > 1_000_000


def watch(decoder: BatchDecoder) -> Iterator[None]:
    while not decoder.idle:
        decoder.step()
        yield


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_a_small_budget_changes_no_token(policy: Policy, rows: int, temperature: float) -> None:
    """Sequences are put back and taken up again; what they say stays the same.

    One must be able to run even if the budget holds none.
    """
    policy.switch("actor")
    prompts = [policy.encode(r.messages) for r in requests()]
    sampling = Sampling(temperature)

    def run(budget: int | None) -> tuple[list[list[int]], int, int]:
        decoder = BatchDecoder(policy.inner, 8, policy.eos, 96, budget)
        sequences = [TokenSequence(p, 5 + 9 * n, sampling, n) for n, p in enumerate(prompts)]
        for sequence in sequences:
            decoder.add(sequence)
        put_back: list[TokenSequence] = []
        whole = decoder._put_back
        decoder._put_back = lambda some: (put_back.extend(some), whole(some))[1]  # type: ignore
        most = 0
        for _ in watch(decoder):
            most = max(most, decoder.cache.rows * decoder.cache.length)
        return [s.reply for s in sequences], most, len(put_back)

    wanted, _, none = run(None)
    size = bytes_per_position(policy.inner.config, 4)
    longest = 64 * -(-max(len(p) + 5 + 9 * n for n, p in enumerate(prompts)) // 64)
    found, most, put_back = run(size * rows * 128)
    assert found == wanted
    assert most <= max(rows * 128, longest)
    assert none == 0
    assert put_back > 0 or rows != 2  # one alone is never put back; five hardly need to be


# --- Out of memory --------------------------------------------------------------------------------


def starve(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> None:
    """Let every forward pass of more than ``most`` rows fail."""
    whole = BatchDecoder._forward

    def forward(self: BatchDecoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > most:
            raise error
        return whole(self, ids, *rest)

    monkeypatch.setattr(BatchDecoder, "_forward", forward)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    wanted = complete(policy, requests())
    starve(monkeypatch, 3, error)
    said: list[str] = []
    assert complete(policy, requests(), said) == wanted
    assert said == [
        "out of memory with 8 sequences at a time: going on with 4",
        "out of memory with 4 sequences at a time: going on with 2",
    ]


def test_running_out_in_mid_run_keeps_what_was_said(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = complete(policy, requests())
    whole = BatchDecoder._forward
    calls = 0

    def forward(self: BatchDecoder, *rest: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (9, 20):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, *rest)

    monkeypatch.setattr(BatchDecoder, "_forward", forward)
    said: list[str] = []
    assert complete(policy, requests(), said) == wanted
    assert len(said) == 2


def test_running_out_while_the_cache_grows_loses_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who are about to enter are then neither in the queue nor in a slot."""
    policy.switch("actor")
    whole = SlotCache.reserve
    calls = 0

    def reserve(self: SlotCache, rows: int, length: int) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 9):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        whole(self, rows, length)

    monkeypatch.setattr(SlotCache, "reserve", reserve)
    decoder = BatchDecoder(policy.inner, 8, (), 96)
    prompts = [policy.encode(r.messages) for r in requests()]
    sequences = [TokenSequence(p, 5, Sampling(), n) for n, p in enumerate(prompts)]
    for sequence in sequences:
        decoder.add(sequence)
    while not decoder.idle:
        try:
            decoder.step()
        except torch.OutOfMemoryError:
            decoder.shrink()
    assert decoder.slots == 2
    assert [len(s.reply) for s in sequences] == [5] * len(sequences)


def test_no_memory_for_one_is_an_error_that_says_what_to_do(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    starve(monkeypatch, 0, ERRORS[0])
    with pytest.raises(EngineError, match=r"one sequence at a time\. Shorten max_new_tokens"):
        complete(policy, requests(3))


def test_other_errors_are_not_taken_for_want_of_memory(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    starve(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(EngineError, match=r"failed \(RuntimeError: mat1.*doctor") as found:
        complete(policy, requests(3))
    assert isinstance(found.value.__cause__, RuntimeError)
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_the_static_path_halves_too(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    from spar_lite.model import rollout

    wanted = complete(policy, requests(temperature=0), path="static")
    whole = rollout.plain_generate

    def generate(policy: Policy, prompts: Sequence[list[int]], *rest: Any) -> list[list[int]]:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(policy, prompts, *rest)

    monkeypatch.setattr(rollout, "plain_generate", generate)
    said: list[str] = []
    assert complete(policy, requests(temperature=0), said, path="static") == wanted
    assert said[-1] == "out of memory with 4 sequences at a time: going on with 2"


def test_static_rows_come_from_bytes(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short prompts fill a batch, long ones get as many rows as fit, one at least."""
    from spar_lite.model import rollout

    sizes: list[tuple[int, int, int]] = []
    whole = rollout.plain_generate

    def generate(policy: Policy, prompts: list[list[int]], limit: int, *rest: Any) -> Any:
        sizes.append((len(prompts), max(map(len, prompts)), limit))
        return whole(policy, prompts, limit, *rest)

    monkeypatch.setattr(rollout, "plain_generate", generate)
    wanted = complete(policy, requests(temperature=0), path="static")
    assert [rows for rows, _, _ in sizes] == [8, 4]
    config = policy.inner.config
    # 256 bytes a position (2 layers, keys and values, 2 heads of 16, 4 bytes each), 8 x 128 x 4
    # bytes of activations a prompt token, 6 x 4 bytes a token of the vocabulary.
    assert generate_bytes(config, 4, 50, 30) == 512 * 80 + 4096 * 50 + 24 * config.vocab_size
    budget = 3 * generate_bytes(config, 4, 60, 40)
    monkeypatch.setattr("spar_lite.model.rollout.cache_budget", lambda *_: budget)
    sizes.clear()
    assert complete(policy, requests(temperature=0), path="static") == wanted
    assert sum(rows for rows, _, _ in sizes) == 12 and len(sizes) > 3
    assert all(
        rows == 1 or rows * generate_bytes(config, 4, longest, limit) <= budget
        for rows, longest, limit in sizes
    )
    assert sizes[0][0] > sizes[-1][0] >= 1


def test_what_was_halved_recovers_at_the_next_stage(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("static", "continuous"):
        said: list[str] = []
        engine = RolloutEngine(policy, EngineSettings(path=path, batch=8), 3, said.append)  # type: ignore[arg-type]
        whole, calls = engine._unless_full, []

        def full_once(call: Any, slots: int, whole: Any = whole, calls: Any = calls) -> Any:
            calls.append(slots)
            if len(calls) == 1:
                return whole(lambda: (_ for _ in ()).throw(MemoryError()), slots)
            return whole(call, slots)

        monkeypatch.setattr(engine, "_unless_full", full_once)
        asyncio.run(engine.generate("actor", requests()))
        assert said == ["out of memory with 8 sequences at a time: going on with 4"]
        assert engine.slots == 4 and max(calls[1:]) == 4
        calls[1:] = []
        asyncio.run(engine.generate("actor", requests()))
        assert engine.slots == 8 and max(calls[1:]) == 8


def test_widths_are_rounded_where_kernels_want_it(policy: Policy) -> None:
    """On CUDA to blocks of 64; the positions beyond are masked, whatever they hold."""
    policy.switch("actor")
    prompts = [policy.encode(r.messages) for r in requests()]

    def run(step: int) -> tuple[list[list[int]], set[int]]:
        decoder = BatchDecoder(policy.inner, 4, policy.eos, 96)
        assert decoder.width_step == 1  # a CPU reads what is there and no more
        decoder.width_step, widths, forward = step, set(), decoder._forward

        def note(ids: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
            widths.add(width)
            assert width <= decoder.cache.length
            return forward(ids, positions, width)

        decoder._forward = note  # type: ignore[method-assign]
        sequences = [TokenSequence(p, 20, Sampling(0.8), n) for n, p in enumerate(prompts)]
        for sequence in sequences:
            decoder.add(sequence)
        for _ in watch(decoder):
            pass
        return [s.reply for s in sequences], widths

    (exact, many), (rounded, few) = run(1), run(BLOCK)
    assert exact == rounded
    assert all(width % BLOCK == 0 for width in few) and len(few) < 5 < len(many)


# --- Merged weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("weights", "off"), [("merged", 1e-3), ("fused", 1e-5)])
def test_fast_weights_give_the_same_logits_and_go_away(
    tiny_policy: Factory, quantization: str, role: Role, weights: Weights, off: float
) -> None:
    policy = stir(tiny_policy(quantization=quantization))
    policy.switch(role)
    ids = torch.tensor([policy.encode((Message("user", "Name a bird, or two of them."),))])
    prints = {r: policy.fingerprint(r) for r in ("actor", "refiner")}  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = policy.inner(input_ids=ids).logits
        policy.speed_up(weights)
        fast = policy.inner(input_ids=ids).logits
        policy.slow_down()
        again = policy.inner(input_ids=ids).logits
    assert torch.allclose(fast, wanted, atol=off)
    assert torch.equal(again, wanted)
    assert policy.fast is None
    assert prints == {r: policy.fingerprint(r) for r in prints}  # type: ignore[arg-type]
    assert self_check(policy, 4, weights).fault is None


def test_the_head_is_turned_too(policy: Policy) -> None:
    policy.switch("actor")
    hidden = torch.randn(9, policy.inner.config.hidden_size)
    head = policy.inner.lm_head
    wanted = head(hidden)
    policy.speed_up()
    assert "forward" in vars(head)
    assert torch.allclose(head(hidden), wanted, atol=1e-4)
    policy.slow_down()
    assert "forward" not in vars(head)


def test_merging_adds_the_adapter_of_the_role(policy: Policy) -> None:
    layer = policy.inner.model.layers[0].mlp.up_proj
    x = torch.randn(10, 64)
    policy.switch("refiner")
    policy.speed_up()
    a, b = layer.lora_A["refiner"].weight, layer.lora_B["refiner"].weight
    weight = dense(layer.get_base_layer(), torch.float32) + 2.0 * b @ a  # alpha 8 / r 4
    assert torch.allclose(layer(x), x @ weight.t(), atol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_fused_layer_is_peft_s_in_two_products(tiny_policy: Factory, quantization: str) -> None:
    """Layer by layer, of both roles; also for a batch of one and for several queries a row."""
    policy = stir(tiny_policy(quantization=quantization))
    layer = policy.inner.model.layers[1].mlp.down_proj
    with torch.no_grad():
        for role in ROLES:
            policy.switch(role)
            for shape in ((1, 1), (5, 1), (3, 7)):
                x = torch.randn(*shape, layer.in_features)
                wanted, before = layer(x), x.clone()
                policy.speed_up("fused")
                assert torch.allclose(layer(x), wanted, rtol=1e-5, atol=1e-5)
                assert torch.equal(x, before)
                with torch.profiler.profile() as seen:
                    layer(x)
                products = [e.name for e in seen.events() if e.name in ("aten::mm", "aten::addmm_")]
                assert products.count("aten::addmm_") == (role != "base")
                policy.slow_down()


def test_fused_weights_answer_as_the_adapter_does_and_follow_its_training(policy: Policy) -> None:
    wanted = complete(policy, requests(), weights="separate")
    assert complete(policy, requests(), weights="fused") == wanted
    assert policy.fast is not None and policy.fast.kind == "fused"
    for tensor in policy.weights("actor").values():
        tensor.mul_(1.5)
    policy.slow_down()
    changed = complete(policy, requests(), weights="fused")
    assert changed != wanted
    assert changed == complete(policy, requests(), weights="separate")


def test_a_role_may_change_from_one_way_to_the_other(policy: Policy) -> None:
    for weights in ("fused", "merged", "separate", "fused"):
        policy.speed_up(weights)  # type: ignore[arg-type]
        assert (policy.fast.kind if policy.fast else "separate") == weights


def test_merged_weights_that_do_not_fit_are_one_line_and_base_plus_adapter(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = copy_bytes(policy.inner, "default")
    wanted = complete(policy, requests(4), weights="separate")
    monkeypatch.setattr("spar_lite.model.rollout.free_memory", lambda *_: need * 4 // 3 - 3)
    said: list[str] = []
    assert complete(policy, requests(4), said, weights="merged") == wanted
    assert policy.fast is None
    assert said == [
        "actor on cpu: merged weights would take 0.0 GB of 0.0 GB that are free; "
        "using base plus adapter"
    ]
    monkeypatch.setattr("spar_lite.model.rollout.free_memory", lambda *_: need * 4 // 3 + 3)
    complete(policy, requests(4), said, weights="merged")
    assert policy.fast is not None and len(said) == 1


def test_a_switch_a_training_or_a_restored_adapter_ends_fast_weights(
    policy: Policy, tmp_path: Any
) -> None:
    policy.switch("actor")
    policy.save("actor", tmp_path / "actor")
    for change in (
        lambda: policy.switch("base"),
        lambda: policy.restore("actor", tmp_path / "actor"),
    ):
        policy.switch("actor")
        policy.speed_up()
        change()
        assert policy.fast is None
    policy.speed_up()
    with policy.training("actor"):
        assert policy.fast is None


def test_after_a_training_step_the_engine_answers_with_the_new_weights(policy: Policy) -> None:
    from spar_lite.train import train_on_examples

    engine = RolloutEngine(policy, EngineSettings(path="continuous", weights="merged"), 3)
    wanted = requests(4, temperature=0)
    before = asyncio.run(engine.generate("actor", wanted))
    ask = (Message("user", "Say hello."),)
    rows = [TrainingExample(f"e{n}", "answer", ask, f"Hello {n}.") for n in range(4)]
    train_on_examples(policy, "actor", rows, Training(lr=5e-2), seed=0)
    after = asyncio.run(engine.generate("actor", wanted))
    assert after != before
    assert after == complete(policy, wanted, weights="separate")
    assert not policy.model.training
    assert not policy.inner.is_activation_checkpointing


def test_a_broken_merge_falls_back_to_base_plus_adapter(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: MergedWeights, *_: Any) -> None:
        raise RuntimeError("no such layer")

    wanted = complete(policy, requests(4), weights="separate")
    monkeypatch.setattr(MergedWeights, "__init__", fails)
    said: list[str] = []
    assert complete(policy, requests(4), said, path="auto", weights="merged") == wanted
    assert "no such layer" in said[0] and "using base plus adapter" in said[0]
    assert "fast path checked, 4 at a time" in said[1]


def test_merging_takes_what_it_says(policy: Policy, tiny_policy: Factory) -> None:
    linear = [m for m in policy.inner.modules() if isinstance(m, torch.nn.Linear)]
    base = {id(m.get_base_layer()): m for m in policy.inner.modules() if hasattr(m, "lora_A")}
    elements = sum(m.weight.numel() for m in linear if id(m) in base)
    assert copy_bytes(policy.inner, "default") == 4 * elements
    assert copy_bytes(policy.inner, None) == 0, "the base's own weights serve"
    assert copy_bytes(tiny_policy(quantization="nf4").inner, None) == 4 * elements


# --- The machine ----------------------------------------------------------------------------------


def test_free_memory_respects_the_share() -> None:
    all_of_it, half = free_memory(CPU, 1.0), free_memory(CPU, 0.5)
    assert 0 < half < all_of_it
    assert free_memory(CPU, 1e-9) == 0
    assert cache_budget(CPU, 1.0) < all_of_it


def test_peak_memory_sees_a_large_tensor_and_can_be_reset() -> None:
    reset_peak(CPU)
    before = peak_memory(CPU)
    large = torch.ones(64 << 20)  # 256 MiB
    assert peak_memory(CPU) - before > 200 << 20
    del large


def test_threads_follow_the_measurement() -> None:
    """By a clock on which every product takes as long as the next, one thread is enough."""
    ticks = itertools.count()
    before = torch.get_num_threads()
    assert best_threads(16, clock=lambda: next(ticks) / 1000) == 1
    assert torch.get_num_threads() == before

    def slow_alone() -> float:
        """With one thread each reading is ten times as far from the last."""
        now[0] += 0.01 if torch.get_num_threads() == 1 else 0.001
        return now[0]

    now = [0.0]
    cores = len(psutil.Process().cpu_affinity())
    assert best_threads(16, clock=slow_alone) == (cores // 2 if cores > 3 else cores)
