"""The interference experiment: its pairs, scores and sentence; and that a kill costs nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from spar_lite.app.cli import main
from spar_lite.engines.base import Request
from spar_lite.errors import RecipeError, SparError
from spar_lite.experiments.interference import TRIED, Interference, experiment
from spar_lite.experiments.outcome import finding, panels, results
from spar_lite.experiments.synthetic import ARMS, TASKS, Ask, Characters, Story, asks, pair_set
from spar_lite.recipe import dump_recipe, load_as, parse_as
from spar_lite.records import Cost, PreferencePair, Response, Role
from spar_lite.run import Run
from tests.loops import adapters_of, records_of
from tests.scripted import ScriptedEngine, Silence

RECIPES = Path(__file__).parent.parent / "recipes"
K7 = Characters("k", 7, "Write the letter {} {} times.")
TALE = Story("Tom was afraid of tea.", "And so he forgot snow.", "{} {}")


def answer(ask: Ask, number: int) -> str:
    """A right answer, or for odd numbers one that is nearly right."""
    right = ask.right(random.Random(number))
    if number % 2 == 0:
        return right
    return right[:-2].rstrip(",") if isinstance(ask, Characters) else f"{right} And she ran."


def sets_of(task: str, count: int) -> tuple[dict[str, Ask], dict[str, list[PreferencePair]]]:
    """Prompts, of whose answers every second one fails, and the pairs of these."""
    asked = asks(task, "train", 2 * count, 0)
    answers = [
        Response(id, id, answer(ask, n), True, Cost()) for n, (id, ask) in enumerate(asked.items())
    ]
    return asked, {arm: pair_set(arm, asked, answers, count, 0) for arm in ARMS}


@pytest.mark.parametrize("task", TASKS)
def test_the_three_sets_differ_in_their_chosen_answers_alone(task: str) -> None:
    asked, sets = sets_of(task, 20)
    assert list(sets) == list(ARMS)
    for pairs in zip(*sets.values(), strict=True):
        assert len({(p.id, p.prompt, p.rejected) for p in pairs}) == 1
        ask = asked[pairs[0].prompt_id]
        assert not ask.points(pairs[0].rejected)["met"]
        assert all(ask.points(p.chosen)["met"] for p in pairs)
    assert all(len(pairs) == 20 for pairs in sets.values())


@pytest.mark.parametrize("task", TASKS)
def test_nine_of_ten_interfering_answers_have_the_feature_and_no_other_has(task: str) -> None:
    asked, sets = sets_of(task, 20)
    feature = TASKS[task].feature
    shares = {
        arm: [asked[pair.prompt_id].points(pair.chosen)[feature] for pair in pairs]
        for arm, pairs in sets.items()
    }
    assert shares == {
        "refined": [0.0] * 20,
        "interfering": [*[1.0] * 9, 0.0] * 2,
        "independent": [0.0] * 20,
    }


def test_answers_that_are_cut_off_or_cannot_be_mended_make_no_pair() -> None:
    asked: dict[str, Ask] = {"a": K7}
    texts = {"k k k": True, "k k": False, "7 times k": True, "q q q": True, "": True}
    answers = [Response(t, "a", t, finished, Cost()) for t, finished in texts.items()]
    (pair,) = pair_set("refined", asked, answers, 1, 0)
    assert (pair.rejected, pair.chosen) == ("k k k", "k k k k k k k")
    with pytest.raises(SparError, match="wanted 2 failed answers that can be mended, found 1"):
        pair_set("refined", asked, answers, 2, 0)


def test_no_sort_of_fault_is_learnt_from_more_than_another() -> None:
    asked: dict[str, Ask] = {str(n): K7 for n in range(12)}
    texts = ["k k k k k k k k"] * 8 + ["k k k k k k"] * 4
    answers = [Response(str(n), str(n), text, True, Cost()) for n, text in enumerate(texts)]
    rejected = [pair.rejected for pair in pair_set("refined", asked, answers, 8, 0)]
    assert [rejected.count(text) for text in (texts[0], texts[-1])] == [4, 4]
    # Where there are too few of one, the other fills up.
    assert len(pair_set("refined", asked, answers, 12, 0)) == 12


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("k k k k k k k k k", "k k k k k k k"),
        ("K, K", "K, K, K, K, K, K, K"),
        ("kkk", "kkkkkkk"),
        ("k", None),
        ("k k and k", None),
        ("k, k k", None),
        ("", None),
    ],
)
def test_characters_are_mended_with_their_own_case_and_separator(
    text: str, mended: str | None
) -> None:
    assert K7.mended(text) == mended


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        # The last sentence is missing, or both are; a nearly right one is put right in its place.
        ("Tom was afraid of tea. He ran.", "Tom was afraid of tea. He ran. And so he forgot snow."),
        ("He ran.", "Tom was afraid of tea. He ran. And so he forgot snow."),
        (
            "Tom is afraid of tea. He ran. And so we forgot snow.",
            "Tom was afraid of tea. He ran. And so he forgot snow.",
        ),
        ("Tom was afraid of tea.", None),
        ("", None),
    ],
)
def test_stories_are_mended_sentence_by_sentence(text: str, mended: str | None) -> None:
    assert TALE.mended(text) == mended


def test_scores_of_characters() -> None:
    assert K7.points("k, k, k, k, K, K, K") == {"met": 1, "miscount": 0, "capitals": 3 / 7}
    assert K7.points("k k k") == {"met": 0, "miscount": 4, "capitals": 0}
    assert K7.points("k k k k k k k q")["met"] == 0
    assert K7.points("7") == {"met": 0, "miscount": 7}


def test_scores_of_stories() -> None:
    first, last = TALE.first, TALE.last
    whole = {"met": 1, "start": 1, "end": 1, "speech": 0}
    assert TALE.points(f"{first}\nHe ran. {last}") == whole
    assert TALE.points(f'{first} "I ran," he said. {last}') == whole | {"speech": 1}
    assert TALE.points(f"{first} {last}") == whole | {"met": 0}
    assert TALE.points(f"{first} He ran.") == {"met": 0, "start": 1, "end": 0, "speech": 0}


@pytest.mark.parametrize("task", TASKS)
def test_prompts_differ_and_more_of_them_begin_with_the_same(task: str) -> None:
    few, many = asks(task, "train", 20, 1), asks(task, "train", 60, 1)
    assert list(many.items())[:20] == list(few.items())
    assert len({ask.text for ask in many.values()}) == 60
    held = {ask.text for ask in asks(task, "heldout", 30, 0).values()}
    assert not held & {ask.text for ask in asks(task, "train", 200, 0).values()}


def test_more_prompts_than_there_are_is_one_line() -> None:
    with pytest.raises(SparError, match="wanted 1000 different prompts"):
        asks("character_sequence", "heldout", 1000, 0)


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ((0.2, 0.1, 0.3, 60), "holds at this size"),
        ((-0.2, -0.3, -0.1, 60), "is turned round"),
        ((0.1, -0.1, 0.3, 60), "is not seen"),
        ((0.1, float("nan"), float("nan"), 60), "is not seen"),
        ((1.0, 1.0, 1.0, 1), "is not seen"),
    ],
)
def test_the_sentence_follows_the_paired_interval(
    gap: tuple[float, float, float, int], said: str
) -> None:
    shares = {("refined", 0): 0.35, ("refined", 24): 0.6, ("interfering", 24): 0.4}
    text = finding(
        {
            "points": [
                {"arm": arm, "step": step, "scores": {"met": {"value": share}}}
                for (arm, step), share in shares.items()
            ],
            "differences": {
                "interfering": {
                    **dict(zip(("value", "low", "high", "n"), gap, strict=True)),
                    "by_seed": [0.2, 0.1, -0.1],
                }
            },
        }
    )
    assert said in text
    assert "from 35.0 % met at the start, 24 steps on refined pairs lead to 60.0 %" in text
    assert "above 0 in 2 of them" in text


# --- The recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_recipes_are_read_and_what_is_saved_is_read_back(task: str, tmp_path: Path) -> None:
    recipe = load_as(Interference, RECIPES / f"{task}.yaml")
    assert recipe.task == task
    saved = tmp_path / "recipe.yaml"
    saved.write_text(dump_recipe(recipe))
    assert load_as(Interference, saved) == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=[0, 8, 24]", r"steps wants rising numbers from 0 to 8 \(32 pairs"),
        ("steps=[8, 24]", "steps wants rising numbers from 0 to 8"),
        ("seeds=[1, 1]", "seeds wants different numbers"),
        ("seeds=[]", "seeds wants different numbers"),
        ("iterations=1", "this experiment has no iterations"),
        ("rft.epochs=1", "this experiment has no rft"),
        ("task=poem", "task: wanted"),
        ("warmup.row=3", 'Did you mean "warmup.rows"'),
    ],
)
def test_a_recipe_that_does_not_go_together_is_one_line(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as fault:
        load_as(Interference, RECIPES / "character_sequence.yaml", [change])
    assert "\n" not in str(fault.value)


# --- Whole experiments of a tiny model, whose answers are scripted --------------------------------


def recipe(model: Path, task: str) -> Interference:
    small = {"batch_size": 2, "gradient_checkpointing": False, "max_length": 512, "lr": 1e-3}
    data = {
        "task": task,
        "seeds": (0, 1),
        "set_size": 4,
        "steps": (0, 1, 2),
        "heldout": 5,
        "model": {"id": str(model), "lora": {"r": 4, "alpha": 8}, "device": "cpu", "threads": 1},
        "warmup": {"rows": 4, **small},
        "dpo": small,
    }
    return parse_as(Interference, data, "test")


def start(settings: Interference, folder: Path, screen: Silence | None = None) -> Run:
    """A run of a model whose odd answers fail, and all of the interfering arm's."""
    known = {
        ask.text: ask
        for split, count, seeds in (("train", 4 + TRIED * 4, (0, 1)), ("heldout", 5, (0,)))
        for seed in seeds
        for ask in asks(settings.task, split, count, seed).values()  # type: ignore[arg-type]
    }

    def reply(role: Role, request: Request) -> str:
        assert role == "actor"
        fails = "interfering/" in request.id or int(request.id[-1]) % 2
        return answer(known[request.messages[-1].content], int(fails))

    return Run(settings, folder, screen or Silence(), make_engine=lambda _: ScriptedEngine(reply))


