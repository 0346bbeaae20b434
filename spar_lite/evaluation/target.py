"""What an evaluation is about: a run's checkpoint, an adapter's folder, or a base model.

Resolves the word the user gave into recipe, adapters and a folder for results, and opens the engine
that answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spar_lite.engines.open import open_engine
from spar_lite.engines.served import RoleServer
from spar_lite.errors import ModelError, StoreError, did_you_mean
from spar_lite.recipe import Recipe, load_recipe, parse_recipe
from spar_lite.records import Role, stable_seed
from spar_lite.run import Screen, checkpoints, last_checkpoint, saved_recipe

if TYPE_CHECKING:
    from spar_lite.model import Policy, RolloutEngine


@dataclass(frozen=True)
class Target:
    """Who answers. ``home``: where results go; ``adapters``: what is loaded, none for the base."""

    name: str
    recipe: Recipe
    home: Path
    adapters: dict[Role, Path] = field(default_factory=dict)

    def open(self, screen: Screen) -> RolloutEngine | RoleServer:
        """The engine that answers, with the adapters in place; see ``open_engine``."""
        recipe = self.recipe

        def load() -> Policy:
            from spar_lite.model import Policy

            screen.say(f"loading {recipe.model.id}")
            policy = Policy.load(recipe.model, stable_seed(recipe.seed, "lora"))
            for role, folder in self.adapters.items():
                policy.restore(role, folder)
            return policy

        engine = open_engine(recipe, load, self.adapters, screen.say, self.home)
        engine.on_tokens = screen.tokens
        return engine


def find_target(what: str, checkpoint: str | None = None, overrides: Sequence[str] = ()) -> Target:
    """Resolve a run folder, an adapter's folder, a recipe file or a model id.

    ``checkpoint`` (runs only): "base", "bootstrap", "iteration-N"; the last one made if None.

    Raises:
        StoreError: the run has no such checkpoint.
        ModelError: the folder is none of these.
    """
    path = Path(what).expanduser()
    if (path / "recipe.yaml").is_file():
        known = checkpoints(path)
        recipe = saved_recipe(path, overrides)
        name = checkpoint or last_checkpoint(recipe, path, list(known))
        if name not in known:
            hint = did_you_mean(name, known)
            raise StoreError(f"{path} has no checkpoint {name}; it has {', '.join(known)}.{hint}")
        return Target(f"{path} {name}", recipe, path / "eval" / name, known[name])
    if checkpoint is not None:
        raise StoreError(f"--checkpoint goes with a run folder; {what} is none.")
    if (path / "adapter_config.json").is_file():
        return _adapter_target(path, overrides)
    if path.suffix in (".yaml", ".yml"):
        return Target(f"base of {what}", load_recipe(path, overrides), Path("eval") / path.stem)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"{what} is no run (recipe.yaml), no adapter (adapter_config.json) and no model "
            "(config.json)."
        )
    recipe = parse_recipe({"model": {"id": what}}, what, overrides)
    return Target(what, recipe, Path("eval") / path.name.replace(":", "-"))


def _adapter_target(path: Path, overrides: Sequence[str]) -> Target:
    """An adapter on its own; the recipe is its run's if it lies in one, else made from PEFT's."""
    role: Role = "refiner" if path.name == "refiner" else "actor"
    run = path.resolve().parent.parent
    if (run / "recipe.yaml").is_file():
        recipe = saved_recipe(run, overrides)
    else:
        from spar_lite.model.adapters import read_adapter

        found = read_adapter(path)
        model = {"id": found.pop("base"), "lora": found}
        recipe = parse_recipe({"model": model}, str(path), overrides)
    return Target(str(path), recipe, path / "eval", {role: path})
