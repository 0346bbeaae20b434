"""The show command: a run's search trees, or its held-out answers, to read before a score."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.markup import escape
from rich.tree import Tree as Drawing

from spar_lite.app.console import harmless, make_console
from spar_lite.errors import StoreError, did_you_mean
from spar_lite.evaluation.compare import heldout_results
from spar_lite.evaluation.heldout import HeldoutResult
from spar_lite.evaluation.scoring import heldout
from spar_lite.recipe import Recipe
from spar_lite.records import Node, Prompt, Tree
from spar_lite.run import saved_recipe
from spar_lite.search import node_value
from spar_lite.store import StageFile


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("prompt_id", required=False)
@click.option("--iteration", default=1, show_default=True, help="Which iteration's trees.")
@click.option(
    "--answers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Instead: N held-out answers of every checkpoint, side by side.",
)
def show_command(folder: Path, prompt_id: str | None, iteration: int, answers: int | None) -> None:
    """Draw a run's search trees, or show its answers.

    All trees of an iteration, or that of PROMPT_ID; or with --answers N the held-out answers.
    """
    if answers is not None:
        for line in answer_lines(saved_recipe(folder), folder, answers):
            click.echo(line)
        return
    place = folder / f"iteration-{iteration}"
    if not (place / "trees.jsonl").exists():
        raise StoreError(f"{place} has no finished trees. See: spar-lite status {folder}")
    prompts = {p.id: p for p in StageFile(place, "prompts", Prompt).load()}
    trees = {t.id: t for t in StageFile(place, "trees", Tree).load()}
    if prompt_id is not None and prompt_id not in trees:
        hint = did_you_mean(prompt_id, trees)
        raise StoreError(f'{place} has no tree for "{prompt_id}" ({len(trees)} others).{hint}')
    console = make_console()
    for tree in trees.values():
        if prompt_id in (None, tree.id):
            console.print(draw_tree(tree, prompts[tree.prompt_id]), highlight=False)


def draw_tree(tree: Tree, prompt: Prompt, grows: bool = False) -> Drawing:
    """Draw one tree; model text is escaped, so it can neither colour nor forge lines.

    ``grows``: the search still goes on.
    """
    end = "growing" if grows else f"stopped: {tree.stop}"
    root = Drawing(
        f"[bold]{escape(tree.id)}[/] {escape(harmless(prompt.text))}\n[dim]{end}, "
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
    return f"[{style}]{head}{mark}[/] {escape(harmless(' '.join(node.text.split())))}"


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
        yield f"{prompt.id}: {prompt.text}"
        for name, results in found.items():
            result = results[prompt.id]
            shown = {"bootstrap": "warm-up"}.get(name, name)
            yield f"  {shown} ({verdict(result)}): {harmless(' '.join(result.answer.split()))}"
        yield ""


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
