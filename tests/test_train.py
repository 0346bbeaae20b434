"""Training keeps its promises on the tiny model, in fp32 and in NF4, on the CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from trl.trainer import utils as trl_utils

from spar_lite import train
from spar_lite.engines.base import Sampling
from spar_lite.errors import TrainingError
from spar_lite.model import Policy
from spar_lite.model.policy import ADAPTERS
from spar_lite.model.reference import plain_generate
from spar_lite.recipe import Dpo, Lora, Training
from spar_lite.records import Message, PreferencePair, Role, TrainingExample
from spar_lite.train import rows, train_actor, train_on_examples
from spar_lite.train.logps import score_replies
from spar_lite.train.rows import LengthSampler
from spar_lite.train.trainers import SparDpo

pytestmark = pytest.mark.tensors

Factory = Callable[..., Policy]

QUANTIZATIONS = ("none", "nf4")
LN2 = 0.693147


def example(prompt: str, completion: str, name: str = "x") -> TrainingExample:
    return TrainingExample(name, "answer", (Message("user", prompt),), completion)


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, prompt, (Message("user", prompt),), chosen, rejected)


EXAMPLES = [example(f"Count {n}", f"It is {n}." * (1 + n % 3), str(n)) for n in range(8)]
PAIRS = [pair(f"Say {n}", f"yes {n}" * (1 + n % 3), f"NO {n}") for n in range(8)]
PASSES = (1, 150, 8192)
"""Tokens of a pass: for one example at a time, for some, for all."""

SFT = Training(lr=1e-2, batch_size=4, max_length=256, gradient_checkpointing=False)
DPO = Dpo(lr=1e-2, batch_size=4, max_length=256, gradient_checkpointing=False)


def logits(policy: Policy, text: str = "Say 1") -> torch.Tensor:
    ids = torch.tensor([policy.encode((Message("user", text),))])
    with torch.no_grad():
        found: torch.Tensor = policy.inner(input_ids=ids).logits
    return found


def log_p(policy: Policy, messages: Sequence[Message], text: str, end: bool = True) -> float:
    """Sum of log p over a reply's bytes (and its end token), as the present role, by hand."""
    prompt = policy.encode(messages)
    reply = policy.tokenizer.encode(text) + [policy.tokenizer.eos_token_id] * end
    with torch.no_grad():
        scores = policy.inner(input_ids=torch.tensor([prompt + reply])).logits[0]
    places = enumerate(reply, start=len(prompt) - 1)
    return sum(float(torch.log_softmax(scores[place], -1)[token]) for place, token in places)


def mean_nll(policy: Policy, examples: Sequence[TrainingExample]) -> float:
    """Sum of -log p over the completions' tokens (their end tokens too) / their number, by hand."""
    total = sum(log_p(policy, row.prompt, row.completion) for row in examples)
    return -total / sum(len(row.completion) + 1 for row in examples)


def assert_ready(policy: Policy) -> None:
    """Nothing that training did is left, except in the trained weights."""
    assert not any(p.requires_grad for p in policy.model.parameters())
    assert not any(module.training for module in policy.model.modules())
    assert not policy.inner.is_activation_checkpointing
    assert list(policy.model.peft_config) == ["default", "refiner"]
    assert "forward" not in policy.inner.__dict__
    assert all(t.dtype == torch.float32 for role in ADAPTERS for t in _all(policy, role))
    prompt = policy.encode((Message("user", "Say 1"),))
    assert len(plain_generate(policy, [prompt], 4, Sampling())[0]) <= 4


def _all(policy: Policy, role: Role) -> list[torch.Tensor]:
    return list(policy.weights(role).values())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("nll_weight", [0.1, 0.0])
def test_step0_of_dpo_has_rewards_0_and_term_ln2(
    tiny_policy: Factory, quantization: str, nll_weight: float
) -> None:
    policy = tiny_policy(quantization=quantization)
    refiner = policy.fingerprint("refiner")
    settings = DPO.model_copy(update={"nll_weight": nll_weight})
    first = train_actor(policy, PAIRS, settings, seed=1)
    started = policy.fingerprint("actor")
    # Iteration 2: the actor is no longer the base, and is its own reference all the same.
    second = train_actor(policy, PAIRS, settings, seed=2)
    for report in (first, second):
        assert report.metrics["reward_chosen_step0"] == 0.0
        assert report.metrics["reward_rejected_step0"] == 0.0
        assert report.metrics["dpo_term_step0"] == pytest.approx(LN2, abs=1e-6)
        assert (report.examples, report.dropped, report.steps) == (8, 0, 2)
    if not nll_weight:
        assert first.loss_first == pytest.approx(LN2, abs=1e-5)  # nothing but the DPO term
    assert first.metrics["rewards/margins_last"] > 0
    assert policy.fingerprint("actor") != started
    assert policy.fingerprint("refiner") == refiner
    assert_ready(policy)


