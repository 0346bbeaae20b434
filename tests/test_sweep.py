"""Sweeps: cells by name, equal steps done once, limits that match cells, tables of what came."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from spar_lite.app import sweep as command
from spar_lite.app.cli import main
from spar_lite.engines.base import Completion, Request
from spar_lite.errors import RecipeError
from spar_lite.evaluation.stats import wilson
from spar_lite.experiments.sweep import load_sweep, outcomes, pooled, run_sweep
from spar_lite.recipe import dump_recipe, load_recipe
from spar_lite.records import Role
from spar_lite.run import saved_recipe
from spar_lite.store import read_lines
from tests.loops import adapters_of, recipe, records_of, rule
from tests.scripted import Reply, ScriptedEngine, Silence


def write(place: Path, model: Path | str = "none", **sweep: Any) -> Path:
    """A sweep file over a small recipe beside it."""
    base = recipe(Path(model), iterations=1, evaluate__review=1)
    (place / "base.yaml").write_text(dump_recipe(base))
    (place / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "base.yaml", **sweep}, sort_keys=False)
    )
    return place / "sweep.yaml"


# --- The file -------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_over_the_base_and_what_all_set(tmp_path: Path) -> None:
    kinds = {"one": ["no_commas"], "two": ["title", "no_digits"]}
    grid = {"dpo.beta": [0.1, 1e-5], "prompts.kinds": kinds}
    sweep = load_sweep(write(tmp_path, grid=grid, set={"sample.k": 3}, seeds=[4, 5]), tmp_path)
    assert list(sweep.recipes) == [
        *("beta=0.1,kinds=one", "beta=0.1,kinds=two"),
        *("beta=1e-05,kinds=one", "beta=1e-05,kinds=two"),
    ]
    last = sweep.recipes["beta=1e-05,kinds=two"][5]
    assert (last.dpo.beta, last.prompts.kinds) == (1e-5, ("title", "no_digits"))
    assert (last.sample.k, last.seed, last.judge.votes) == (3, 5, 3)
    assert sweep.place("x", 4) == tmp_path / "x" / "seed-4"


def test_keys_that_end_alike_are_named_in_full(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, grid={"dpo.lr": [1e-3], "rft.lr": [0.1]}), tmp_path)
    assert list(sweep.recipes) == ["dpo.lr=0.001,rft.lr=0.1"]


ONE: dict[str, Any] = {"cells": {"one": {}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cell": {}}, r'sweep\.yaml: unknown key "cell"\. Did you mean "cells"\?'),
        ({}, "wanted grid or cells, found none"),
        ({**ONE, "grid": {"dpo.beta": [1]}}, "wanted grid or cells, found both"),
        ({"cells": {"one": {"dpo.bta": 1}}}, r'cell one: .*unknown key "dpo\.bta".*"dpo\.beta"'),
        ({"grid": {"dpo.beta": [0.1, -1]}}, r"cell beta=-1: .*dpo\.beta: wanted greater than 0"),
        ({"grid": {"dpo.beta": 0.1}}, r"grid\.dpo\.beta.*: wanted .*, found 0\.1"),
        ({"grid": {"dpo.beta": []}}, r"grid\.dpo\.beta: wanted values that differ, found \(\)"),
        ({"grid": {"dpo.beta": [1, 1]}}, r"grid\.dpo\.beta: wanted values that differ"),
        ({"cells": {"../up": {}}}, r"wanted a name of letters and digits, found '\.\./up'"),
        ({"cells": {"one": {"seed": 1}}}, "seeds says which"),
        ({**ONE, "seeds": []}, "seeds: .*at least 1 item"),
        ({**ONE, "seeds": [1, 1]}, "seeds: wanted each once, found"),
        ({**ONE, "match": "pair"}, "match: wanted 'none', 'pairs' or 'tokens', found 'pair'"),
        ({**ONE, "measure": "on_topc"}, 'measure: wanted .* Did you mean "on_topic"'),
        ({**ONE, "set": {"evaluate.prompts": 0}}, "cell one: wanted evaluate.prompts above 0"),
        ({**ONE, "match": "pairs", "set": {"iterations": 0}}, "match wants iterations"),
        ({**ONE, "base": "nowhere.yaml"}, "no such recipe"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(RecipeError, match=says) as found:
        load_sweep(file, tmp_path / "run")
    assert "\n" not in str(found.value)
    result = CliRunner().invoke(main, ["sweep", str(file), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2 and not (tmp_path / "run").exists()


def test_every_sweep_of_the_repository_is_valid_and_planned_at_once() -> None:
    files = sorted((Path(__file__).parents[1] / "recipes" / "sweeps").glob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        result = CliRunner().invoke(main, ["sweep", str(file), "--plan"])
        assert result.exit_code == 0 and "all" in result.output, result.output


def test_one_seed_has_wilsons_interval_and_several_draw_a_prompts_values_together() -> None:
    one = {"a": 1.0, "b": 0.0, "c": 1.0}
    assert pooled([one]) == wilson(2, 3)
    many = pooled([one, one, one])
    assert (many.value, many.n) == (2 / 3, 3), "three runs of one prompt are one case"


# --- Running it -----------------------------------------------------------------------------------


class Counting(ScriptedEngine):
    """One that says what it cost, as a real engine does."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply, shuffle_seed=3)
        self.tokens = 0

    def _complete(self, role: Role, request: Request) -> Completion:
        done = super()._complete(role, request)
        self.tokens += done.completion_tokens
        return done

    def take_usage(self) -> Any:
        spent, self.tokens = self.tokens, 0
        return SimpleNamespace(calls=1, prompt_tokens=0, completion_tokens=spent)


