"""The report: what it gathers, hostile text, its size, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from spar_lite.app.cli import main
from spar_lite.app.console import LONGEST, plain
from spar_lite.app.report import MADE_BY, changed, embedded, make_page
from spar_lite.evaluation.scoring import heldout
from spar_lite.records import Response, Tree
from spar_lite.store import StageFile
from tests.loops import HOSTILE, play, recipe


def block(page: str, id: str) -> str:
    found = re.search(rf'<script type="application/json" id="{id}">(.*?)</script>', page, re.S)
    assert found
    return found[1]


def shown(page: str) -> list[dict[str, Any]]:
    """The runs of a page, with every text in its place, as the page's script puts it there."""
    texts = json.loads(block(page, "texts"))

    def put(data: dict[str, Any]) -> Any:
        return texts[data["t"]] if data.keys() == {"t"} else data

    runs: list[dict[str, Any]] = json.loads(block(page, "data"), object_hook=put)["runs"]
    return runs


def report(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("report") / "run", judge__early_stop=False)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("hostile") / "<b>run", HOSTILE, judge__early_stop=False)


def test_answers_stand_side_by_side_with_what_the_verifier_says(folder: Path) -> None:
    (run,) = shown(make_page([folder]))
    assert run["checkpoints"] == ["base", "iteration-1"]
    prompts = {p.text for p in heldout(recipe(folder, bootstrap={"source": "none"}))}
    rows = run["answers"]["rows"]
    assert {row["prompt"] for row in rows} == prompts and run["answers"]["of"] == len(prompts) == 4
    for row in rows:
        base, last = row["answers"]
        assert base["text"].startswith("Well, ") and last["text"].startswith("No comma here.")
        # Of no topic, so it never counts, whatever constraint it meets.
        assert last["state"] == ("half" if all(last["checks"]) else "bad")
        assert "off topic" in last["said"] and len(row["asks"]) == len(last["checks"]) + 1
    for bar in run["bars"]:
        assert sum(count for _, count in bar["parts"]) == 4


def test_trees_pairs_and_judgements_are_those_of_the_files(folder: Path) -> None:
    (run,) = shown(make_page([folder]))
    trees = {t.id: t for t in StageFile(folder / "iteration-1", "trees", Tree).load()}
    assert trees and {row["id"] for row in run["trees"]["rows"]} == set(trees)
    for row in run["trees"]["rows"]:
        tree = trees[row["id"]]
        assert row["accepted"] == tree.accepted and len(row["nodes"]) == len(tree.nodes)
        assert row["nodes"][0]["text"] == tree.nodes[0].text
        paths = [node["path"] for node in row["nodes"]]
        assert paths == sorted(paths)  # a child comes after its parent and before its uncle
    solved = {row["id"]: row for row in run["trees"]["rows"] if row["accepted"] is not None}
    for pair in run["pairs"]["rows"]:
        rejected, chosen = pair["sides"]
        assert rejected["text"] == trees[pair["id"]].nodes[0].text
        assert chosen["text"] == trees[pair["id"]].node(solved[pair["id"]]["accepted"]).text
        assert "No" in rejected["said"] and "No" not in chosen["said"].split()
    assert {name for row in run["judged"]["rows"] for name in row["sorts"]} >= {"split", "wrong"}
    planned, counted = run["funnel"]["rows"]
    assert planned[1:3] == ["6", "12"] and counted[1:3] == ["6", "12"]
    keys = {row[0] for row in run["settings"]["rows"]}
    assert {"search.branch", "judge.votes", "prompts.count"} & keys and "seed" not in keys


def test_how_much_a_text_changed_by_hand() -> None:
    """Two words of three stay: 1 - 2 * 2 / 6; then all is new."""
    assert changed(["a b c", "a b d"]) == pytest.approx(1 / 3)
    assert changed(["a b c", "a b d", "x y z"]) == pytest.approx(4 / 3)
    assert changed(["a b", "b a"]) == changed(["a"]) == changed(["", ""]) - 1 == 0


def test_hostile_text_stays_text(hostile: Path) -> None:
    page = make_page([hostile])
    for id in ("texts", "data"):
        assert not re.search("[<>&\u2028\u2029]", block(page, id))
    assert page.count("<script") == 3 and "\x1b" not in page and "\u202e" not in page
    (run,) = shown(page)
    texts = [answer["text"] for row in run["answers"]["rows"] for answer in row["answers"]]
    for text in texts:
        assert "<script>alert(1)</script> </script><img src=x onerror=alert(2)>" in text
        assert "javascript:alert(3) {{DATA}} [U+202E]right to left[U+202C]" in text
        assert "zero[U+200B]width [U+001B][31mred" in text and "[bold]rich[/bold]" in text
        assert "line[U+2028]separator & <!-- comment" in text
    assert run["name"].endswith("<b>run")


def test_a_long_line_is_cut_and_a_lone_surrogate_is_named() -> None:
    assert plain("x" * 1_000_000) == "x" * LONGEST + " … (997,000 more characters)"
    assert plain("a\ud800b") == "a[U+D800]b" and json.loads(embedded("a\ud800b")) == "a\ud800b"
    assert plain("👩\u200d🚀\tno\nchange") == "👩\u200d🚀\tno\nchange"


def test_the_pages_script_never_reads_markup() -> None:
    template = (Path(__file__).parents[1] / "spar_lite/app/report.html").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://(?!www"
                         r"\.w3\.org/2000/svg)|srcdoc|new Function", template)  # fmt: skip


