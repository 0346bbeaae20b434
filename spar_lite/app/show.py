"""The show command: whatever of a run has an id, its trees, or its held-out answers, to read.

Each text is shown as text: it can neither colour nor move the screen.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree as Drawing

from spar_lite.app.console import make_console, plain, print_plain
from spar_lite.data.prompts import requirements
from spar_lite.errors import StoreError, did_you_mean
from spar_lite.evaluation.compare import heldout_results
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.scoring import heldout
from spar_lite.recipe import Recipe
from spar_lite.records import Judgement, Node, PreferencePair, Prompt, Response, Tree, to_json
from spar_lite.run import saved_recipe
from spar_lite.search import node_value
from spar_lite.store import Marker, StageFile, json_text


class Found(NamedTuple):
    place: str
    prompt: Prompt
    record: Any


"""A record of a run, the prompt that it is of, and the folder that it is in."""
KINDS: dict[str, type[Any]] = {
    "prompts": Prompt,
    "answers": Response,  # of the warm-up
    "responses": Response,
    "judgements": Judgement,
    "other_answers": Response,  # of pairs.source and dpo.rejected
    "other_judgements": Judgement,
    "trees": Tree,
    "pairs": PreferencePair,
}
"""Files of an iteration, in the order in which they are shown."""
SAYS = {True: "Yes", False: "No", None: "cannot be read"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("id", required=False)
@click.option("--iteration", default=1, show_default=True, help="Without ID: whose trees.")
@click.option("--answers", type=click.IntRange(1), help="N held-out answers of every checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="The records of ID as JSON, nothing else.")
def show_command(
    folder: Path, id: str | None, iteration: int, answers: int | None, as_json: bool
) -> None:
    """Show a run's trees, its answers, or what has an ID.

    ID is that of a prompt (its answers, judgements, tree and pair), of a response or its judgement
    (with its votes), or of a held-out prompt (its answers over the checkpoints).
    """
    recipe, console = saved_recipe(folder), make_console()
    if id is not None:
        found = find(recipe, folder, id)
        if as_json:
            rows = [{"in": f.place, type(f.record).__name__: to_json(f.record)} for f in found]
            click.echo(json_text(rows, indent=1))
        else:
            show(console, found)
        return
    if as_json:
        raise click.UsageError("--json goes with an ID.")
    if answers is not None:
        for line in answer_lines(recipe, folder, answers):
            click.echo(line)
        return
    place = folder / f"iteration-{iteration}"
    if not (place / "trees.jsonl").exists():
        raise StoreError(f"{place} has no finished trees. See: spar-lite status {folder}")
    prompts = {p.id: p for p in StageFile(place, "prompts", Prompt).load()}
    trees = StageFile(place, "trees", Tree).load()
    for tree in trees:
        console.print(draw_tree(tree, prompts[tree.prompt_id]), highlight=False)
    if not trees:
        why = "no search" if recipe.search.strategy == "none" else "no answer that failed"
        example = next(iter(prompts), "ID")
        print_plain(
            console, f"{place} has no trees ({why}). See: spar-lite show {folder} {example}"
        )


def find(recipe: Recipe, folder: Path, id: str) -> list[Found]:
    """All finished records of a run that have this id, or are of the prompt or response with it.

    Raises:
        StoreError: there is none.
    """
    known: dict[str, None] = {}
    found: list[Found] = []
    for place in ("bootstrap", *(f"iteration-{n}" for n in range(1, recipe.iterations + 1))):
        prompts: dict[str, Prompt] = {}
        for name, kind in KINDS.items():
            if Marker(folder / place, name).read() is None:
                continue
            for record in StageFile(folder / place, name, kind).load():
                if isinstance(record, Prompt):
                    prompts[record.id] = record
                # A judgement has the id of its answer, PROMPT/NUMBER.
                above = record.id if isinstance(record, Prompt) else record.id.rpartition("/")[0]
                owner = getattr(record, "prompt_id", above)
                if id in (record.id, owner, getattr(record, "response_id", None)):
                    # Released pairs have no prompt of the run.
                    found.append(Found(place, prompts.get(owner, Prompt(owner, "")), record))
                known[record.id] = None
    held = heldout_results(recipe, folder)
    for prompt in heldout(recipe) if held else ():
        known[prompt.id] = None
        if prompt.id == id:
            found += [Found(p, prompt, r) for p, some in held.items() for r in some if r.id == id]
    if not found:
        hint = did_you_mean(id, known)
        raise StoreError(
            f'{folder} has nothing with the id "{plain(id)}" ({len(known)} others).{hint}'
        )
    return found


def show(console: Console, found: Sequence[Found]) -> None:
    """Print records, each in its own way, those of a prompt below its words."""
    last: Any = None
    for place, prompt, record in found:
        if prompt is not last:
            print_plain(console, f"{prompt.id}: {plain(prompt.text)}", "bold")
            for rule in requirements(prompt):
                print_plain(console, f"  a program checks: {plain(rule.label())}", "dim")
            before, last = None, prompt
        match record:
            case Response():
                end = "" if record.finished else " (cut off)"
                print_plain(console, f"{place}, answer {record.id}{end}: {plain(record.text)}")
            case Judgement():
                print_judgement(console, record, f"{place}, judgement {record.id}")
            case Tree():
                console.print(draw_tree(record, prompt), highlight=False)
            case PreferencePair():
                beside = f" (differs also: {', '.join(record.interferes)})" * bool(
                    record.interferes
                )
                print_plain(console, f"{place}, pair {record.id}{beside}, rejected → chosen:")
                console.print(difference(record.rejected, record.chosen), soft_wrap=True)
            case HeldoutResult():
                print_plain(console, f"{called(place)} ({verdict(record)}):", "bold")
                console.print(difference(before, record.answer), soft_wrap=True)
                before = record.answer
                if record.vote:
                    words = plain(" ".join(record.vote.text.split()))
                    print_plain(console, f"  vote, {SAYS[record.vote.verdict]}: {words}", "dim")
                if record.refined is not None:
                    good = "mended" if all(record.refined_checks) else "not mended"
                    print_plain(console, f"  refined, {good}: {plain(record.refined)}", "dim")


def print_judgement(console: Console, found: Judgement, title: str) -> None:
    """Votes, what the program said, and the verdict of record."""
    for number, vote in enumerate(found.votes, 1):
        critique = plain(" ".join(vote.text.split()))
        print_plain(console, f"vote {number}, {SAYS[vote.verdict]}: {critique}")
    if found.critique_by == "program":
        print_plain(console, f"the program: {plain(' '.join((found.critique or '').split()))}")
    words = {True: "it does what was asked", False: "it does not", None: "no verdict"}
    print_plain(console, f"{title}: {words[found.verdict]}", "bold")


def difference(before: str | None, now: str) -> Text:
    """A text with [-what is gone-] and {+what is new+}, word by word, against the one before."""
    if before is None or before == now:
        return Text(plain(now))
    old, new, said = plain(before).split(), plain(now).split(), Text()
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what in ("delete", "replace"):
            said.append(f"[-{' '.join(old[a:b])}-]", "red").append(" ")
        if what in ("insert", "replace"):
            said.append(f"{{+{' '.join(new[c:d])}+}}", "green").append(" ")
        if what == "equal":
            said.append(f"{' '.join(new[c:d])} ")
    return said


def draw_tree(tree: Tree, prompt: Prompt, grows: bool = False) -> Drawing:
    """Draw one tree; model text is escaped, so it can neither colour nor forge lines.

    ``grows``: the search still goes on.
    """
    end = "growing" if grows else f"stopped: {tree.stop}"
    root = Drawing(
        f"[bold]{escape(tree.id)}[/] {escape(plain(prompt.text))}\n[dim]{end}, "
        f"{len(tree.nodes) - 1} refinements, {tree.cost.completion_tokens:,} tokens out[/]"
    )
    drawn = {"": root.add(_label(tree.nodes[0], tree))}
    for node in tree.nodes[1:]:
        parent = drawn[node.path.rpartition(".")[0]]
        drawn[node.path] = parent.add(_label(node, tree))
    return root


def _label(node: Node, tree: Tree) -> str:
    if node.text is None:
        return f"[yellow]∅ {node.path}: no readable refinement[/]"
    value, accepted = node_value(node), node.path == tree.accepted
    style = "green" if accepted else "red" if value <= 0.5 else "white"
    head = f"{node.path or 'answer'} value {'no vote' if value < 0 else f'{value:.2f}'}"
    mark = " ✓ accepted" if accepted else ""
    return f"[{style}]{head}{mark}[/] {escape(plain(' '.join(node.text.split())))}"


def answer_lines(recipe: Recipe, folder: Path, count: int) -> Iterator[str]:
    """Each prompt, then what every scored checkpoint answers and whether it counts.

    Raises:
        StoreError: the run has no held-out score yet.
    """
    scored = heldout_results(recipe, folder)
    if not scored:
        raise StoreError(f"{folder} has no held-out answers yet. See: spar-lite status {folder}")
    found = {name: {r.id: r for r in results} for name, results in scored.items()}
    for prompt in first_of_each_kind(heldout(recipe), count):
        yield f"{prompt.id}: {plain(prompt.text)}"
        for name, results in found.items():
            result = results[prompt.id]
            answer = plain(" ".join(result.answer.split()))
            yield f"  {called(name)} ({verdict(result)}): {answer}"
        yield ""


def called(text: str) -> str:
    """A checkpoint's name, or words that hold it, for people."""
    return text.replace("bootstrap", "warm-up")


def first_of_each_kind(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """``count`` prompts: the first of each kind of (first) constraint, then the second, ...

    A rule, so that nobody chooses what is shown.
    """
    kinds: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.constraints[0]["kind"], []).append(prompt)
    rounds = itertools.zip_longest(*kinds.values())
    return [p for turn in rounds for p in turn if p is not None][:count]


def verdict(result: HeldoutResult) -> str:
    """Whether an answer counts, in words."""
    faults = [*result.faults, *([] if result.finished else ["cut off"])]
    if result.counts:
        return "counts"
    met = "met, but " if all(result.checks) else "not met" + (", " if faults else "")
    return met + ", ".join(dict.fromkeys(faults))