def test_the_reference_of_a_second_run_is_the_actor_not_the_base(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    train_on_examples(policy, "actor", EXAMPLES, SFT, seed=0)
    away = (logits(policy) - logits_of_base(policy)).abs().max()
    assert float(away) > 0.1  # against the base as reference, rewards would not be 0 …
    report = train_actor(policy, PAIRS, DPO, seed=0)
    assert report.metrics["reward_chosen_step0"] == 0.0  # … and they are


def logits_of_base(policy: Policy) -> torch.Tensor:
    policy.switch("base")
    found = logits(policy)
    policy.switch("actor")
    return found


def test_a_wrong_reference_is_an_error(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    train_on_examples(policy, "actor", EXAMPLES, SFT, seed=0)
    whole = SparDpo.compute_ref_log_probs

    def spoil(trainer: SparDpo, *rest: Any) -> Any:
        policy.switch("base")
        found = whole(trainer, *rest)
        policy.switch("actor")
        return found

    monkeypatch.setattr(SparDpo, "compute_ref_log_probs", spoil)
    with pytest.raises(TrainingError, match=r"rewards of 0.*reference is not the actor"):
        train_actor(policy, PAIRS, DPO, seed=0)
    assert_ready(policy)


UNEVEN = [pair("Go", "y", "n"), pair("Say", "yes " * 20, "no"), pair("Tell me", "so it is", "no")]


def test_an_answer_that_passed_is_learnt_by_its_likelihood_alone(tiny_policy: Factory) -> None:
    """Beside pairs it has no preference: with no likelihood term it changes nothing."""

    def trained(nll_weight: float, passed: Sequence[TrainingExample]) -> tuple[float, float]:
        """Log p of the pairs' chosen answers and of ``EXAMPLES[0]`` after a training."""
        policy = tiny_policy()
        settings = DPO.model_copy(update={"nll_weight": nll_weight, "batch_size": 6})
        report = train_actor(policy, PAIRS[:4], settings, seed=0, passed=passed)
        assert (report.examples, report.steps) == (4 + len(passed), 1)
        mean = sum(log_p(policy, p.prompt, p.chosen) for p in PAIRS[:4]) / 4
        assert report.metrics["logp_chosen_after"] == pytest.approx(mean, rel=1e-5)
        return mean, log_p(policy, EXAMPLES[0].prompt, EXAMPLES[0].completion)

    one, other = trained(0.0, EXAMPLES[:2]), trained(0.0, EXAMPLES[2:4])
    assert one == pytest.approx(other, rel=1e-5)
    assert trained(1.0, EXAMPLES[:2])[1] > trained(1.0, EXAMPLES[2:4])[1] + 0.1


def test_the_end_of_a_rejected_answer_may_be_left_out(tiny_policy: Factory) -> None:
    """So that its log p is that of its text alone; pairs whose texts are alike prefer to end."""
    policy = tiny_policy()
    settings = DPO.model_copy(update={"rejected_end": False, "nll_weight": 0.0, "batch_size": 8})
    before = sum(log_p(policy, p.prompt, p.rejected, end=False) for p in PAIRS) / len(PAIRS)
    ended = log_p(policy, EXAMPLES[0].prompt, EXAMPLES[0].completion)
    text = log_p(policy, EXAMPLES[0].prompt, EXAMPLES[0].completion, end=False)
    report = train_actor(policy, PAIRS, settings, seed=0, passed=EXAMPLES[:1])
    assert report.metrics["logp_rejected_before"] == pytest.approx(before, rel=1e-5)
    assert report.examples == 9
    now = log_p(policy, EXAMPLES[0].prompt, EXAMPLES[0].completion)
    alone = log_p(policy, EXAMPLES[0].prompt, EXAMPLES[0].completion, end=False)
    assert now - alone > ended - text
    blank = [*PAIRS[:3], pair("Say 9", "yes", "")]  # nothing but its end is left of that one
    report = train_actor(policy, blank, settings, seed=0)
    assert math.isfinite(report.metrics["logp_rejected_after_per_token"])


@pytest.mark.parametrize("pass_tokens", PASSES)
@pytest.mark.parametrize("count", [2, 3])
def test_nll_of_dpo_is_the_mean_over_answers_of_each_ones_mean(
    tiny_policy: Factory, pass_tokens: int, count: int
) -> None:
    """A long answer weighs no more than a short one, however a step is cut into passes."""
    policy = tiny_policy()
    pairs = UNEVEN[:count]
    chosen = [TrainingExample(p.id, "answer", p.prompt, p.chosen) for p in pairs]
    each = [mean_nll(policy, [row]) for row in chosen]
    wanted = sum(each) / len(each)
    assert abs(wanted - mean_nll(policy, chosen)) > 0.01  # it does matter here
    settings = DPO.model_copy(update={"pass_tokens": pass_tokens})
    report = train_actor(policy, pairs, settings, seed=0)
    assert report.metrics["nll_first"] == pytest.approx(wanted, rel=1e-5)
    assert report.loss_first == pytest.approx(LN2 + 0.1 * wanted, rel=1e-5)


def test_passes_change_no_gradient(tiny_policy: Factory) -> None:
    """Three pairs of a step of four: a pass of one pair weighs as one pair."""
    found = []
    for pass_tokens in PASSES:
        policy = tiny_policy()
        # Adam's first step knows signs alone: sizes tell from the second on.
        settings = DPO.model_copy(update={"pass_tokens": pass_tokens, "epochs": 3, "lr": 1e-3})
        train_actor(policy, UNEVEN, settings, seed=0)
        found.append(torch.cat([t.flatten() for t in _all(policy, "actor")]))
    assert torch.allclose(found[0], found[2], atol=1e-5)
    assert torch.allclose(found[1], found[2], atol=1e-5)


class SmallMemory:
    """Lets forward passes of more than ``most`` tokens fail, as a full device does."""

    def __init__(self, policy: Policy, most: int) -> None:
        self.most, self.largest, self.failed = most, 0, 0
        policy.inner.model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, _: Any, args: Any, given: dict[str, Any]) -> None:
        tokens = given["input_ids"].numel()
        if tokens > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.largest = max(self.largest, tokens)


def test_out_of_memory_halves_the_passes_and_learns_the_same(tiny_policy: Factory) -> None:
    """Less goes through the model at a time; steps, examples and weights are as without it."""
    found, reports = [], []
    for most in (100_000, 260):
        policy, said = tiny_policy(), []
        memory = SmallMemory(policy, most)
        report = train_actor(policy, UNEVEN, DPO, seed=0, say=said.append)
        assert memory.largest <= most
        assert bool(said) == (memory.failed > 0) == (most == 260)
        found.append(torch.cat([t.flatten() for t in _all(policy, "actor")]))
        reports.append(report)
    assert "going on with" in said[0]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    wide, narrow = reports
    assert (wide.steps, wide.tokens, wide.examples) == (
        narrow.steps,
        narrow.tokens,
        narrow.examples,
    )
    assert narrow.metrics["nll_first"] == pytest.approx(wide.metrics["nll_first"], rel=1e-5)
    assert narrow.metrics["dpo_term_step0"] == pytest.approx(LN2, abs=1e-6)


def test_a_full_memory_in_the_middle_of_a_step_leaves_no_half_of_it(tiny_policy: Factory) -> None:
    """The gradients of the parts that went well are not counted twice."""
    found = []
    for fails in (False, True):
        policy = tiny_policy()
        calls = [3] if fails else []  # two passes of the step are done

        def fail(*_: Any, calls: list[int] = calls) -> None:
            calls[:] = [left - 1 for left in calls if left]
            if 0 in calls:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        policy.inner.model.register_forward_pre_hook(fail)
        settings = SFT.model_copy(update={"batch_size": 8, "pass_tokens": 120})
        report = train_on_examples(policy, "refiner", EXAMPLES, settings, seed=3)
        found.append((torch.cat([t.flatten() for t in _all(policy, "refiner")]), report))
    (plain, wide), (again, narrow) = found
    assert torch.allclose(plain, again, atol=1e-5)
    assert (wide.tokens, wide.steps) == (narrow.tokens, narrow.steps)
    assert narrow.loss_first == pytest.approx(wide.loss_first, rel=1e-5)


def test_memory_that_is_full_after_the_passes_is_one_line(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam makes its moments in the first step, after the widest pass."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    policy = tiny_policy()
    before = policy.fingerprint("refiner")
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(TrainingError, match="out of memory on cpu while the refiner learnt"):
        train_on_examples(policy, "refiner", EXAMPLES, SFT, seed=0)
    assert policy.fingerprint("refiner") == before


def test_in_fp16_a_step_that_overflows_is_left_out_and_a_lost_loss_is_not(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There gradients are scaled up, at first too far: the scaler skips such a step."""
    policy = tiny_policy()
    record = train._Record(policy, lambda *_: None, 1e-3)
    state = SimpleNamespace(global_step=1, max_steps=2)
    log = {"loss": 1.0, "grad_norm": math.inf, "num_tokens": 3}
    with pytest.raises(TrainingError, match="grad_norm is inf"):
        record.on_log(None, state, None, log)
    monkeypatch.setattr(type(policy.inner), "dtype", torch.float16)
    record.on_log(None, state, None, log)
    with pytest.raises(TrainingError, match="loss is nan"):
        record.on_log(None, state, None, {**log, "loss": math.nan})


def test_one_example_that_is_too_much_is_one_line(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    before = policy.fingerprint("actor")
    SmallMemory(policy, 10)
    with pytest.raises(
        TrainingError, match=r"with one example of \d+ tokens at a time\. Lower max"
    ):
        train_actor(policy, UNEVEN, DPO, seed=0)
    assert policy.fingerprint("actor") == before


# At step 0 all log-ratios are 0, so that the loss is, by hand:
LOSS_AT_0 = {
    "sigmoid": LN2,  # -log sigmoid(0)
    "sigmoid_norm": LN2,
    "robust": LN2,  # (0.9 ln 2 - 0.1 ln 2) / (1 - 0.2)
    "ipo": 25.0,  # (0 - 1 / (2 * 0.1)) ** 2
    "nca_pair": 2 * LN2,  # (1 + 0.5 + 0.5) ln 2
    "apo_zero": 1.0,  # 1 - sigmoid(0) + sigmoid(0)
}


def test_every_loss_trains(tiny_policy: Factory) -> None:
    assert set(LOSS_AT_0) == set(get_args(Dpo.model_fields["loss"].annotation))
    prints = set()
    for loss, at_0 in LOSS_AT_0.items():
        policy = tiny_policy()
        settings = DPO.model_copy(update={"loss": loss})
        report = train_actor(policy, PAIRS, settings, seed=0)
        metrics = report.metrics
        wanted = at_0 + 0.1 * metrics["nll_first"]
        assert report.loss_first == pytest.approx(wanted, rel=1e-5), loss
        assert metrics["reward_chosen_step0"] == metrics["reward_rejected_step0"] == 0.0
        assert ("dpo_term_step0" in metrics) == (loss == "sigmoid")
        assert math.isfinite(report.loss_last)
        assert metrics["rewards/margins_last"] > 0, loss
        prints.add(policy.fingerprint("actor"))
    assert len(prints) == len(LOSS_AT_0)  # each is a loss of its own


def test_log_p_of_all_pairs_before_and_after(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    train_on_examples(policy, "actor", EXAMPLES, SFT, seed=0)
    pairs = [*UNEVEN, pair("a", "b" * 300, "c")]  # the last is too long, and not counted
    wanted = {"before": means(policy)}
    metrics = train_actor(policy, pairs, DPO, seed=0).metrics
    wanted["after"] = means(policy)
    for when in ("before", "after"):
        for side in ("chosen", "rejected"):
            name = f"logp_{side}_{when}"
            found = (metrics[name], metrics[f"{name}_per_token"])
            assert found == pytest.approx(wanted[when][side], rel=1e-5)
    assert metrics["logp_rejected_after"] != pytest.approx(metrics["logp_rejected_before"])
    assert metrics["logp_chosen_before_per_token"] == pytest.approx(-metrics["nll_first"], rel=1e-5)
    assert_ready(policy)


def means(policy: Policy) -> dict[str, tuple[float, float]]:
    """Log p of UNEVEN's answers by hand: the mean of their sums, the mean of their means."""
    found = {}
    for side in ("chosen", "rejected"):
        texts = [(p.prompt, getattr(p, side)) for p in UNEVEN]
        sums = [log_p(policy, *text) for text in texts]
        own = [total / (len(text) + 1) for total, (_, text) in zip(sums, texts, strict=True)]
        found[side] = (sum(sums) / 3, sum(own) / 3)
    return found


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_sft_loss_falls_on_the_completion_alone(tiny_policy: Factory, quantization: str) -> None:
    policy = tiny_policy(quantization=quantization)
    actor, refiner = policy.fingerprint("actor"), policy.fingerprint("refiner")
    settings = SFT.model_copy(update={"batch_size": 8})
    policy.switch("refiner")
    wanted = mean_nll(policy, EXAMPLES)
    report = train_on_examples(policy, "refiner", EXAMPLES, settings, seed=3)
    assert report.loss_first == pytest.approx(wanted, rel=1e-4)
    assert policy.role == "refiner"
    assert policy.fingerprint("actor") == actor
    assert policy.fingerprint("refiner") != refiner
    assert_ready(policy)


def test_completions_of_several_passes_weigh_by_token(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    policy.switch("actor")
    wanted = mean_nll(policy, EXAMPLES)
    settings = SFT.model_copy(update={"batch_size": 8, "pass_tokens": 120})
    report = train_on_examples(policy, "actor", EXAMPLES, settings, seed=3)
    assert report.loss_first == pytest.approx(wanted, rel=1e-4)


def test_a_small_learning_rate_still_moves_nf4_weights(tiny_policy: Factory) -> None:
    """At 1e-5 bf16 could not hold most updates of lora_A: 8 bits of mantissa near 0.1 step 5e-4."""
    policy = tiny_policy(quantization="nf4")
    train_on_examples(policy, "actor", EXAMPLES, SFT, seed=0)
    before = {name: t.clone() for name, t in policy.weights("actor").items()}
    train_actor(policy, PAIRS, DPO.model_copy(update={"lr": 1e-5}), seed=0)
    moved = [float((t != before[n]).float().mean()) for n, t in policy.weights("actor").items()]
    assert min(moved) > 0.95


def test_too_long_examples_are_dropped_and_counted(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    short, long = example("a", "b"), example("a", "b" * 300)
    report = train_on_examples(policy, "actor", [short, long, short], SFT, seed=0)
    assert (report.examples, report.dropped, report.steps) == (2, 1, 1)
    assert report.tokens == 2 * (len(policy.encode(short.prompt)) + 2)  # "b" and the end token
    pairs = [PAIRS[0], pair("a", "b", "c" * 300), pair("a", "b" * 300, "c")]
    assert train_actor(policy, pairs, DPO, seed=0).dropped == 2


@pytest.mark.parametrize(("rows", "found"), [([], "none at all"), ([example("a", "b" * 999)], "1")])
def test_nothing_to_train_on_is_an_error(
    tiny_policy: Factory, rows: list[TrainingExample], found: str
) -> None:
    with pytest.raises(TrainingError, match=found):
        train_on_examples(tiny_policy(), "actor", rows, SFT, seed=0)


def test_pairs_that_are_all_too_long_are_an_error_though_passed_answers_fit(
    tiny_policy: Factory,
) -> None:
    long = [pair("a", "b", "c" * 300)]
    with pytest.raises(TrainingError, match="all 1 were longer"):
        train_actor(tiny_policy(), long, DPO, seed=0, passed=EXAMPLES[:1])


def test_a_training_that_changes_nothing_is_an_error(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    before = {name: t.clone() for name, t in policy.weights("actor").items()}

    def undo(*_: int) -> None:
        for name, tensor in policy.weights("actor").items():
            tensor.copy_(before[name])

    with pytest.raises(TrainingError, match="wanted the actor's adapter to change"):
        train_actor(policy, PAIRS, DPO, 0, undo)


def test_a_training_that_touches_the_other_adapter_is_an_error(tiny_policy: Factory) -> None:
    policy = tiny_policy()

    def touch(*_: int) -> None:
        _all(policy, "refiner")[0].add_(1.0)

    with pytest.raises(TrainingError, match="wanted the refiner's adapter to stay"):
        train_actor(policy, PAIRS, DPO, 0, touch)


def test_the_base_cannot_be_trained(tiny_policy: Factory) -> None:
    with pytest.raises(TrainingError, match="found base"):
        train_on_examples(tiny_policy(), "base", EXAMPLES, SFT, seed=0)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_same_seed_same_bytes(tiny_policy: Factory, quantization: str) -> None:
    prints = []
    for seed in (5, 5, 6):
        policy = tiny_policy(quantization=quantization, lora=Lora(r=4, alpha=8, dropout=0.1))
        torch.rand(seed)  # whatever ran before does not matter
        train_on_examples(policy, "refiner", EXAMPLES, SFT, seed)
        train_actor(policy, PAIRS, DPO, seed)
        prints.append((policy.fingerprint("refiner"), policy.fingerprint("actor")))
    assert prints[0] == prints[1]
    assert prints[0][0] != prints[2][0]
    assert prints[0][1] != prints[2][1]


def test_memorisation(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    rows = [example("Name a bird.", "An owl."), example("Name a fish.", "A carp.")]
    settings = Training(
        lr=3e-2, epochs=40, batch_size=2, max_length=128, warmup_ratio=0.1,
        gradient_checkpointing=False,
    )  # fmt: skip
    report = train_on_examples(policy, "actor", rows, settings, seed=0)
    assert report.loss_last < 0.1 < report.loss_first
    prompt = policy.encode(rows[0].prompt)
    reply = plain_generate(policy, [prompt], 12, Sampling())[0]
    assert policy.decode(reply) == "An owl."


def test_gradient_checkpointing_gives_the_same_weights_and_is_off_afterwards(
    tiny_policy: Factory,
) -> None:
    found = []
    for checkpointing in (False, True):
        policy = tiny_policy()
        settings = DPO.model_copy(update={"gradient_checkpointing": checkpointing})
        train_actor(policy, PAIRS, settings, seed=0)
        found.append(torch.cat([t.flatten() for t in _all(policy, "actor")]))
        assert_ready(policy)
        assert not any(module._forward_hooks for module in policy.model.modules())
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_dpo_leaves_dropout_as_it_was(tiny_policy: Factory) -> None:
    """TRL sets every rate to 0 for good: the refiner's training would lose its dropout."""
    policy = tiny_policy(lora=Lora(r=4, alpha=8, dropout=0.25))
    train_actor(policy, PAIRS, DPO, seed=0)
    rates = {m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25}


def test_no_file_no_print_no_message(
    tiny_policy: Factory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    policy = tiny_policy()
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    steps: list[tuple[int, int, int]] = []
    train_actor(policy, PAIRS, DPO, 0, lambda *step: steps.append(step))
    train_on_examples(policy, "refiner", EXAMPLES, SFT, 0)
    assert [step[:2] for step in steps] == [(1, 2), (2, 2)]
    assert 0 < steps[0][2] < steps[1][2]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_prompts_are_the_ones_that_generation_sends(tiny_policy: Factory) -> None:
    """A template that opens its own turn with words it later drops (thinking models do)."""
    policy = tiny_policy()
    chat = (Message("user", "Hi"),)
    end = policy.tokenizer.eos_token_id
    plain = rows.tokenize(policy, chat, "Yo")
    assert plain == (policy.encode(chat), [*policy.tokenizer.encode("Yo"), end])
    template = policy.tokenizer.chat_template
    policy.tokenizer.chat_template = template.replace("assistant\n{%", "assistant\n<think>{%")
    prompt, completion = rows.tokenize(policy, chat, "Yo")
    assert prompt == policy.encode(chat) != plain[0]
    assert completion == plain[1]


def test_a_rejected_answer_that_was_cut_off_is_trained_without_an_end(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    row = rows.pair_row(policy, pair("p", "fine", "so and so"))
    cut = rows.pair_row(policy, dataclasses.replace(pair("p", "fine", "so and so"), cut_off=True))
    assert row["rejected_ids"][-1] in policy.eos
    assert cut["rejected_ids"] == row["rejected_ids"][:-1]
    assert cut["chosen_ids"] == row["chosen_ids"]


def test_length_sampler_groups_like_lengths_and_loses_none() -> None:
    lengths = [(n * 37) % 101 for n in range(50)]
    sampler = LengthSampler(lengths, batch=8, seed=0)
    epochs = [list(sampler) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] == list(LengthSampler(lengths, batch=8, seed=0))
    padding = [_padding(lengths, order, 8) for order in (epochs[0], list(range(50)))]
    assert padding[0] < padding[1] / 3


def _padding(lengths: list[int], order: list[int], batch: int) -> int:
    rows = [[lengths[i] for i in order[n : n + batch]] for n in range(0, len(order), batch)]
    return sum(len(row) * max(row) - sum(row) for row in rows)


def test_ln2_by_hand() -> None:
    assert math.log(2) == pytest.approx(LN2, abs=1e-6)


def test_the_dpo_term_is_minus_log_sigmoid_of_the_margin(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rewards are not 0 at step 0 it tells: a reference 3 nats off, in one pair, with beta 1.

    A margin of 3 - 2 = 1: -log sigmoid(1) = log(1 + 1/e) = log 1.367879 = 0.313262.
    """
    whole = SparDpo.log_p

    def off(trainer: SparDpo, count: int) -> list[tuple[float, ...]]:
        return [(chosen - 3, rejected - 2) for chosen, rejected in whole(trainer, count)]

    monkeypatch.setattr(SparDpo, "log_p", off)
    monkeypatch.setitem(train.STEP0_TOLERANCE, torch.float32, 9.0)
    report = train_actor(tiny_policy(), PAIRS[:1], DPO.model_copy(update={"beta": 1.0}), seed=0)
    assert report.metrics["dpo_term_step0"] == pytest.approx(0.313262, abs=1e-5)


# --- Log p of replies -----------------------------------------------------------------------------

ASKED = [
    ("Count to three, slowly and in words.", "1"),
    ("Hi", "one, two, three, four, five, six, seven, eight, nine, ten"),
    ("Why?", ""),
    ("Say it.", "It."),
]
CHATS = [((Message("user", asked),), said, True) for asked, said in ASKED]
ROLES: tuple[Role, ...] = ("actor", "refiner", "base")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("pass_tokens", PASSES)
def test_replies_are_scored_as_a_plain_forward_pass_does(
    tiny_policy: Factory, quantization: str, pass_tokens: int
) -> None:
    policy = stir(tiny_policy(quantization=quantization))
    sums = []
    for role in ROLES:
        found = score_replies(policy, role, CHATS, pass_tokens)
        policy.switch(role)
        assert [count for _, count in found] == [len(said) + 1 for _, said in ASKED]
        sums.append([total for total, _ in found])
        assert sums[-1] == pytest.approx([log_p(policy, *chat) for chat in CHATS], abs=1e-3)
        policy.switch("actor")
    assert abs(sums[0][1] - sums[1][1]) > 1 < abs(sums[1][1] - sums[2][1])  # roles do differ
    assert score_replies(policy, "base", []) == []


def stir(policy: Policy) -> Policy:
    """Adapters that change something, each another thing."""
    generator = torch.Generator().manual_seed(7)
    for role in ADAPTERS:
        for tensor in _all(policy, role):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return policy


def test_a_reply_that_was_cut_off_has_no_end_token(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    cut = [(messages, said, False) for messages, said, _ in CHATS]
    found = score_replies(policy, "actor", [*cut, CHATS[0]])
    wanted = [log_p(policy, *chat) for chat in (*cut, CHATS[0])]
    assert [total for total, _ in found] == pytest.approx(wanted, abs=1e-3)
    assert [count for _, count in found] == [len(said) for _, said in ASKED] + [2]
    assert score_replies(policy, "actor", [cut[2]]) == [(0.0, 0)]  # cut off before it began


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fast", [False, True])
def test_scoring_leaves_the_policy_as_it_was(tiny_policy: Factory, role: Role, fast: bool) -> None:
    policy = stir(tiny_policy())
    policy.switch("refiner")
    before = logits(policy)
    if fast:
        policy.speed_up()
    score_replies(policy, role, CHATS)
    assert (policy.role, policy.fast) == ("refiner", None)
    assert torch.equal(logits(policy), before)
    assert_ready(policy)


def test_prompts_cost_no_logits(tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    kernel = trl_utils._ChunkedLogProbFunction.apply

    def count(hidden: torch.Tensor, *rest: Any) -> Any:
        rows.append(len(hidden))
        return kernel(hidden, *rest)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", count)
    found = score_replies(tiny_policy(), "actor", CHATS)
    assert sum(rows) == sum(count for _, count in found)


# --- What is not finite ---------------------------------------------------------------------------


def poison_base(policy: Policy) -> None:
    """One weight, as a load that was not checked would have it."""
    with torch.no_grad():
        policy.inner.model.layers[1].mlp.down_proj.base_layer.weight[0, 0] = torch.nan


@pytest.mark.parametrize("how", ["dpo", "sft"])
@pytest.mark.parametrize("fault", ["base", "diverges"])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_adapter(
    tiny_policy: Factory, how: str, fault: str
) -> None:
    policy = tiny_policy()
    train_on_examples(policy, "actor", EXAMPLES, SFT, seed=0)
    good, seen = policy.fingerprint("actor"), []
    if fault == "base":
        poison_base(policy)
    changes = {"lr": 1e30, "epochs": 5, "schedule": "constant", "warmup_ratio": 0.0}
    if fault == "base":
        changes = {}
    message = (
        r"(loss|grad_norm|rewards/\w+|logps/\w+) is (nan|inf) at step \d+ of \d+, peak lr .*"
        r"The adapter is as it was before\. Look at the learning rate first"
    )
    with pytest.raises(TrainingError, match=message):
        if how == "dpo":
            settings = DPO.model_copy(update=changes)
            train_actor(policy, PAIRS, settings, 0, lambda step, *_: seen.append(step))
        else:
            sft = SFT.model_copy(update=changes)
            train_on_examples(policy, "actor", EXAMPLES, sft, 0, lambda step, *_: seen.append(step))
    assert policy.fingerprint("actor") == good
    assert len(seen) < 10, "it stopped at the first such step"
    if fault != "base":
        assert_ready(policy)


def test_an_adapter_that_is_not_finite_is_no_result(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update comes after the last loss."""
    policy = tiny_policy()
    good = policy.fingerprint("actor")
    whole = SparDpo.train

    def spoil(trainer: SparDpo) -> None:
        whole(trainer)
        next(iter(policy.weights("actor").values()))[0, 0] = torch.inf

    monkeypatch.setattr(SparDpo, "train", spoil)
    with pytest.raises(TrainingError, match=r"lora_A\.weight of its adapter is NaN or infinite"):
        train_actor(policy, PAIRS, DPO, 0)
    assert policy.fingerprint("actor") == good


def test_a_training_that_is_stopped_leaves_the_adapter_as_it_was(tiny_policy: Factory) -> None:
    policy = tiny_policy()
    good = policy.fingerprint("actor")

    def stop(step: int, *_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_examples(policy, "actor", EXAMPLES, SFT, 0, stop)
    assert policy.fingerprint("actor") == good
    assert_ready(policy)


def test_a_trainer_that_cannot_be_built_leaves_the_adapter_as_it_was(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(quantization="nf4")
    train_on_examples(policy, "actor", EXAMPLES, SFT, seed=0)
    good = policy.fingerprint("actor")

    def runs_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SparDpo, "compute_ref_log_probs", runs_out)
    with pytest.raises(TrainingError, match="out of memory on cpu with one example"):
        train_actor(policy, PAIRS, DPO, 0)
    assert policy.fingerprint("actor") == good
    assert all(t.dtype == torch.float32 for t in policy.weights("actor").values())


def test_step_0_is_measured_a_token() -> None:
    """A long reply's rounding adds up like a random walk; a wrong reference adds up in line."""
    nats, beta = 0.02, 0.1  # a token, in bfloat16
    for length in (20, 200, 2000):
        rounding = beta * nats * math.sqrt(length)
        logs = {"rewards/chosen": rounding, "rewards/rejected": -rounding}
        train._check_step0(logs, torch.bfloat16, beta, length)
        wrong = {"rewards/chosen": beta * 0.5 * length}, {"rewards/rejected": math.nan}
        for change in wrong:
            with pytest.raises(TrainingError, match="rewards of 0"):
                train._check_step0({**logs, **change}, torch.bfloat16, beta, length)
    edge = {"rewards/chosen": 1.99e-4, "rewards/rejected": 0.0}
    train._check_step0(edge, torch.float32, 0.1, 100)  # up to 2e-4 * 0.1 * 10
    with pytest.raises(TrainingError, match="rewards of 0"):
        train._check_step0({**edge, "rewards/chosen": 2.01e-4}, torch.float32, 0.1, 100)
