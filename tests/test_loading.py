"""What is loaded is what was asked for, or it is refused in one line that names the fault."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from spar_lite.engines.base import Request, Sampling, strip_thinking
from spar_lite.errors import EngineError, ModelError, TrainingError
from spar_lite.evaluation.target import find_target
from spar_lite.loop import execute
from spar_lite.model import Policy, RolloutEngine
from spar_lite.model.loading import weight_bytes
from spar_lite.recipe import EngineSettings, Lora, Model, Training, parse_recipe
from spar_lite.records import Message, TrainingExample
from spar_lite.run import Run
from spar_lite.store import Marker
from spar_lite.train import train_on_examples
from tests.scripted import Silence
from tests.tiny import write_model

pytestmark = pytest.mark.tensors

Factory = Callable[..., Policy]
ASK = (Message("user", "Name a colour."),)
SFT = Training(batch_size=2, max_length=256, gradient_checkpointing=False)
ROWS = [TrainingExample(f"e{n}", "answer", ASK, f"Blue {n}.") for n in range(4)]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder: Path, **settings: Any) -> Policy:
    known = {"device": "cpu", "threads": 1, "lora": Lora(r=4, alpha=8), **settings}
    return Policy.load(Model(id=str(folder), **known), 0)


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the weights with ``how`` done to them."""
    file = folder / "model.safetensors"
    state = load_file(file)
    state = how(state) or state
    save_file(dict(state), file, metadata={"format": "pt"})


# --- Weights --------------------------------------------------------------------------------------

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_missing_tensor_is_named(folder: Path, quantization: str) -> None:
    change(folder, lambda state: {k: v for k, v in state.items() if k != DOWN})
    with pytest.raises(ModelError, match=rf"its weights lack {DOWN}\. Are they unfinished"):
        load(folder, quantization=quantization)


def test_renamed_tensors_are_named_with_what_is_there(folder: Path) -> None:
    change(folder, lambda state: {f"language_model.{k}": v for k, v in state.items()})
    with pytest.raises(ModelError, match=r"lack .* and hold language_model\.model\.embed_tokens"):
        load(folder)


def test_tensors_that_nothing_asks_for_do_no_harm(folder: Path) -> None:
    """A vision tower, or a head for several tokens at a time."""
    change(folder, lambda state: {**state, "vision_tower.weight": torch.zeros(2, 2)})
    assert load(folder).inner.lm_head.weight.shape == (259, 64)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    change(folder, lambda state: {**state, DOWN: state[DOWN][:, :100].contiguous()})
    with pytest.raises(ModelError, match=rf"have another shape for {DOWN}"):
        load(folder)