def test_a_users_file_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.html"
    own.write_text("my thesis")
    for path in (own, tmp_path):
        result = report(folder, "-o", path)
        assert result.exit_code == 2 and "stays" in result.output and "-o FILE" in result.output
    assert own.read_text() == "my thesis"
    new = tmp_path / "new.html"
    for _ in range(2):  # its own it writes anew
        result = report(folder, "-o", new)
        assert result.exit_code == 0 and str(new) in result.output
    assert MADE_BY in new.read_text() and 'http-equiv="refresh' not in new.read_text()


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    result = report(tmp_path / name, "-o", tmp_path / "r.html")
    assert result.exit_code == 2 and "not a run folder" in result.output
    assert not (tmp_path / "r.html").exists()


def test_watching_writes_it_anew_until_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out, seen = tmp_path / "run", tmp_path / "r.html", []
    shutil.copytree(folder, run)

    def sleep(_: float) -> None:
        seen.append(out.read_text())
        if len(seen) == 3:
            raise KeyboardInterrupt
        if len(seen) == 1:
            (run / "iteration-1" / "heldout.done.json").unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    assert report(run, "-o", out, "--watch").exit_code == 0
    names = [shown(page)[0]["checkpoints"] for page in [*seen, out.read_text()]]
    assert [len(found) for found in names] == [2, 1, 1, 1]
    assert ['http-equiv="refresh"' in page for page in [*seen, out.read_text()]] == [
        True, True, True, False,
    ]  # fmt: skip


def test_runs_share_a_page(folder: Path) -> None:
    assert [run["name"] for run in shown(make_page([folder, folder]))] == [str(folder)] * 2


def multiplied(folder: Path, times: int) -> None:
    """Make a run's responses and trees as long as those of an hour's run."""
    at = folder / "iteration-1"
    for name in ("prompts", "responses", "judgements", "trees", "pairs"):
        path = at / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        with path.open("w") as file:
            for n in range(times):
                for line in lines:
                    line = re.sub(r"train-(?=\d)", f"train-{n}-", line)
                    file.write(line.replace("So it goes", f"So {n} goes") + "\n")


def test_a_thousand_prompts_are_five_megabytes_and_ten_seconds(tmp_path: Path) -> None:
    run = play(tmp_path / "run", "So it goes on and on with words. " * 30, evaluate__prompts=1000)
    multiplied(run, 170)
    assert len(StageFile(run / "iteration-1", "responses", Response).load()) == 2040
    begin = time.perf_counter()
    page = make_page([run])
    assert time.perf_counter() - begin < 10
    assert len(page.encode()) < 5e6
    (found,) = shown(page)
    assert found["trees"]["of"] > 900 and len(found["trees"]["rows"]) > 0
    assert found["answers"]["of"] == 1000


# --- In a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(folder: Path, hostile: Path) -> Iterator[Any]:
    """Chromium. The runs come first: its driver does not let another event loop run beside it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser extra is not there")
    program = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if program is None:
        pytest.skip("no Chromium")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("name", ["folder", "hostile"])
def test_the_page_is_read_by_keyboard_and_asks_for_nothing(
    browser: Any, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "report.html"
    file.write_text(make_page([request.getfixturevalue(name)]))
    view, said, asked = browser.new_page(), [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(file.as_uri())
    paint = view.evaluate(
        "new Promise(done => new PerformanceObserver(list => done(list.getEntries()[0].startTime))"
        ".observe({type: 'paint', buffered: true}))"
    )
    assert paint < 1000
    assert view.locator("#answers article").count() == 4
    view.select_option("#answers-0", "counts at the end")
    assert view.locator("#answers article").count() == 0
    view.select_option("#trees-1", "solved" if name == "folder" else "not solved")
    tree = view.locator("#trees details").first
    tree.locator("summary").focus()
    view.keyboard.press("Enter")
    tree.locator("[role=treeitem]").first.wait_for()
    view.keyboard.press("Tab")
    view.keyboard.press("ArrowDown")
    way = tree.locator("[role=treeitem].way")
    for _ in range(20):
        at = view.locator("[role=treeitem]:focus").inner_text()
        if "accepted" in at if name == "folder" else tree.locator("ins").count():
            break
        view.keyboard.press("ArrowDown")
    assert tree.locator("ins").count() > 0
    if name == "folder":
        assert way.count() >= 2
    else:
        assert "<script>alert(1)</script>" in tree.inner_text()
    assert view.locator("main script, main img").count() == 0
    assert (said, asked) == ([], [file.as_uri()])
    view.close()


def test_axe_finds_nothing_serious(browser: Any, folder: Path, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not there")
    file = tmp_path / "report.html"
    file.write_text(make_page([folder]))
    for scheme in ("light", "dark"):
        # axe is put into the page, which the page's own rule forbids to all but its own script.
        context = browser.new_context(color_scheme=scheme, bypass_csp=True)
        view = context.new_page()
        view.goto(file.as_uri())
        view.locator("#trees details > summary").first.click()
        view.locator("[role=treeitem]").first.click()
        faults = axe.Axe().run(view).response["violations"]
        assert [f["id"] for f in faults if f["impact"] in ("serious", "critical")] == []
        context.close()


def test_a_page_that_is_handed_on_holds_nothing_that_opens_a_server(
    folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    start, url = "vllm serve m --api-key sk-SECRET1", "http://me:SECRET2@localhost:8000/v1"
    extra = {"token": "SECRET3"}
    settings["engine"] |= {"kind": "openai", "start": start, "url": url, "extra": extra, "batch": 7}
    settings["evolve"] |= {"url": "http://me:SECRET4@far/v1", "key_env": "SECRET5"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings))
    page = make_page([run])
    assert "engine.batch" in page
    assert "SECRET" not in page.replace(str(run), "")
