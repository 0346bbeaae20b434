"""The house plan, enforced: a file imports from lower floors only, nothing light loads torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "spar_lite"

FLOORS = {
    "__init__": 0,  # the version
    "records": 0,
    "errors": 0,
    "recipe": 1,
    "templates": 1,
    "constraints": 1,
    "store": 1,
    "footprint": 2,
    "tracking": 2,
    "distributed": 2,
    "data": 2,
    "engines": 2,
    "sample": 3,
    "judge": 3,
    "search": 3,
    "pairs": 3,
    "lessons": 3,
    "model": 3,
    "train": 3,
    "engines.open": 3,
    "run": 4,
    "steps": 4,
    "data.evolve": 4,
    "warmup": 4,
    "ablations": 5,
    "evaluation": 5,
    "loop": 6,
    "evaluation.compare": 7,
    "experiments": 8,
    "app.shapes": 8,
    "app": 9,
    "app.kernels": 9,
    "app.measure": 10,
    "app.simulate": 10,
    "app.bench": 11,
    "app.doctor": 11,
    "__main__": 12,
}
# One-way arrows between rooms of one floor.
ARROWS = {
    "judge": {"sample"},
    "search": {"judge", "sample"},
    "train": {"model"},
    "engines.open": {"model"},
    "steps": {"run"},
    "data.evolve": {"run", "steps"},
    "warmup": {"run", "steps"},
}
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "matplotlib"}
HEAVY_ROOMS = {
    "app.kernels",
    "app.measure",
    "app.shapes",
    "app.simulate",
    "distributed",
    "model",
    "train",
}
# These may load what is heavy once they are asked to do something, inside a function.
LATE = {
    "app",
    "app.bench",
    "app.doctor",
    "data",
    "engines.open",
    "evaluation",
    "experiments",
    "loop",
    "run",
    "steps",
    "tracking",
    "warmup",
}

FILES = sorted(HOUSE.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported module; ``late`` if it happens inside a function, ``typing`` if never."""

    module: str
    line: int
    late: bool
    typing: bool


def room_of(module: str) -> str:
    """The room of a dotted name: "spar_lite.model.policy" is in "model"."""
    parts = module.split(".")[1:]
    two = ".".join(parts[:2])
    return two if two in FLOORS else parts[0] if parts else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts)


def imports(path: Path) -> Iterator[Import]:
    """Every import in a file, "from spar_lite import judge" as spar_lite.judge."""
    package = module_of(path).split(".")[:-1]

    def walk(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, late, typing)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                is_room = base == "spar_lite" and alias.name in FLOORS
                module = f"{base}.{alias.name}" if is_room else base
                yield Import(module, node.lineno, late, typing)
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, inside, True)
            for child in node.orelse:
                yield from walk(child, inside, typing)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, typing)

    return walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def name(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_the_reader_of_imports_sees_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{__name__}.HOUSE", tmp_path / "spar_lite")
    path = tmp_path / "spar_lite" / "model" / "policy.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch.nn\n"
        "from spar_lite import judge, __version__\n"
        "from . import slots\n"
        "from ..records import Role\n"
        "if TYPE_CHECKING:\n    import peft\n"
        "def f():\n    if f:\n        from spar_lite.model.slots import g\n"
    )
    assert list(imports(path)) == [
        Import("torch.nn", 1, False, False),
        Import("spar_lite.judge", 2, False, False),
        Import("spar_lite", 2, False, False),
        Import("spar_lite.model", 3, False, False),
        Import("spar_lite.records", 4, False, False),
        Import("peft", 6, False, True),
        Import("spar_lite.model.slots", 9, True, False),
    ]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_has_a_floor(path: Path):
    assert room_of(module_of(path)) in FLOORS, "give the new room a floor, here and in the plan"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_from_lower_floors_only(path: Path):
    room = room_of(module_of(path))
    for found in imports(path):
        if found.module.partition(".")[0] != "spar_lite":
            continue
        other = room_of(found.module)
        lower = FLOORS[other] < FLOORS[room]
        fine = lower or other == room or other in ARROWS.get(room, ())
        assert fine, f"{name(path)} line {found.line}: {room} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_model_and_train_load_what_is_heavy(path: Path):
    room = room_of(module_of(path))
    if room in HEAVY_ROOMS:
        return
    for found in imports(path):
        top = found.module.partition(".")[0]
        loads = room_of(found.module) if top == "spar_lite" else top
        if loads in HEAVY | HEAVY_ROOMS and not found.typing:
            where = f"{name(path)} line {found.line}: {found.module}"
            assert found.late, f"{where} is imported at the top"
            assert room in LATE, f"{where} is not this room's affair"


def test_the_arrows_have_no_circle():
    for start in ARROWS:
        reached, fresh = set(), {start}
        while fresh:
            reached |= (fresh := {b for a in fresh for b in ARROWS.get(a, ())} - reached)
        assert start not in reached


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HOUSE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_importing_the_cli_does_not_load_torch():
    done = python("-c", "import sys, spar_lite.app.cli; print(*sys.modules)")
    assert "spar_lite.app.cli" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("command", [[], ["bench"], ["doctor"], ["plan"]], ids=" ".join)
def test_help_does_not_load_torch(command: list[str]):
    done = python("-X", "importtime", "-m", "spar_lite", *command, "--help")
    assert "Usage" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "spar_lite.app.cli" in loaded and not HEAVY & loaded


def test_the_method_does_not_load_torch():
    rooms = [room for room in FLOORS if FLOORS[room] <= 3 and room not in HEAVY_ROOMS]
    here = [room for room in rooms if (HOUSE / f"{room}.py").exists() and room != "__init__"]
    code = f"import sys, {', '.join(f'spar_lite.{room}' for room in here)}; print(*sys.modules)"
    assert not HEAVY & set(python("-c", code).stdout.split())
