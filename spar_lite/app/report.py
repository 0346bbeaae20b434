"""The report command: runs as one HTML file that shows the answers first.

Reads finished records by the readers that the tables use, and computes no score of its own. What a
model wrote goes into the page as JSON and from there on the screen as text, never as markup. A page
stays small: long texts are cut and what is too much is drawn evenly, and the page says so.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.table import Table
from rich.text import Text

from spar_lite import __version__, constraints
from spar_lite.app.console import LONGEST, plain
from spar_lite.app.loop_table import actor_training, iteration_table, weak_parts
from spar_lite.app.show import called, verdict
from spar_lite.app.tables import cell, cost_table, difference_row, score_table
from spar_lite.data.prompts import requirements
from spar_lite.errors import StoreError
from spar_lite.evaluation.compare import differences, heldout_results, run_alarms
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.scoring import heldout
from spar_lite.evaluation.stats import share
from spar_lite.judge import majority
from spar_lite.loop import spar, summaries
from spar_lite.recipe import Recipe, describe_keys, is_private, parse_recipe, recipe_slice
from spar_lite.records import Judgement, Node, PreferencePair, Prompt, Response, Tree, stable_seed
from spar_lite.run import Run, Screen, Summary, saved_recipe
from spar_lite.store import StageFile, json_text, read_lines, write_text

T = TypeVar("T")
Row = dict[str, Any]
Found = Mapping[str, Summary]

MADE_BY = "<!-- made by spar-lite report -->"
"""What tells our files from a user's: only these are written over."""
ROOM = 4_400_000
"""Bytes for all records of a page; each of its runs has an equal part, in these shares:"""
SHARES = {"answers": 0.4, "trees": 0.35, "pairs": 0.1, "judged": 0.15}
LOOK_EVERY, RELOAD_EVERY = 3, 15
"""Seconds between two looks at the files, and after which a watching page loads itself anew."""


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File; RUN/report.html else.")
@click.option("--open", "shown", is_flag=True, help="Open it in the browser.")
@click.option("--watch", is_flag=True, help="Write it anew as the run goes on, until Ctrl-C.")
def report_command(runs: tuple[Path, ...], out: Path | None, shown: bool, watch: bool) -> None:
    """Write runs as one HTML page: answers, scores, trees.

    The page needs no network and no server: open it from disk, or send it as it is. Of several
    RUNS one is chosen on the page.
    """
    path = out or runs[0] / "report.html"
    check_place(path, "-o FILE")
    before = _files(runs)
    write_page(path, make_page(runs, watch))
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if shown and click.launch(str(path.resolve())):
        click.echo(f"No browser could be started. Open it by hand: {path.resolve().as_uri()}")
    if not watch:
        return
    click.echo("Watching the files; Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(LOOK_EVERY)
            if (now := _files(runs)) != before:
                before = now
                try:
                    write_page(path, make_page(runs, watch))
                except StoreError as fault:  # a step may be writing; the next look may be luckier
                    click.echo(str(fault), err=True)
    write_page(path, make_page(runs))  # nothing changes any more: no need to load it anew


def _files(runs: Sequence[Path]) -> set[tuple[Path, int, int]]:
    """Every file that a report is made of, with its time of change and size."""
    found = set()
    for path in (path for folder in runs for path in folder.rglob("*.json*")):
        with contextlib.suppress(FileNotFoundError):  # a finished step drops its partial file
            found.add((path, path.stat().st_mtime_ns, path.stat().st_size))
    return found


def check_place(path: Path, option: str) -> None:
    """Refuse a page's place where something stands that is no page of ours.

    Raises:
        StoreError: then the option that names another one is said.
    """
    if path.exists() and not (path.is_file() and MADE_BY.encode() in path.read_bytes()[:200]):
        raise StoreError(f"{path} was not made by spar-lite, so it stays. Name another: {option}")


def write_page(path: Path, text: str) -> None:
    """Write a page; a place that cannot be written is one line."""
    try:
        write_text(path, text)
    except OSError as error:
        why = f"{path} cannot be written ({error.strerror}). Name another file."
        raise StoreError(why) from None


def make_page(runs: Sequence[Path], watch: bool = False) -> str:
    """The whole page. Only its own script may run in it, and it may load nothing.

    Raises:
        StoreError: a folder is no run, or a file of it is damaged.
        RecipeError: a recipe that this version cannot read.
    """
    page = Page()
    rows = [gather(folder, page, ROOM / len(runs)) for folder in runs]
    return page.fill(rows, f'<meta http-equiv="refresh" content="{RELOAD_EVERY}">' if watch else "")


def embedded(data: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    risky = "[<>&\u2028\u2029\ud800-\udfff]"
    return re.sub(risky, lambda found: f"\\u{ord(found[0]):04x}", json_text(data))


class Page:
    """What a page holds so far: every text once, by number, and the bytes of all of it."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.size = 0

    def text(self, text: str | None) -> dict[str, int] | None:
        """What stands for a text in a record; the page's script puts the text there."""
        if text is None:
            return None
        known = plain(text)
        if known not in self.numbers:
            self.numbers[known] = len(self.numbers)
            self.size += len(embedded(known).encode())
        return {"t": self.numbers[known]}

    def draw(self, items: Sequence[T], show: Callable[[T], Row], room: float) -> Row:
        """As many items as ``room`` bytes hold, drawn evenly, in their order; ``of`` how many."""
        end, rows = self.size + room, {}
        for number in sorted(range(len(items)), key=lambda n: stable_seed("report", n)):
            if self.size >= end:
                break
            rows[number] = show(items[number])
            self.size += len(embedded(rows[number]))
        return {"of": len(items), "rows": [rows[number] for number in sorted(rows)]}

    def fill(self, runs: Sequence[Row], reload: str = "") -> str:
        """The template with these records and their texts in it."""
        template = (resources.files("spar_lite.app") / "report.html").read_text(encoding="utf-8")
        script = template.rpartition("<script>")[2].rpartition("</script>")[0]
        made = f"{time.strftime('%Y-%m-%d %H:%M')} by spar-lite {__version__}"
        parts = {
            "MADE_BY": MADE_BY,
            "DIGEST": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            "RELOAD": reload,
            "TEXTS": embedded(list(self.numbers)),
            "DATA": embedded({"made": made, "longest": LONGEST, "runs": runs}),
        }
        # All at once: what stands in a text is not read again.
        return re.sub(r"\{\{([A-Z_]+)\}\}", lambda found: parts[found[1]], template)


# --- A run ----------------------------------------------------------------------------------------


def gather(folder: Path, page: Page, room: float) -> Row:
    """All that a page says of one run, as plain data; ``room``: bytes for its records."""
    recipe = saved_recipe(folder)
    found, held = summaries(recipe, folder), heldout_results(recipe, folder)
    alarms = {**run_alarms(recipe, folder), **weak_parts(found)}
    tables = {"scores": score_table(found), "iterations": iteration_table(found)}
    tables["cost"] = cost_table(found)
    return {
        "name": plain(str(folder)),
        "about": f"{recipe.model.id}, judged by: {recipe.judge.mode}, {progress(recipe, folder)}",
        "changes": changes(recipe, folder),
        "alarms": [called(f"{step}: {said}") for step, some in alarms.items() for said in some],
        "checkpoints": [called(name) for name in held],
        "bars": [bar(name, results, found) for name, results in held.items()],
        "funnel": funnel(recipe, found),
        "settings": settings(recipe),
        "training": training(found),
        "answers": answers(recipe, held, page, room * SHARES["answers"]),
        **self_play(folder, found, page, room),
        **{name: plain_table(table) for name, table in tables.items() if table is not None},
    }


def progress(recipe: Recipe, folder: Path) -> str:
    """How far a run is."""
    try:
        left = Run(recipe, folder, Screen()).unfinished(spar)
    except StoreError as fault:  # a file was touched; what it left is shown all the same
        return str(fault)
    done = sum(1 for _ in read_lines(folder / f"{left[0]}.part.jsonl")) if left else 0
    so_far = f" ({done:,} records so far)" if done else ""
    return called(f"not finished: next is {left[0]}{so_far}") if left else "finished"


def plain_table(table: Table) -> Row:
    """A table of the terminal as plain cells."""

    def words(cells: Any) -> list[str]:
        return [called(Text.from_markup(str(cell)).plain) for cell in cells]

    rows = list(zip(*(words(column.cells) for column in table.columns), strict=True))
    names = words(column.header for column in table.columns)
    return {"title": words([table.title])[0], "columns": names, "rows": rows}


def changes(recipe: Recipe, folder: Path) -> list[Row]:
    """Between which checkpoints the answers got better or worse, the whole run first."""
    rows = []
    for d in reversed(differences(recipe, folder)):
        ends = {"from": called(d["from"]), "to": called(d["to"])}
        better = d["difference"]["value"] > 0 if d["distinguishable"] else None
        rows.append({**ends, "better": better, "said": difference_row({**d, **ends})})
    return rows


def bar(name: str, results: Sequence[HeldoutResult], found: Found) -> Row:
    """How many answers of a checkpoint count, only meet what is asked, or do neither."""
    states, good = Counter(map(state, results)), share(result.counts for result in results)
    kept = found.get(f"{name}/keep", {}).get("kept")
    left = kept is not None and name != f"iteration-{kept}"
    return {
        "label": called(name) + (" (not kept)" if left else ""),
        "parts": [(kind, states[kind]) for kind in ("good", "half", "bad")],
        "ends": (good.low, good.high),
        "note": f"{100 * good.value:.0f} % [{100 * good.low:.0f}, {100 * good.high:.0f}]",
    }


def funnel(recipe: Recipe, found: Found) -> Row:
    """From prompts to what is trained on, by iteration: what was planned, and what came of it."""
    names = "prompts/prompts responses/answers judgements/failed trees/trees trees/solved"
    places = [tuple(name.split("/")) for name in f"{names} pairs/pairs actor/examples".split()]
    count = recipe.prompts.count
    rows: list[tuple[str, ...]] = [("planned", cell(count), cell(count * recipe.sample.k))]
    rows[0] += ("",) * (len(places) - 2)
    for n in range(1, recipe.iterations + 1):
        place = f"iteration-{n}/"
        noted = {**found, f"{place}actor": actor_training(found, place)}
        values = [noted.get(f"{place}{step}", {}).get(key) for step, key in places]
        rows.append((f"iteration-{n}", *map(cell, values)))
    columns = ["", *(f"{'→ ' * bool(n)}{key}" for n, (_, key) in enumerate(places))]
    return {"title": "From prompts to pairs", "columns": columns, "rows": rows}


def settings(recipe: Recipe) -> Row:
    """What the recipe sets otherwise than the defaults, but for what may open a server."""
    about = {key: text for key, _, text in describe_keys()}
    sections = list({key.partition(".")[0] for key in about})
    default = recipe_slice(parse_recipe({"model": {"id": recipe.model.id}}), sections)
    rows = [
        (key, json_text(value), json_text(default.get(key)), about.get(key, ""))
        for key, value in recipe_slice(recipe, sections).items()
        if value != default.get(key) and not is_private(key)
    ]
    columns = ["key", "here", "default", "meaning"]
    return {"title": "Settings that differ from the defaults", "columns": columns, "rows": rows}


def training(found: Found) -> Row:
    """First and last figures of every training: a run records no curve between them."""
    columns = {
        "loss": ("loss_first", "loss_last"),
        "margin of rewards": ("rewards/margins_first", "rewards/margins_last"),
        "log p of chosen": ("logp_chosen_before_per_token", "logp_chosen_after_per_token"),
        "log p of rejected": ("logp_rejected_before_per_token", "logp_rejected_after_per_token"),
    }
    rows = []
    for name, noted in found.items():
        if noted.get("steps"):
            figures = {**noted, **noted["metrics"]}
            ends = [[figures.get(key) for key in keys] for keys in columns.values()]
            arrows = ["-" if None in e else " → ".join(f"{end:.3f}" for end in e) for e in ends]
            rows.append((called(name), str(noted["examples"]), str(noted["steps"]), *arrows))
    title = "Training: first step → last tenth of the steps (log p per token: before → after)"
    return {"title": title, "columns": ["", "examples", "steps", *columns], "rows": rows}


# --- Its records ----------------------------------------------------------------------------------


def state(result: HeldoutResult) -> str:
    """Whether an answer counts, meets its constraints without being one, or does neither."""
    return "good" if result.counts else "half" if all(result.checks) else "bad"


def answers(
    recipe: Recipe, held: Mapping[str, Sequence[HeldoutResult]], page: Page, room: float
) -> Row:
    """Held-out answers side by side: one record a prompt, those that changed most first."""
    prompts = {p.id: p for p in heldout(recipe)} if held else {}
    found = {name: {result.id: result for result in results} for name, results in held.items()}

    def answer(result: HeldoutResult | None) -> Row | None:
        if result is None:
            return None
        return {
            "text": page.text(result.answer),
            "state": state(result),
            "said": verdict(result),
            "checks": result.checks,
            "votes": votes([result.vote] if result.vote else [], page),
            "refined": page.text(result.refined),
            "mended": all(result.refined_checks),
        }

    def show(id: str) -> Row:
        some = [answer(results.get(id)) for results in found.values()]
        return {"id": id, **head(prompts[id], page), "answers": some}

    def change(id: str) -> float:
        return changed([results[id].answer for results in found.values() if id in results])

    return page.draw(sorted(prompts, key=change, reverse=True), show, room)


def changed(texts: Sequence[str]) -> float:
    """How much a text changes on its way: the share of words that are new or gone, step by step.

    Their order does not matter, which is quick enough for every answer there is.
    """
    words = [Counter(text.split()) for text in texts]
    steps = [(a, b, max(1, a.total() + b.total())) for a, b in pairwise(words)]
    return sum(1 - 2 * (a & b).total() / size for a, b, size in steps)


def head(prompt: Prompt, page: Page) -> Row:
    """A prompt, and what a program checks of its answers, in the order of its checks."""
    asks = [page.text(rule.label()) for rule in requirements(prompt)]
    kinds = [data["kind"] for data in prompt.constraints]
    return {"prompt": page.text(prompt.text), "asks": asks, "kinds": kinds}


def votes(some: Sequence[Any], page: Page) -> list[Row]:
    """Votes with what they rest on."""
    return [{"text": page.text(vote.text), "verdict": vote.verdict} for vote in some]


def self_play(folder: Path, found: Found, page: Page, room: float) -> Row:
    """Trees, pairs and doubtful judgements of all iterations, as far as they are finished."""
    places = dict.fromkeys(label.partition("/")[0] for label in found)

    def load(name: str, kind: type[T]) -> list[tuple[str, T]]:
        there = [p for p in places if p.startswith("iteration-") and f"{p}/{name}" in found]
        return [(p, record) for p in there for record in StageFile(folder / p, name, kind).load()]

    prompts = {(place, p.id): p for place, p in load("prompts", Prompt)}
    said = {(place, r.id): r for place, r in load("responses", Response)}

    def known(place: str, id: str, prompt_id: str) -> Row:
        return {"in": place, "id": id, **head(prompts[place, prompt_id], page)}

    def tree(placed: tuple[str, Tree]) -> Row:
        place, found = placed
        return {**known(place, found.id, found.prompt_id), **drawn(found, page)}

    def pair(placed: tuple[str, PreferencePair]) -> Row:
        place, pair = placed
        rules = requirements(prompts[place, pair.prompt_id])
        sides = [
            {"text": page.text(text), "said": page.text(constraints.critique(rules, text))}
            for text in (pair.rejected, pair.chosen)
        ]
        more: Row = {"interferes": pair.interferes, "sides": sides}
        return {**known(place, pair.id, pair.prompt_id), **more}

    def judged(placed: tuple[str, Judgement]) -> Row:
        place, found = placed
        response = said[place, found.id]
        more: Row = {
            "sorts": doubts(found, prompts[place, response.prompt_id]),
            "checks": found.checks,
        }
        more |= {"text": page.text(response.text), "votes": votes(found.votes, page)}
        return {**known(place, found.id, response.prompt_id), **more}

    judgements = load("judgements", Judgement)
    doubtful = [
        (place, j)
        for place, j in judgements
        if doubts(j, prompts[place, said[place, j.id].prompt_id])
    ]
    return {
        "trees": page.draw(load("trees", Tree), tree, room * SHARES["trees"]),
        "pairs": page.draw(load("pairs", PreferencePair), pair, room * SHARES["pairs"]),
        "judged": page.draw(doubtful, judged, room * SHARES["judged"]),
    }


def drawn(found: Tree, page: Page) -> Row:
    """A tree's nodes, each before its children, and how it ended."""
    order = sorted(found.nodes, key=lambda n: [int(k) for k in n.path.split(".") if k])
    ends = {"accepted": found.accepted, "stop": found.stop, "depth": found.depth}
    return {**ends, "nodes": [node(n, page) for n in order]}


def make_tree_page(about: str, prompt: Prompt, tree: Tree) -> str:
    """A page of one tree alone; ``about``: who grew it."""
    page = Page()
    row = {"in": "refine", "id": tree.id, **head(prompt, page), **drawn(tree, page)}
    return page.fill([{"name": plain(about), "trees": {"of": 1, "rows": [row]}}])


def node(found: Node, page: Page) -> Row:
    """One node of a tree."""
    replies = [page.text(reply) for reply in found.failed_replies]
    row: Row = {"path": found.path, "text": page.text(found.text), "failed": replies}
    if judged := found.judgement:
        row |= {"value": judged.value, "checks": judged.checks, "by": judged.critique_by}
        row |= {"critique": page.text(judged.critique), "votes": votes(judged.votes, page)}
    return {**row, "reply": page.text(found.reply)}


def doubts(judgement: Judgement, prompt: Prompt) -> list[str]:
    """Why a judgement is worth a look: unlike votes, unreadable ones, or a wrong word."""
    verdicts, said = {vote.verdict for vote in judgement.votes}, majority(judgement.votes)[1]
    denied = judgement.checks and said not in (None, all(judgement.checks))
    wrong = denied and (said or prompt.complete)  # a judge may see more than the program does
    found = {"split": {True, False} <= verdicts, "unreadable": None in verdicts, "wrong": wrong}
    return [name for name, so in found.items() if so]
