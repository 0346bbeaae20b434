"""Talking to a checkpoint: refine grows one tree before your eyes, chat answers as either adapter.

For a class: switch the adapters, ask the judge, try to fool it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree as Drawing

from spar_lite.app.console import harmless, make_console, make_screen, print_plain
from spar_lite.app.report import check_place, make_tree_page, write_page
from spar_lite.app.show import draw_tree, print_judgement
from spar_lite.engines.base import Engine, Request, strip_thinking
from spar_lite.evaluation.target import Target, find_target
from spar_lite.judge import judge_answer
from spar_lite.recipe import Recipe
from spar_lite.records import Cost, Judgement, Message, Node, Prompt, Response, Role, Tree
from spar_lite.sample import sample_answer, sampling
from spar_lite.search import search_tree

HELP = """\
/adapter actor|refiner|none   who answers from now on
/both TEXT                    base, actor and refiner answer side by side
/judge [TEXT]                 the refiner's votes on the last answer, or on TEXT as one
/refine                       a tree of refinements of the last answer
/new                          forget the chat
/quit                         leave (Ctrl-D too; Ctrl-C stops an answer, twice leaves)"""

ROLES: tuple[Role, ...] = ("base", "actor", "refiner")
WHO: dict[str, Role] = {"actor": "actor", "refiner": "refiner", "none": "base", "base": "base"}

OPTIONS = (
    click.argument("target"),
    click.option("--checkpoint", help="Of a run: base, bootstrap or iteration-N [last]."),
    click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key."),
)


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command TARGET and its options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@on_target
@click.argument("instruction")
@click.option("--answer", help="The answer to mend [default: the actor gives one].")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the tree as a page.")
def refine_command(
    target: str,
    checkpoint: str | None,
    overrides: tuple[str, ...],
    instruction: str,
    answer: str | None,
    html: Path | None,
) -> None:
    """Answer an INSTRUCTION, judge the answer, and grow a tree of refinements.

    The tree is drawn while it grows. TARGET is a run's folder, an adapter's, a recipe or a model.
    """
    if not instruction.strip():
        raise click.UsageError("wanted an instruction, found an empty one.")
    if html:
        check_place(html, "--html FILE")
    console = make_console()
    found = find_target(target, checkpoint, overrides)
    engine = _open(found, console)
    prompt = Prompt("refine", instruction)
    if answer is None:
        sampled = asyncio.run(sample_answer(engine, prompt, "refine/0", found.recipe.sample))
        answer = sampled.text
    tree = grow(console, engine, found.recipe, prompt, answer)
    if html and tree:
        write_page(html, make_tree_page(found.name, prompt, tree))
        print_plain(console, f"{html}: open it in a browser")
    elif html:
        again = "for an answer that fails: --answer TEXT"
        print_plain(console, f"There is no tree, so {html} is not written; {again}")


@click.command()
@on_target
def chat_command(target: str, checkpoint: str | None, overrides: tuple[str, ...]) -> None:
    """Chat with a checkpoint's actor, its refiner or the base.

    /help lists what can be asked besides. TARGET is a run's folder, an adapter's, a recipe or a
    model.
    """
    console = make_console()
    found = find_target(target, checkpoint, overrides)
    chat = Chat(console, _open(found, console), found.recipe)
    print_plain(console, f"{found.name}: the actor answers. /help says what else there is.")
    chat.listen()


def _open(target: Target, console: Console) -> Engine:
    with contextlib.closing(make_screen(console)) as screen:
        return target.open(screen)


class Chat:
    """A conversation: its turns, and who answers."""

    def __init__(self, console: Console, engine: Engine, recipe: Recipe) -> None:
        self.console, self.engine, self.recipe = console, engine, recipe
        self.role: Role = "actor"
        self.turns: list[Message] = []
        self.asked = 0

    def listen(self) -> None:
        """Read lines until /quit, the input's end, or two Ctrl-C in a row."""
        stopped = False
        while True:
            try:
                line = self.console.input(f"[bold]{self.role}>[/] ").strip()
                stopped = False
                if line in ("/quit", "/exit"):
                    return
                self.take(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.print()
                if stopped:
                    return
                stopped = True
                print_plain(self.console, "Ctrl-C again, or /quit, leaves.", "dim")

    def take(self, line: str) -> None:
        """Do what a line asks for: a command, or an answer."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if not line:
            return
        if not line.startswith("/"):
            self.answer(line)
        elif command == "/adapter" and rest in WHO:
            self.role = WHO[rest]
        elif command == "/both" and rest:
            self.both(rest)
        elif command in ("/judge", "/refine"):
            self.look(command, rest)
        elif command == "/new":
            self.turns = []
        else:
            print_plain(self.console, HELP)

    def answer(self, text: str) -> None:
        """Let the present role answer; Ctrl-C keeps what is there of it, and is passed on."""
        self.turns.append(Message("user", text))
        request, shown, reply = self._request(), "", ""
        try:
            for reply in self._replies(request):
                new = harmless(reply)
                # What ends in half a character may still change.
                if new.startswith(shown) and not new.endswith("\ufffd"):
                    # Not by the console: a Ctrl-C while it writes makes it write twice.
                    self.console.file.write(new[len(shown) :])
                    self.console.file.flush()
                    shown = new
        except KeyboardInterrupt:
            print_plain(self.console, " (stopped)", "dim", end="")
            raise
        else:
            self.console.print()
        finally:
            self.turns.append(Message("assistant", strip_thinking(reply)))

    def both(self, text: str) -> None:
        """All three answer the same words, the chat so far left out of it."""
        table = Table(*ROLES, expand=True)
        answers = []
        for role in ROLES:
            request = self._request((Message("user", text),))
            answers.append(asyncio.run(self.engine.generate(role, [request]))[0].text)
        table.add_row(*(escape(harmless(answer)) for answer in answers))
        self.console.print(table, highlight=False)

    def look(self, command: str, text: str) -> None:
        """Judge the last answer (or ``text`` in its place), or grow its tree."""
        asked = [turn.content for turn in self.turns if turn.role == "user"]
        answers = [turn.content for turn in self.turns if turn.role == "assistant"]
        if not asked or not (text or answers):
            print_plain(self.console, "There is no answer yet: ask for one first.")
            return
        self.asked += 1
        prompt, answer = Prompt(f"chat-{self.asked}", asked[-1]), text or answers[-1]
        if command == "/refine":
            grow(self.console, self.engine, self.recipe, prompt, answer)
        else:
            judged(self.console, self.engine, self.recipe, prompt, answer)

    def _request(self, turns: Sequence[Message] | None = None) -> Request:
        self.asked += 1
        settings, id = self.recipe.sample, f"chat-{self.asked}"
        chat = tuple(self.turns if turns is None else turns)
        return Request(id, chat, settings.max_new_tokens, sampling(settings))

    def _replies(self, request: Request) -> Iterable[str]:
        """The reply so far, as it grows; of an engine that does not stream, the whole."""
        stream = getattr(self.engine, "stream", None)
        if stream is not None:
            found: Iterable[str] = stream(self.role, request)
            return found
        return [asyncio.run(self.engine.generate(self.role, [request]))[0].text]


def judged(
    console: Console, engine: Engine, recipe: Recipe, prompt: Prompt, answer: str
) -> Judgement:
    """Judge an answer and show the votes, the verdict of record and whose it is."""
    judge = judge_answer(engine, prompt, answer, f"{prompt.id}/0", recipe.judge, rounds=3)
    found = asyncio.run(judge)
    by = "votes of the model itself" if recipe.judge.mode == "llm" else recipe.judge.mode
    print_judgement(console, found, f"verdict ({by})")
    return found


def grow(
    console: Console, engine: Engine, recipe: Recipe, prompt: Prompt, answer: str
) -> Tree | None:
    """Judge an answer and, if it failed, draw the tree of its refinements while it grows."""
    print_plain(console, f"answer: {harmless(answer)}")
    root = judged(console, engine, recipe, prompt, answer)
    if root.verdict is not False:
        print_plain(console, "Nothing to mend: only an answer that was judged No is refined.")
        return None
    response = Response(f"{prompt.id}/0", prompt.id, answer, True, Cost())
    first = Node("", answer, None, (), root)

    def drawing(nodes: Sequence[Node]) -> Drawing:
        so_far = Tree(prompt.id, prompt.id, response.id, tuple(nodes), None, "", "depth", Cost())
        return draw_tree(so_far, prompt, grows=True)

    with Live(drawing([first]), console=console, transient=True) as live:
        search = search_tree(
            engine,
            prompt,
            response,
            root,
            recipe.search,
            recipe.judge,
            lambda nodes: live.update(drawing(nodes), refresh=True),
        )
        tree = asyncio.run(search)
    console.print(draw_tree(tree, prompt), highlight=False)
    return tree
