"""Going on: more iterations on a finished run, and a run that starts from another one.

Whole loops over a scripted engine and a tiny model, as in the loop's own tests.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from spar_lite import loop
from spar_lite.app import runs
from spar_lite.data.prompts import dealt_prompts
from spar_lite.errors import RecipeError, StoreError
from spar_lite.recipe import Recipe
from spar_lite.records import PreferencePair, Prompt, TrainingExample
from spar_lite.run import adapters_after, checkpoints
from spar_lite.store import StageFile
from spar_lite.templates import judge_messages, refine_messages
from spar_lite.warmup import warmup_rows
from tests.loops import adapters_of, recipe, records_of, start
from tests.scripted import Silence

pytestmark = pytest.mark.tensors


@pytest.fixture(scope="module")
def twice(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations from the start."""
    folder = tmp_path_factory.mktemp("runs") / "twice"
    loop.execute(start(folder, recipe(tiny_folder)))
    return folder


def test_one_iteration_continued_to_two_is_a_run_of_two(
    twice: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    loop.execute(start(folder, recipe(tiny_folder, iterations=1)))
    assert not (folder / "iteration-2").exists()
    assert start(folder, recipe(tiny_folder, iterations=1)).unfinished(loop.spar) == []
    loop.execute(start(folder, recipe(tiny_folder, iterations=2), seed=7))
    assert records_of(folder) == records_of(twice)
    assert adapters_of(folder) == adapters_of(twice)
    assert (folder / "recipe.yaml").read_bytes() == (twice / "recipe.yaml").read_bytes()


def test_more_iterations_from_the_command_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``spar-lite run RECIPE --run DIR -o iterations=1`` after a run of none."""
    asked: list[tuple[int, Path]] = []

    def execute(run: Any) -> dict[str, Any]:
        asked.append((run.recipe.iterations, run.folder))
        return loop.execute(start(run.folder, run.recipe))

    monkeypatch.setattr(runs, "execute", execute)
    small = recipe(tiny_folder, iterations=0, evaluate={"prompts": 0}, bootstrap__actor=False)
    file, folder = tmp_path / "small.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(small.model_dump(mode="json", by_alias=True)))
    for more in ([], [], ["-o", "iterations=1"]):
        done = CliRunner().invoke(runs.run_command, [str(file), "--run", str(folder), *more])
        assert done.exit_code == 0, done.output
    assert asked == [(0, folder), (1, folder)]
    assert (folder / "iteration-1" / "refiner" / "adapter_model.safetensors").is_file()


# --- Prompts are dealt once -----------------------------------------------------------------------


def asks(*words: str) -> str:
    return "".join(json.dumps({"text": f"Describe {word}."}) + "\n" for word in words)


def plain(model: Path, source: Path, **changes: Any) -> Recipe:
    """A loop over a file of prompts, one a time, without scores."""
    settings: dict[str, Any] = {
        "iterations": 1,
        "prompts": {"source": str(source), "count": 2},
        "bootstrap": {"source": "none"},
        "judge__mode": "llm",
        "evaluate": {"prompts": 0},
    }
    return recipe(model, **(settings | changes))


def dealt(folder: Path, number: int) -> list[str]:
    found = StageFile(folder / f"iteration-{number}", "prompts", Prompt).load()
    return [prompt.text.removeprefix("Describe ").rstrip(".") for prompt in found]


def test_no_prompt_is_dealt_twice_when_the_file_has_grown(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """New rows stand before, between and after the old ones: places say nothing."""
    source, first = tmp_path / "rows.jsonl", tmp_path / "first"
    source.write_text(asks("tea", "dogs", "rain"))
    loop.execute(start(first, plain(tiny_folder, source)))
    assert dealt(first, 1) == ["tea", "dogs"]
    source.write_text(asks("cats", "tea", "snow", "dogs", "rain", "wind", "ice"))
    loop.execute(start(first, plain(tiny_folder, source, iterations=2)))
    assert dealt(first, 2) == ["cats", "snow"]
    second = tmp_path / "second"
    boot = {"start_from": str(first)}
    loop.execute(start(second, plain(tiny_folder, source, bootstrap=boot)))
    assert dealt(second, 1) == ["rain", "wind"]
    third = tmp_path / "third"
    boot = {"start_from": str(second)}
    with pytest.raises(
        RecipeError, match=r"has 1 left; passed over: 6 dealt before.*reuse_prompts"
    ):
        loop.execute(start(third, plain(tiny_folder, source, bootstrap=boot)))
    again: dict[str, Any] = {**boot, "reuse_prompts": True}
    fourth = tmp_path / "fourth"
    loop.execute(start(fourth, plain(tiny_folder, source, bootstrap=again, iterations=2)))
    assert dealt(fourth, 1) == ["cats", "tea"] and dealt(fourth, 2) == ["snow", "dogs"]


def test_evolved_prompts_are_known_by_what_they_were(tiny_folder: Path, tmp_path: Path) -> None:
    source, first = tmp_path / "rows.jsonl", tmp_path / "first"
    source.write_text(asks("tea", "dogs", "rain", "wind"))
    evolve = {"with": "constraints", "kinds": ("no_commas",)}
    loop.execute(start(first, plain(tiny_folder, source, evolve=evolve)))
    assert [p.text for p in dealt_prompts(first)] == ["Describe tea.", "Describe dogs."]
    boot = {"start_from": str(first)}
    loop.execute(start(tmp_path / "b", plain(tiny_folder, source, bootstrap=boot)))
    assert dealt(tmp_path / "b", 1) == ["rain", "wind"]


def test_a_start_keeps_what_was_dealt_when_it_was_made(tiny_folder: Path, tmp_path: Path) -> None:
    """The other run may go on, or go: this one is whole by itself."""
    source, first, second = tmp_path / "rows.jsonl", tmp_path / "first", tmp_path / "second"
    source.write_text(asks("tea", "dogs", "rain", "wind", "ice", "snow"))
    loop.execute(start(first, plain(tiny_folder, source)))
    boot = {"start_from": str(first)}
    loop.execute(start(second, plain(tiny_folder, source, bootstrap=boot, iterations=0)))
    first.rename(tmp_path / "gone")
    loop.execute(start(second, plain(tiny_folder, source, bootstrap=boot)))
    assert dealt(second, 1) == ["rain", "wind"]


# --- Released data --------------------------------------------------------------------------------


def released(folder: Path) -> Path:
    """Files of the released data's shape: judge rows in the paper's template, and pairs."""
    folder.mkdir()
    asked = (
        "Prompt: \u201cDescribe tea.\u201d\n\nOutput: \u201cTea.\u201d\n\n"
        "Please carefully judge it.\nFinal Judgement: (Yes or No)"
    )
    chats = [[asked, "It is short.\nFinal Judgement: No"], ["Describe tea.", "Tea is warm."]]
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant"), chat, strict=True)
            ]
        }
        for chat in chats
    ]
    rows.append({"messages": [rows[0]["messages"][0], {"role": "assistant", "content": "Hm."}]})
    (folder / "sft.json").write_text(json.dumps(rows))
    pairs = [
        {
            "messages": [{"role": "user", "content": f"Describe {word}."}],
            "chosen": {"role": "assistant", "content": f"{word} gives warm light to many people."},
            "rejected": {"role": "assistant", "content": f"{word} gives warm light to people, no."},
        }
        for word in ("tea", "milk", "rain", "wind")
    ]
    (folder / "dpo.json").write_text(json.dumps(pairs))
    return folder


def test_released_rows_and_pairs_are_trained_before_iteration_1(
    tiny_folder: Path, tmp_path: Path
) -> None:
    data, folder = released(tmp_path / "data"), tmp_path / "run"
    small = {"batch_size": 4, "gradient_checkpointing": False}
    boot = {"source": str(data), "pairs": str(data / "dpo.json"), **small}
    settings = recipe(tiny_folder, iterations=0, bootstrap=boot, evaluate={"prompts": 2})
    run = start(folder, settings)
    assert run.unfinished(loop.spar)[2:7] == [
        f"bootstrap/{name}"
        for name in ("examples", "refiner", "actor_before_pairs", "pairs", "actor")
    ]
    marks = loop.execute(run)
    assert isinstance(run.screen, Silence)
    assert (
        "bootstrap.source: rows left out: 1 judgements without a verdict, 4 preference pairs "
        "(bootstrap.pairs trains on them). bootstrap.templates: paper takes rows as they are."
    ) in run.screen.said
    examples = StageFile(folder / "bootstrap", "examples", TrainingExample).load()
    assert examples[1].prompt == judge_messages("Describe tea.", "Tea.")
    assert marks["bootstrap/examples"]["left_out"] == 5
    assert marks["bootstrap/pairs"] | {"pairs": 4, "left_out": 0} == marks["bootstrap/pairs"]
    assert len(StageFile(folder / "bootstrap", "pairs", PreferencePair).load()) == 4
    trained = marks["bootstrap/actor"]
    assert trained["examples"] == 4
    assert trained["metrics"]["dpo_term_step0"] == pytest.approx(0.693147, abs=1e-4), (
        "its reference"
    )
    before = marks["bootstrap/actor_before_pairs"]["fingerprints"]
    assert trained["fingerprints"]["actor"] != before["actor"]
    assert trained["fingerprints"]["refiner"] == before["refiner"]
    place = folder / "bootstrap"
    assert adapters_after(settings, folder, 0) == (place / "actor", place / "refiner")
    assert checkpoints(folder)["bootstrap"]["actor"] == place / "actor"
    again = start(folder, settings)
    assert again.unfinished(loop.spar) == []
    with (data / "dpo.json").open("a") as file:
        file.write("\n")
    with pytest.raises(
        StoreError, match=r"dpo\.json has changed since bootstrap/examples was made"
    ):
        again.unfinished(loop.spar)


def test_released_pairs_alone_and_after_a_start(tiny_folder: Path, tmp_path: Path) -> None:
    data, folder = released(tmp_path / "data"), tmp_path / "run"
    boot: dict[str, Any] = {"source": "none", "pairs": str(data)}
    settings = recipe(tiny_folder, iterations=1, bootstrap=boot, evaluate={"prompts": 2})
    marks = loop.execute(start(folder, settings))
    place = folder / "bootstrap"
    assert adapters_after(settings, folder, 0) == (place / "actor", None)
    assert marks["bootstrap/pairs"]["left_out"] == 3 and "bootstrap/refiner" not in marks
    assert marks["iteration-1/responses"]["answers"] > 0

    second, boot = tmp_path / "second", {"start_from": str(folder), "pairs": str(data)}
    settings = recipe(tiny_folder, iterations=0, bootstrap=boot, evaluate={"prompts": 0})
    marks = loop.execute(start(second, settings))
    old, new = adapters_of(folder), adapters_of(second)
    name = "adapter_model.safetensors"
    copied = new[f"bootstrap/actor_before_pairs/{name}"]
    assert copied in (old[f"bootstrap/actor/{name}"], old[f"iteration-1/actor/{name}"])
    assert new[f"bootstrap/actor/{name}"] != copied
    assert marks["bootstrap/actor"]["examples"] == 4
    assert start(second, settings).unfinished(loop.spar) == []


def test_a_kill_between_the_two_trainings_of_the_actor_loses_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    data = released(tmp_path / "data")
    small = {"batch_size": 4, "gradient_checkpointing": False}
    boot = {"source": str(data / "sft.json"), "pairs": str(data / "dpo.json"), **small}
    settings = recipe(tiny_folder, iterations=0, bootstrap=boot, evaluate={"prompts": 0})
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    loop.execute(start(whole, settings))
    loop.execute(start(folder, settings))
    (folder / "bootstrap" / "actor.done.json").unlink()
    assert start(folder, settings).unfinished(loop.spar) == ["bootstrap/actor"]
    loop.execute(start(folder, settings))
    assert adapters_of(folder) == adapters_of(whole) and records_of(folder) == records_of(whole)


def test_a_missing_file_of_pairs_is_said_when_the_model_is_loaded(
    tiny_folder: Path, tmp_path: Path
) -> None:
    data = released(tmp_path / "data")
    boot = {"source": "none", "pairs": str(data / "missing.json")}
    run = start(tmp_path / "run", recipe(tiny_folder, iterations=0, bootstrap=boot))
    with pytest.raises(RecipeError, match=r"bootstrap\.pairs: .*missing\.json: no such file"):
        _ = run.policy


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "nowhere.jsonl"}, r"nowhere\.jsonl: no such file"),
        ({"count": 3}, r"iteration 1 to 2 wants 6 prompts, .*rows\.jsonl has 5 left"),
        ({"decontaminate": "nowhere.jsonl"}, r"prompts\.decontaminate: nowhere\.jsonl: no such"),
        ({"column": "question"}, r'prompts\.column is "question", the columns are text'),
    ],
)
def test_prompts_that_are_not_there_are_said_before_the_first_step(
    changes: dict[str, Any], says: str, tiny_folder: Path, tmp_path: Path
) -> None:
    source, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    source.write_text(asks("tea", "dogs", "rain", "wind", "ice"))
    prompts = {"source": str(source), "count": 2} | changes
    run = start(folder, plain(tiny_folder, source, prompts=prompts, iterations=2))
    with pytest.raises(RecipeError, match=says):
        loop.execute(run)
    assert not folder.exists()


def test_pairs_added_after_a_start_are_refused_and_nothing_is_lost(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """The copied actor lies where theirs would: it would be trained over, from a fresh one."""
    data, first, second = released(tmp_path / "data"), tmp_path / "first", tmp_path / "second"
    settings = recipe(tiny_folder, iterations=0, evaluate={"prompts": 0})
    loop.execute(start(first, settings))
    boot: dict[str, Any] = {"start_from": str(first)}
    settings = recipe(tiny_folder, iterations=0, bootstrap=boot, evaluate={"prompts": 0})
    loop.execute(start(second, settings))
    before = adapters_of(second)
    settings = recipe(
        tiny_folder, iterations=0, bootstrap=boot | {"pairs": str(data)}, evaluate={"prompts": 0}
    )
    with pytest.raises(StoreError, match=r"bootstrap/start was made with bootstrap\.pairs"):
        loop.execute(start(second, settings))
    assert adapters_of(second) == before


def test_a_prompt_that_stands_twice_is_dealt_once_and_counted(
    tiny_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(asks("tea", "tea", "dogs", "tea"))
    settings = plain(tiny_folder, source, prompts={"source": str(source), "count": 2}, iterations=2)
    with pytest.raises(RecipeError, match=r"wants 4 prompts.* has 2 left.*2 twice in the source"):
        loop.execute(start(tmp_path / "run", settings))


def test_a_cap_on_rows_keeps_some_of_each_kind(tiny_folder: Path, tmp_path: Path) -> None:
    """Judge rows come first in the file, and a cap on its beginning would teach nothing else."""
    critique, file = "It is short.\nFinal Judgement: No", tmp_path / "rows.json"
    chats = {
        critique: judge_messages("Describe tea.", "Tea."),
        "Longer.\n[[start]] Tea is warm. [[end]]": refine_messages(
            "Describe tea.", "Tea.", critique
        ),
    }
    rows = [
        {"messages": [*map(asdict, chat), {"role": "assistant", "content": reply}]}
        for reply, chat in chats.items()
        for _ in range(12)
    ]
    file.write_text(json.dumps(rows))
    boot = {"source": str(file), "examples": 10}
    settings = recipe(tiny_folder, iterations=0, bootstrap=boot, evaluate={"prompts": 0})
    kinds = {row.kind for row in warmup_rows(start(tmp_path / "run", settings))}
    assert kinds == {"judgement", "refinement"}
