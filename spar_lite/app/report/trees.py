"""A search tree as text: every answer with its value, what was accepted, what could not be read."""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree as Drawing

from spar_lite.records import Node, Prompt, Tree
from spar_lite.search import node_value


def draw_tree(tree: Tree, prompt: Prompt) -> Drawing:
    """Draw one tree; model text is escaped, so it can neither colour nor forge lines."""
    root = Drawing(
        f"[bold]{escape(tree.id)}[/] {escape(prompt.text)}\n[dim]stopped: {tree.stop}, "
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
    value = node_value(node)
    shown = "no vote" if value < 0 else f"{value:.2f}"
    style = "green" if node.path == tree.accepted else "red" if value <= 0.5 else ""
    mark = "✓ accepted" if node.path == tree.accepted else ""
    name = node.path or "answer"
    text = " ".join(node.text.split())
    head = f"{name} value {shown} {mark}".strip()
    return f"[{style or 'white'}]{head}[/] {escape(text)}"