class Asked:
    """The engines of a sweep: all that they were asked; ``stop`` interrupts the nth reply."""

    def __init__(self, stop: int = 0) -> None:
        self.ids: list[str] = []
        self.stop = stop

    def __call__(self, run: Any) -> ScriptedEngine:
        return Counting(self.reply)

    def reply(self, role: Role, request: Request) -> str | Completion:
        self.ids.append(request.id)
        if len(self.ids) == self.stop:
            raise KeyboardInterrupt
        return rule(role, request)


def ledger(folder: Path) -> Counter[str]:
    """How often each step of each run was finished, and not copied."""
    return Counter(
        f"{path.parent.relative_to(folder)}/{line['stage']}"
        for path in folder.rglob("ledger.jsonl")
        for line in read_lines(path)
        if line["event"] == "done" and "reused_from" not in line
    )


@pytest.fixture(scope="module")
def swept(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep's file and its finished folder: a cell, one of another beta, one that fails."""
    place = tmp_path_factory.mktemp("sweep")
    cells = {"paper": {}, "broken": {"model.id": "./nowhere"}, "beta": {"dpo.beta": 0.5}}
    file = write(place, tiny_folder, cells=cells, seeds=[0, 1])
    faults = run_sweep(load_sweep(file, place / "run"), Silence(), Asked())
    assert list(faults) == [("broken", 0), ("broken", 1)]
    return file, place / "run"


@pytest.mark.tensors
def test_what_cells_share_is_done_once(swept: tuple[Path, Path]) -> None:
    done = ledger(swept[1])
    assert set(done.values()) == {1}
    for seed in (0, 1):
        assert f"paper/seed-{seed}/iteration-1/trees" in done
        assert f"beta/seed-{seed}/iteration-1/trees" not in done
        assert f"beta/seed-{seed}/iteration-1/actor" in done
    plain, other = (adapters_of(swept[1] / cell / "seed-0") for cell in ("paper", "beta"))
    actor = "iteration-1/actor/adapter_model.safetensors"
    assert plain.keys() == other.keys() and plain[actor] != other[actor]


@pytest.mark.tensors
def test_a_finished_sweep_does_nothing_and_its_table_says_all(
    swept: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = swept
    before, asked = ledger(folder), Asked()
    monkeypatch.setattr(command, "run_sweep", partial(run_sweep, make_engine=asked))

    def invoke(*more: str) -> Result:
        return CliRunner().invoke(main, ["sweep", str(file), "--run", str(folder), *more])

    result = invoke()
    assert result.exit_code == 1, "a cell failed"
    assert not asked.ids and ledger(folder) == before
    assert "broken, seed 1: " in result.output and "no such folder" in result.output
    assert "Traceback" not in result.output
    found = json.loads(invoke("--json").stdout)
    rows = {row["cell"]: row for row in found["cells"]}
    assert {name: row["seeds"] for name, row in rows.items()} == {
        "paper": 2,
        "broken": 0,
        "beta": 2,
    }
    assert list(found["failed"]) == ["broken, seed 0", "broken, seed 1"]
    assert rows["paper"]["difference"] is None and rows["beta"]["difference"]["n"] == 4
    assert rows["paper"]["scores"]["answers_that_count"]["n"] == 4
    assert rows["broken"]["scores"]["answers_that_count"]["n"] == 0
    runs = outcomes(load_sweep(file, folder), {})["beta"]
    assert rows["beta"]["tokens"] == sum(run.tokens[-1] for run in runs) > 0
    assert all(len(run.tokens) == 2 and run.tokens[0] < run.tokens[1] for run in runs)
    pytest.importorskip("matplotlib")
    assert [Path(path).name for path in found["figures"]][:2] == [
        *("figure-light.svg", "figure-light.png")
    ]
    assert ">beta<" in (folder / "figure-dark.svg").read_text()


@pytest.mark.tensors
@pytest.mark.parametrize("stop", [40, 75], ids=["first cell", "second cell"])
def test_a_sweep_that_was_stopped_goes_on_and_does_nothing_twice(
    stop: int, tiny_folder: Path, tmp_path: Path
) -> None:
    cells: dict[str, Any] = {"one": {}, "two": {"sample.k": 1}}
    sweep = load_sweep(write(tmp_path, tiny_folder, cells=cells), tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, Silence(), Asked(stop))
    before = ledger(sweep.folder)
    assert run_sweep(sweep, Silence(), Asked()) == {}
    after = ledger(sweep.folder)
    assert before and before < after and set(after.values()) == {1}
    whole = load_sweep(tmp_path / "sweep.yaml", tmp_path / "whole")
    assert run_sweep(whole, Silence(), Asked()) == {}
    assert records_of(sweep.folder) == records_of(whole.folder)
    assert adapters_of(sweep.folder) == adapters_of(whole.folder)


@pytest.mark.tensors
@pytest.mark.parametrize("match", ["pairs", "tokens"])
def test_matched_cells_learn_from_as_much_as_the_poorest(
    match: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """A cell that has nothing to learn from is reported, and limits no other."""
    cells: dict[str, Any] = {"many": {}, "few": {"prompts.count": 3}}
    if match == "pairs":  # its answers are all alike
        cells["none"] = {"pairs.source": "best-of-n"}
    sweep = load_sweep(write(tmp_path, tiny_folder, cells=cells, match=match), tmp_path / "run")
    asked = Asked()
    faults = run_sweep(sweep, Silence(), asked)
    assert list(faults) == ([("none", 0)] if match == "pairs" else [])
    assert all("makes no pairs in iteration 1" in fault for fault in faults.values())
    limits = {
        cell: getattr(saved_recipe(sweep.place(cell, 0)).iterate, match) for cell in ("many", "few")
    }
    assert limits["many"] == limits["few"] > 0
    many, few = (outcomes(sweep, {})[cell][0] for cell in ("many", "few"))
    if match == "pairs":
        assert many.pairs == few.pairs == limits["many"]
    else:
        assert few.tokens[1] - few.tokens[0] == limits["few"]
        assert many.tokens[1] - many.tokens[0] == limits["many"]
    again = Asked()
    assert run_sweep(sweep, Silence(), again) == faults and not again.ids


@pytest.mark.tensors
def test_the_plan_knows_what_will_be_shared(
    swept: tuple[Path, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    folder, cells = swept[1], {"paper": {}, "beta": {"dpo.beta": 0.5}}
    fresh = load_sweep(write(tmp_path, tiny_folder, cells=cells), tmp_path / "run")
    shared = command.shared_steps(fresh, {cell: of[0] for cell, of in fresh.recipes.items()})
    copied = [
        line["stage"]
        for line in read_lines(folder / "beta" / "seed-0" / "ledger.jsonl")
        if "reused_from" in line
    ]
    assert set(copied) <= shared["beta"] and not shared["paper"]
    assert "iteration-1/actor" not in shared["beta"]
    table = command.plan_table(fresh)
    assert table.row_count == 3 and not fresh.folder.exists()


def test_a_base_of_a_cell_is_a_recipe(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, **ONE), tmp_path)
    assert sweep.recipes["one"][0] == load_recipe(tmp_path / "base.yaml")