def test_an_unfinished_download_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"version https://git-lfs.github.com\n"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"safetensors file is damaged or not whole"):
            load(folder)
    file.unlink()
    index = {"metadata": {}, "weight_map": {DOWN: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"cannot load the model of .*model-00001-of-00002"):
        load(folder)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("name", ["model.norm.weight", DOWN])
def test_a_base_that_is_not_finite_is_named(folder: Path, name: str, quantization: str) -> None:
    def poison(state: dict[str, torch.Tensor]) -> None:
        state[name].view(-1)[7] = torch.nan

    change(folder, poison)
    with pytest.raises(ModelError, match=rf"{name} holds NaN or infinity"):
        load(folder, quantization=quantization)


def test_a_model_larger_than_the_memory_is_said_with_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = weight_bytes(AutoConfig.from_pretrained(folder), False, torch.float32, False)
    assert need == 4 * sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    monkeypatch.setattr("spar_lite.model.loading.free_memory", lambda *_: 2_000_000_000)
    monkeypatch.setattr("spar_lite.model.loading.weight_bytes", lambda *_: 16_060_000_000)
    message = r"does not fit: its weights take 16\.06 GB in float32.* 2\.00 GB are free.*nf4"
    with pytest.raises(ModelError, match=message):
        load(folder)
    monkeypatch.undo()

    def runs_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", runs_out)
    with pytest.raises(ModelError, match=r"does not fit: its weights take 0\.00 GB"):
        load(folder)


@pytest.mark.parametrize("config", ["LlamaConfig", "GPT2Config"])  # whose layers are no Linear
def test_bytes_in_4_bit_are_what_is_taken(tmp_path: Path, config: str) -> None:
    write_model(tmp_path, getattr(transformers, config), n_inner=128)
    policy = load(tmp_path, quantization="nf4")
    taken = 0
    for name, parameter in policy.inner.named_parameters():
        if "lora_" in name:
            continue
        taken += parameter.numel() * parameter.element_size()
        if (state := getattr(parameter, "quant_state", None)) is not None:
            taken += state.absmax.numel() + 4 * state.state2.absmax.numel()
    wanted = weight_bytes(AutoConfig.from_pretrained(tmp_path), False, torch.float32, True)
    assert taken == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("method", "four", "hint"),
    [
        ("fp8", False, "unquantized model"),
        ("gptq", False, "unquantized model"),
        ("bitsandbytes", False, "unquantized model"),
        ("bitsandbytes", True, "quantization=nf4"),
    ],
)
def test_weights_that_are_quantized_already_are_refused_by_name(
    folder: Path, method: str, four: bool, hint: str
) -> None:
    """Read as plain ones they would be noise: their scales are tensors that nothing asks for."""
    file = folder / "config.json"
    shipped = {"quant_method": method, "load_in_4bit": four, "load_in_8bit": not four}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": shipped}))
    with pytest.raises(ModelError, match=rf"quantized already \({method}\).*{hint}"):
        load(folder, quantization="none")
    if not four:
        with pytest.raises(ModelError, match=rf"quantized already \({method}\)"):
            load(folder, quantization="nf4")


@pytest.mark.parametrize("fault", [{"num_hidden_layers": "2"}, {"num_attention_heads": 0}])
def test_a_config_that_makes_no_model_is_one_line(folder: Path, fault: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fault))
    with pytest.raises(ModelError, match="cannot load the "):
        load(folder)


def test_lora_targets_that_the_model_lacks_are_one_line(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.target .*c_attn.* does not fit"):
        load(folder, lora=Lora(r=4, alpha=8, target=("c_attn",)))


def test_a_failed_load_is_tried_once(tmp_path: Path) -> None:
    """Not once a prompt: a wheel or a large model takes minutes each time."""
    screen = Silence()
    recipe = parse_recipe({"model": {"id": str(tmp_path / "nowhere")}, "evaluate": {"prompts": 20}})
    with pytest.raises(ModelError, match="no such folder"):
        execute(Run(recipe, tmp_path / "run", screen))
    assert sum(line.startswith("loading") for line in screen.said) == 1


# --- Adapters -------------------------------------------------------------------------------------


def foreign(tiny: Path, folder: Path, **more: Any) -> torch.Tensor:
    """Write an adapter as others make them; return the logits that PEFT itself gives with it."""
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    torch.manual_seed(1)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]} | more
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05)
    model.save_pretrained(folder)
    edit(folder, base_model_name_or_path=str(tiny))
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        found: torch.Tensor = plain(input_ids=torch.tensor([[10, 20, 30, 40]])).logits
    return found


