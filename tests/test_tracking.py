"""log.to: what is sent to a tracker, and that nothing else changes."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spar_lite import loop
from spar_lite.errors import RecipeError
from spar_lite.recipe import Log, dump_recipe
from spar_lite.run import Run
from spar_lite.store import Marker
from spar_lite.tracking import check_tracker, send, tracked
from tests.loops import adapters_of, recipe, records_of, start
from tests.scripted import Silence

SCORES = {"scores": {"on_topic": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4}}, "seconds": 2}


def fake(monkeypatch: pytest.MonkeyPatch, name: str, fault: str = "") -> list[Any]:
    """A tracker that keeps what it is told, or cannot be reached."""
    said: list[Any] = []

    def init(**words: Any) -> None:
        if fault:
            raise ConnectionError(fault)
        said.append(words)

    library = SimpleNamespace(init=init, log=said.append, finish=lambda: said.append("end"))
    monkeypatch.setitem(sys.modules, name, library)
    return said


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_steps_numbers_are_sent_scores_by_their_value(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = fake(monkeypatch, name)
    found = {**SCORES, "device": "cpu", "kept": True, "loss": float("nan"), "none": None}
    assert send(Log(to=name), tmp_path / "run", "iteration-2/heldout", found) is None
    assert said == [
        {"project": "spar-lite", "name": "run iteration-2/heldout"},
        {"heldout/scores/on_topic": 0.5, "heldout/seconds": 2.0, "checkpoint": 3},
        "end",
    ]


def test_what_cannot_be_sent_is_said_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "wandb", "no\nnetwork")
    said = send(Log(to="wandb"), tmp_path, "base/heldout", SCORES)
    assert said == "log.to: base/heldout could not be sent to wandb (no network)"


def test_none_touches_nothing(tmp_path: Path) -> None:
    assert send(Log(), tmp_path, "base/heldout", SCORES) is None
    with tracked(Log(), tmp_path, "bootstrap/actor") as arguments:
        assert arguments == {"report_to": "none"}
    assert not list(tmp_path.iterdir())
    check_tracker(Log())


def test_a_missing_package_is_one_line_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spar_lite.tracking.find_spec", lambda _: None)
    settings = recipe(tmp_path / "no-model", log={"to": "trackio"})
    with pytest.raises(RecipeError, match="pip install trackio"):
        loop.execute(start(tmp_path / "run", settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.tensors
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not there")
def test_tensorboard_gets_curves_and_scores_and_the_run_is_the_same(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(place: str) -> dict[str, list[tuple[int, float]]]:
        found = EventAccumulator(str(tmp_path / "seen" / "logs" / place))
        found.Reload()
        tags = found.Tags()["scalars"]
        return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}

    plain = recipe(tiny_folder, iterations=1)
    seen = recipe(tiny_folder, iterations=1, log={"to": "tensorboard"})
    loop.execute(start(tmp_path / "plain", plain))
    loop.execute(start(tmp_path / "seen", seen))
    assert records_of(tmp_path / "seen") == records_of(tmp_path / "plain")
    assert adapters_of(tmp_path / "seen") == adapters_of(tmp_path / "plain")
    notes = [Marker(tmp_path / name / "iteration-1", "actor").read() for name in ("seen", "plain")]
    assert notes[0] and notes[1] and notes[0]["recipe"] == notes[1]["recipe"]
    # The key may change on the way.
    assert Run(plain, tmp_path / "seen", Silence()).unfinished(loop.spar) == []

    curve = scalars("iteration-1/actor")["train/loss"]
    assert len(curve) == notes[0]["steps"]
    assert curve[0][1] == pytest.approx(notes[0]["loss_first"], abs=1e-4)
    steps = scalars("steps")
    assert [at for at, _ in steps["heldout/scores/answers_that_count"]] == [0, 1, 2]
    assert steps["actor/loss_first"][-1][1] == pytest.approx(notes[0]["loss_first"], abs=1e-4)
    assert {"trees/nodes", "audit/truly_better", "actor/seconds"} <= steps.keys()


@pytest.mark.tensors
@pytest.mark.parametrize("event", ["on_train_begin", "on_log", "on_train_end"])
def test_a_tracker_that_breaks_ends_no_training(
    event: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is not known, its network is gone: hours of work do not hang on it."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    def breaks(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nnetwork")

    broken = type("Broken", (TrainerCallback,), {event: breaks})
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", broken)
    monkeypatch.setattr("spar_lite.tracking.find_spec", lambda _: True)
    fake(monkeypatch, "wandb").clear()
    sys.modules["wandb"].finish = breaks  # as a run that never began cannot end
    loop.execute(start(tmp_path / "plain", recipe(tiny_folder, iterations=1)))
    run = start(tmp_path / "seen", recipe(tiny_folder, iterations=1, log={"to": "wandb"}))
    said: list[str] = []
    monkeypatch.setattr(run.screen, "say", said.append)
    loop.execute(run)
    curves = [line for line in said if "curve" in line]
    assert len(curves) == 4  # one a training, however many steps it has
    assert set(curves) == {"log.to: the curve of this training could not be sent (no network)"}
    assert adapters_of(tmp_path / "seen") == adapters_of(tmp_path / "plain")


def test_of_several_processes_the_first_alone_sends_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from spar_lite.app import runs
    from spar_lite.app.cli import main

    followed: list[Run] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("spar_lite.distributed.together", lambda: nullcontext(False))
    monkeypatch.setattr(runs, "spar", followed.append)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(tmp_path / "no-model", log={"to": "wandb"})))
    done = CliRunner().invoke(main, ["run", str(path), "--run", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert followed[0].follows and followed[0].recipe.log.to == "none"