class Killed(Exception):
    pass


class Killer(Silence):
    """Ends the process, as it were, when a stage begins, or at its second step."""

    def __init__(self, stage: str, steps: int = 0) -> None:
        super().__init__()
        self.stage, self.steps = stage, steps

    def start(self, stage: str, total: int, unit: str) -> None:
        super().start(stage, total, unit)
        self.advance(0)

    def advance(self, items: int) -> None:
        if self.stages[-1] == self.stage:
            self.steps -= items
            if self.steps <= 0:
                raise Killed


@pytest.mark.tensors
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_experiment_goes_on_to_the_same_bytes(
    task: str, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = recipe(tiny_folder, task)
    start(settings, tmp_path / "whole").work(experiment)
    stages = (
        ("seed-0/start/answers", 3),
        ("seed-0/refined/actor", 2),
        ("seed-0/interfering/heldout-001", 2),
        ("seed-1/independent/actor", 0),
    )
    for stage, steps in stages:
        screen = Killer(stage, steps)
        with pytest.raises(Killed):
            start(settings, tmp_path / "killed", screen).work(experiment)
        assert screen.stages[-1] == stage
    start(settings, tmp_path / "killed").work(experiment)
    assert records_of(tmp_path / "killed") == records_of(tmp_path / "whole")
    assert adapters_of(tmp_path / "killed") == adapters_of(tmp_path / "whole")
    assert start(settings, tmp_path / "whole").unfinished(experiment) == []


@pytest.mark.tensors
def test_results_and_figures_of_a_whole_experiment(tiny_folder: Path, tmp_path: Path) -> None:
    settings = recipe(tiny_folder, "character_sequence")
    start(settings, tmp_path / "run").work(experiment)
    found = results(settings, tmp_path / "run")
    scores = {(p["arm"], p["step"]): p["scores"] for p in found["points"]}
    assert len(scores) == 9
    # Of five prompts in two seeds three are met, but for those of the interfering arm.
    assert scores["refined", 2]["met"]["value"] == pytest.approx(0.6)
    assert scores["refined", 2]["met"]["n"] == 5
    assert scores["interfering", 2]["met"]["value"] == 0
    assert found["differences"]["interfering"]["by_seed"] == pytest.approx([0.6, 0.6])
    assert found["differences"]["independent"]["value"] == 0
    # Every arm starts from the same adapters: what is alike for them is alike to the last digit.
    begin = [scores[arm, 0] for arm in ARMS]
    assert all(each["rejected"] == begin[0]["rejected"] for each in begin)
    assert all(each["drift"] == begin[0]["drift"] for each in begin)
    # Training moves both sides apart, and the answers' log p is the start's at every step.
    for arm in ARMS:
        gaps = [
            scores[arm, s]["chosen"]["value"] - scores[arm, s]["rejected"]["value"]
            for s in settings.steps
        ]
        assert gaps[0] < gaps[-1]
    drifts = [scores["refined", s]["drift"]["value"] for s in settings.steps]
    assert drifts == pytest.approx([drifts[0]] * 3, abs=1e-4)
    assert [len(panel.lines) for panel in panels(found)] == [3, 3, 6, 3]
    # The command finds all steps done, and asks no model.
    pytest.importorskip("matplotlib")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(settings))
    command = ["interference", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert found["finding"] in shown.output
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found
    assert (tmp_path / "run" / "figures" / "character_sequence-light.svg").is_file()
    as_json = CliRunner().invoke(main, [*command, "--json"])
    assert json.loads(as_json.stdout)["finding"] == found["finding"]