def edit(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def open_adapter(folder: Path) -> Policy:
    overrides = ["model.device=cpu", "model.threads=1"]
    return find_target(str(folder), None, overrides).open(Silence()).policy


# PEFT 0.21 asks transformers for an attribute that 5.23 renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_plain_adapter_answers_as_in_peft(tiny_folder: Path, tmp_path: Path) -> None:
    wanted = foreign(tiny_folder, tmp_path / "adapter", init_lora_weights="gaussian")
    policy = open_adapter(tmp_path / "adapter")
    policy.switch("actor")
    with torch.no_grad():
        found = policy.inner(input_ids=torch.tensor([[10, 20, 30, 40]])).logits
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*PiSSA:UserWarning")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("alpha_pattern", {"q_proj": 64}),
        ("rank_pattern", {"q_proj": 2}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("use_dora", True),
        ("modules_to_save", ["up_proj"]),
        ("layers_to_transform", [1]),
        ("bias", "lora_only"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path, key: str, value: Any
) -> None:
    foreign(tiny_folder, tmp_path / "adapter", **{key: value})
    with pytest.raises(ModelError, match=rf"plain LoRA adapter, found .*{key}.*merge_and_unload"):
        open_adapter(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapter_settings_of_days_to_come_are_refused_unless_off(
    tiny_folder: Path, tmp_path: Path
) -> None:
    foreign(tiny_folder, tmp_path / "a")
    edit(tmp_path / "a", use_something_new=False, something_config=None)
    open_adapter(tmp_path / "a")
    for values in ({"use_something_new": True}, {"target_modules": None}, {"peft_type": "IA3"}):
        foreign(tiny_folder, tmp_path / "b")
        edit(tmp_path / "b", **values)
        with pytest.raises(ModelError, match=f"plain LoRA adapter, found {next(iter(values))}"):
            open_adapter(tmp_path / "b")


# PEFT 0.21 says that it chose patterns of its own for experts that share a tensor.
@pytest.mark.filterwarnings("ignore:.*rank_pattern")
@pytest.mark.filterwarnings("ignore:.*alpha_pattern")
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_an_adapter_for_experts_comes_back(tmp_path: Path) -> None:
    """PEFT gives it a rank, a scale and parameters of its own, and they are ours all the same."""
    more = {"num_local_experts": 2, "num_experts_per_tok": 1}
    write_model(tmp_path / "model", transformers.MixtralConfig, **more)
    policy = load(tmp_path / "model")
    for tensor in policy.weights("actor").values():
        torch.nn.init.normal_(tensor, std=0.1)
    policy.save("actor", tmp_path / "actor")
    again = load(tmp_path / "model")
    again.restore("actor", tmp_path / "actor")
    assert again.fingerprint("actor") == policy.fingerprint("actor")
    edit(tmp_path / "actor", alpha_pattern={"q_proj": 64})
    with pytest.raises(ModelError, match="found alpha_pattern"):
        again.restore("actor", tmp_path / "actor")


def test_an_adapter_of_another_scale_is_refused(tiny_policy: Factory, tmp_path: Path) -> None:
    """Its shapes fit, and it would be another adapter."""
    tiny_policy().save("actor", tmp_path / "actor")
    other = tiny_policy(lora=Lora(r=4, alpha=16))
    with pytest.raises(ModelError, match=r"made with alpha 8.* model\.lora\.alpha is 16"):
        other.restore("actor", tmp_path / "actor")


def test_an_adapter_that_is_not_finite_is_refused(tiny_policy: Factory, tmp_path: Path) -> None:
    policy = tiny_policy()
    next(iter(policy.weights("actor").values()))[0, 0] = torch.nan
    policy.save("actor", tmp_path / "actor")
    with pytest.raises(ModelError, match="holds NaN or infinity: its training diverged"):
        tiny_policy().restore("actor", tmp_path / "actor")


# --- Chat templates -------------------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1 = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def with_template(folder: Path, template: str, **settings: Any) -> Policy:
    (folder / "chat_template.jinja").write_text(template)
    return load(folder, **settings)


def test_a_template_that_refuses_a_system_turn_is_one_line(folder: Path) -> None:
    policy = with_template(folder, GEMMA)
    row = TrainingExample("a", "answer", (Message("system", "Be terse."), *ASK), "Blue.")
    message = "does not take a chat of system, user: System role not supported"
    with pytest.raises(ModelError, match=message):
        train_on_examples(policy, "refiner", [row], SFT, 0)


def test_a_warm_up_file_that_the_template_refuses_is_found_at_loading(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "chat_template.jinja").write_text(GEMMA)
    turns = [("user", "x"), ("assistant", "y")]
    rows = [turns, [("system", "Be terse."), *turns], turns]
    file = tmp_path / "rows.jsonl"
    lines = [{"messages": [{"role": r, "content": c} for r, c in row]} for row in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = parse_recipe(
        {
            "model": {"id": str(folder), "device": "cpu", "threads": 1},
            "bootstrap": {"source": str(file)},
        }
    )
    screen = Silence()
    with pytest.raises(ModelError, match=r"a chat of system, user: System role not supported"):
        execute(Run(recipe, tmp_path / "run", screen))
    assert not list((tmp_path / "run").glob("base/*.jsonl"))
    # Once its rows have been read, the file is needed no more: a run goes on without it.
    file.unlink()
    Marker(tmp_path / "run" / "bootstrap", "examples").write({})
    assert Run(recipe, tmp_path / "run", screen).policy


def test_a_template_that_cannot_render_is_found_at_loading(folder: Path) -> None:
    for template in ("{% for m in %}", "{{ messages[0]['content'] | no_such_filter }}"):
        with pytest.raises(ModelError, match=r"chat template of .* does not take a chat of user"):
            with_template(folder, template)


def test_several_templates_want_a_default(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    named = [{"name": name, "template": GEMMA} for name in ("tool_use", "rag")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))
    with pytest.raises(ModelError, match="chat templates rag, tool_use and no default"):
        load(folder)
    named.append({"name": "default", "template": GEMMA})
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))
    assert load(folder).encode(ASK)


def test_a_thought_that_the_template_opens_shows_in_the_reply(folder: Path) -> None:
    """So that one that is cut off is no answer, and one that is closed is dropped."""
    policy = with_template(folder, R1)
    assert policy.chat.opens_thought
    for path in ("continuous", "static"):
        engine = RolloutEngine(policy, EngineSettings(path=path), 0)  # type: ignore[arg-type]
        (done,) = asyncio.run(engine.generate("base", [Request("a", ASK, 9, Sampling())]))
        assert done.text.startswith("<think>") and len(done.text) > len("<think>")
        assert strip_thinking(done.text) == ""
    with pytest.raises(TrainingError, match="answers would be trained as thoughts"):
        train_on_examples(policy, "actor", ROWS, SFT, 0)


def test_a_model_that_thinks_can_be_told_not_to(folder: Path) -> None:
    thinking = with_template(folder, QWEN3)
    assert not thinking.chat.opens_thought
    with pytest.raises(TrainingError, match=r"model\.chat_template\.enable_thinking=false"):
        train_on_examples(thinking, "actor", ROWS, SFT, 0)
    silent = with_template(folder, QWEN3, chat_template={"enable_thinking": False})
    assert silent.decode(silent.encode(ASK)).endswith("<think>\n\n</think>\n\n")
    train_on_examples(silent, "actor", ROWS, SFT, 0)


def test_a_template_that_thinks_unless_told_is_known_by_what_it_renders(folder: Path) -> None:
    """SmolLM3 asks for thoughts in its system turn and shows none in what it is trained on."""
    system = (
        "<|im_start|>system\n{{ '/no_think' if enable_thinking is defined and not "
        "enable_thinking else '/think' }}<|im_end|>\n"
    )
    ending = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    policy = with_template(folder, system + TURNS + ending)
    assert "asks for a thought" in (policy.chat.thoughts_when_training or "")
    for wanted in (True, False):  # then it is the user's word
        policy = with_template(
            folder, system + TURNS + ending, chat_template={"enable_thinking": wanted}
        )
        assert policy.chat.thoughts_when_training is None
    with pytest.raises(ModelError, match="tokenize is set by spar_lite itself"):
        load(folder, chat_template={"tokenize": False})


def test_a_run_is_refused_before_its_first_answer_if_it_could_not_train(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "chat_template.jinja").write_text(QWEN3)
    recipe = parse_recipe({"model": {"id": str(folder), "device": "cpu", "threads": 1}})
    run = Run(recipe, tmp_path / "run", Silence())
    with pytest.raises(ModelError, match="puts an empty <think> block before what is trained"):
        _ = run.policy


def test_a_tokenizer_without_an_end_is_refused_and_a_stray_pad_replaced(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "pad_token": "<|stray|>"}))
    policy = load(folder)  # a pad token of its own would have the id 259, beyond the embeddings
    assert policy.tokenizer.pad_token_id < 259
    (done,) = asyncio.run(
        RolloutEngine(policy, EngineSettings(path="static"), 0).generate(
            "base", [Request("a", ASK, 3, Sampling())]
        )
    )
    assert done.completion_tokens <= 3
    file.write_text(json.dumps({**known, "eos_token": None}))
    with pytest.raises(ModelError, match=r"no end token.*eos_token"):
        load(folder)


