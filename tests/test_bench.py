"""The benchmark and the doctor on a tiny random model; the workloads' scripted lengths."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from spar_lite.app import measure
from spar_lite.app.cli import main
from spar_lite.app.measure import Writer, ask, baseline, flat, workloads
from spar_lite.app.shapes import shape_config, write_shape
from spar_lite.model import Policy, RolloutEngine
from spar_lite.model.reference import Check
from spar_lite.recipe import EngineSettings, Model
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.tensors


def test_bench_says_all_that_was_promised() -> None:
    command = ["bench", "--shape", "tiny", "--trees", "3", "--train-tokens", "48", "--json"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["ratios"]) == {"naive", "static"}
    assert set(found["workloads"]) == {"sample", "judge", "search"}
    assert set(found["training"]) == {"dpo", "sft"}
    assert found["self_check"]["fast_path"] is True
    for key in ("decode_tokens_per_s", "peak_memory_bytes", "roofline_share"):
        assert found[key] > 0
    assert 0 < found["occupancy"] <= 1
    search = found["workloads"]["search"]
    assert search["requests"] == 3 * (2 + 4)
    assert found["baselines"]["static"]["tokens"] == search["completion_tokens"]
    assert found["baselines"]["naive"]["requests"] >= 16


def test_bench_as_tables_and_in_4_bit() -> None:
    command = ["bench", "--shape", "tiny", "--trees", "1", "--no-baselines", "--train-tokens", "32"]
    done = CliRunner().invoke(
        main, [*command, "-o", "model.quantization=nf4"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "4-bit NF4" in done.output
    for word in ("search", "outside model", "bytes", "DPO", "SFT"):
        assert word in done.output


def test_exceeding_the_cap_is_a_failure_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["bench", "--shape", "tiny", "--trees", "1", "--train-tokens", "0", "--no-baselines"]
    done = CliRunner().invoke(main, [*command, "--memory-gb", "0.01"])
    assert done.exit_code == 2
    assert "does not fit: its weights take 0.00 GB" in done.output
    # Once it is loaded, the peak has its say.
    monkeypatch.setattr("spar_lite.model.loading.free_memory", lambda *_: 1 << 40)
    done = CliRunner().invoke(main, [*command, "--memory-gb", "0.01"])
    assert done.exit_code == 2
    assert "wanted at most 0.0 GiB, found" in done.output
    assert "decode" not in done.output


def test_bench_wants_a_recipe_or_a_shape() -> None:
    done = CliRunner().invoke(main, ["bench"])
    assert done.exit_code == 2
    assert "wanted a RECIPE or --shape NAME" in done.output


def test_the_doctor_checks_every_role_both_ways() -> None:
    done = CliRunner().invoke(main, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    # "in": the tests loaded transformers before the command could switch its bars off.
    checked = [line for line in done.output.splitlines() if "✓ cpu" in line]
    assert len(checked) == 2 * 3 * 3
    assert "✗" not in done.output


def test_the_doctor_fails_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spar_lite.model.self_check", lambda *_: Check("a fault"))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "✗ cpu, 4-bit NF4, refiner, merged weights: a fault" in done.output
    assert "18 failed" in done.output


@pytest.mark.parametrize("name", ["tiny"])
def test_a_shape_is_a_model_like_any_other(name: str, tmp_path: Path) -> None:
    write_shape(name, tmp_path / "model", torch.float32)
    assert not list(tmp_path.rglob("*.bin"))
    policy = Policy.load(Model(id=str(tmp_path / "model"), device="cpu", threads=1), 0)
    assert policy.inner.config.hidden_size == shape_config(name).hidden_size
    head = policy.inner.lm_head.weight
    assert head.data_ptr() == policy.inner.get_input_embeddings().weight.data_ptr()
    assert head.std() > 0


def test_large_shapes_have_the_parameters_that_their_names_say() -> None:
    from transformers import AutoModelForCausalLM

    billions = {"smollm2-135m": 0.1345, "smollm2-360m": 0.3618, "qwen3-4b": 4.02, "llama3-8b": 8.03}
    for name, wanted in billions.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape_config(name))
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(wanted, rel=0.01)


def writer() -> Writer:
    return Writer(lambda chat: list(range(len(chat[0].content))), seed=0)


def test_a_search_is_groups_that_share_prompts_and_wait_for_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "VOTES", 3)
    search = workloads(writer(), 5)["search"]
    requests = flat(search)
    assert len(requests) == 5 * (2 + 2 * 3) == len({r.id for r in requests})
    shared = Counter(r.messages for r in requests)
    assert sorted(shared.values()) == [2] * 5 + [3] * 10
    assert all(8 <= r.max_new_tokens <= 160 for r in requests)
    assert flat(workloads(writer(), 5)["search"]) == requests, "the same ones every time"
    engine = ScriptedEngine(lambda *_: "x", shuffle_seed=1)
    asyncio.run(ask(engine, "refiner", search))
    assert sorted(engine.finished) == sorted(r.id for r in requests)
    for child, _ in search:
        after = engine.finished.index(child.id)
        votes = [n for n, id in enumerate(engine.finished) if id.startswith(child.id + "/v")]
        assert len(votes) == 3 and min(votes) > after


def test_the_baselines_answer_with_the_scripted_lengths(
    tiny_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "REPLY", (2, 12))
    monkeypatch.setattr(measure, "VOTE", (2, 6))
    policy = tiny_policy()
    policy.switch("refiner")
    requests = flat(workloads(Writer(policy.encode, 0), 4)["search"])
    static = baseline(policy, requests, 8, 6)
    assert static["tokens"] == sum(r.max_new_tokens for r in requests)
    naive = baseline(policy, requests, 1, 16)
    assert 12 <= naive["requests"] <= 24 and naive["tokens"] > 0


def test_a_search_of_64_trees_keeps_the_batch_full(
    tiny_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean running sequences over capacity, replies of scripted lengths, trees as they come."""
    policy = tiny_policy()
    monkeypatch.setattr(measure, "VOTES", 3)
    monkeypatch.setattr(measure, "LONG_PROMPT", (20, 30))
    search = workloads(Writer(policy.encode, 0), 64)["search"]
    engine = RolloutEngine(policy, EngineSettings(path="continuous", batch=64), 0)
    engine.eos = ()
    asyncio.run(ask(engine, "refiner", search))
    usage = engine.take_usage()
    assert usage.calls == 64 * 8
    assert usage.occupancy >= 0.85
