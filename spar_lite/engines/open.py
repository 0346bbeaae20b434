"""The one door to the engines: the recipe says which of them answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spar_lite.engines.remote import RemoteEngine, open_endpoint
from spar_lite.recipe import Recipe
from spar_lite.records import Role

if TYPE_CHECKING:
    from spar_lite.model import Policy, RolloutEngine


def open_engine(
    recipe: Recipe,
    policy: Callable[[], Policy],
    adapters: Mapping[Role, Path | None],
    say: Callable[[str], None] = lambda _: None,
) -> RolloutEngine | RemoteEngine:
    """The engine of a recipe (``engine.kind``), with these adapters in place.

    ``policy``: loads the model; it is not asked where a server answers. ``say``: told what the user
    should know.

    Raises:
        ModelError: the model cannot be loaded, or an adapter does not fit it.
        EngineError: the server's address or key is none, or it does not take an adapter.
    """
    if recipe.engine.kind == "openai":
        served = recipe.engine.models
        models: dict[Role, str] = {
            "base": served.base,
            "actor": served.actor,
            "refiner": served.refiner,
        }
        remote = open_endpoint(recipe.engine, models)
        for role, folder in adapters.items():
            remote.use(role, folder)
        return remote
    from spar_lite.model import RolloutEngine

    return RolloutEngine(policy(), recipe.engine, recipe.seed, say, recipe.model.memory_fraction)