# --- Generation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [IndexError("out of range"), KeyError("x"), AssertionError("y")])
@pytest.mark.parametrize("path", ["static", "continuous"])
def test_any_error_in_a_batch_reaches_all_its_callers(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch, path: str, error: Exception
) -> None:
    policy = tiny_policy()

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(policy.inner, "generate", fails)
    monkeypatch.setattr("spar_lite.model.decoder.BatchDecoder._forward", fails)
    engine = RolloutEngine(policy, EngineSettings(path=path, batch=2), 0)  # type: ignore[arg-type]
    requests = [Request(f"r{n}", ASK, 4, Sampling()) for n in range(5)]

    async def ask() -> list[Any]:
        calls = [engine.generate("actor", [request]) for request in requests]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

    for found in asyncio.run(ask()):
        assert isinstance(found, EngineError)
        assert f"generating failed ({type(error).__name__}" in str(found)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("path", ["auto", "static", "continuous"])
def test_logits_that_are_not_finite_end_generation(
    tiny_policy: Factory, path: str, temperature: float
) -> None:
    policy = tiny_policy()
    next(t for n, t in policy.weights("actor").items() if "lora_B" in n)[0, 0] = torch.nan
    engine = RolloutEngine(policy, EngineSettings(path=path), 0)  # type: ignore[arg-type]
    request = Request("a", ASK, 4, Sampling(temperature))
    with pytest.raises(EngineError, match=r"logits are NaN or infinite for \d of \d sequences"):
        asyncio.run(engine.generate("actor", [request]))
    assert asyncio.run(engine.generate("base", [request]))  # whose weights are whole


def test_a_family_that_fails_in_its_own_way_is_left_to_plain_generate(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyError("sliding"), AssertionError(), ZeroDivisionError()):

        def fails(*_: Any, fault: Exception = error, **__: Any) -> None:
            raise fault

        monkeypatch.setattr("spar_lite.model.decoder.BatchDecoder._forward", fails)
        said: list[str] = []
        engine = RolloutEngine(tiny_policy(), EngineSettings(weights="separate"), 0, said.append)
        assert asyncio.run(engine.generate("actor", [Request("a", ASK, 4, Sampling())]))
        assert f"does not run ({type(error).__name__}" in said[0]


def test_running_out_in_the_self_check_proves_fewer_at_a_time(
    tiny_policy: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spar_lite.model import self_check
    from spar_lite.model.decoder import BatchDecoder

    policy = tiny_policy()
    whole = BatchDecoder._forward

    def starve(self: BatchDecoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, ids, *rest)

    monkeypatch.setattr(BatchDecoder, "_forward", starve)
    found = self_check(policy, 12)
    assert found.fault is None and "checked, 3 at a time" in found.proved
