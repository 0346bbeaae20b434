"""The one door to the engines: the recipe says which of them answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spar_lite.engines.process import ServerProcess
from spar_lite.engines.remote import read_key
from spar_lite.engines.served import Chat, RoleServer
from spar_lite.errors import EngineError, ModelError
from spar_lite.recipe import Recipe
from spar_lite.records import Role

if TYPE_CHECKING:
    from spar_lite.model import Policy, RolloutEngine


def open_engine(
    recipe: Recipe,
    policy: Callable[[], Policy],
    adapters: Mapping[Role, Path | None],
    say: Callable[[str], None] = lambda _: None,
    folder: Path | None = None,
    make_room: Callable[[], None] = lambda: None,
) -> RolloutEngine | RoleServer:
    """The engine of a recipe (``engine.kind``), with these adapters in place.

    ``policy``: loads the model; it is not asked where a server answers, which is looked at when it
    is first asked. ``say``: told what the user should know. ``folder``: for what a server leaves: a
    run's, or one within it. ``make_room``: frees the memory that a server needs which is started.

    Raises:
        ModelError: the model cannot be loaded, or an adapter does not fit it.
        EngineError: the server's address or key is none.
    """
    if recipe.engine.kind == "openai":
        return _open_server(recipe, adapters, say, folder, make_room)
    from spar_lite.model import RolloutEngine

    return RolloutEngine(policy(), recipe.engine, recipe.seed, say, recipe.model.memory_fraction)


def _open_server(
    recipe: Recipe,
    adapters: Mapping[Role, Path | None],
    say: Callable[[str], None],
    folder: Path | None,
    make_room: Callable[[], None],
) -> RoleServer:
    settings = recipe.engine
    models: dict[Role, str] = {
        "base": settings.models.base,
        "actor": settings.models.actor,
        "refiner": settings.models.refiner,
    }
    if not all(models.values()):
        raise EngineError("engine.models wants the model's name at the server, found none.")
    key = read_key(settings, "engine")
    if folder is not None:  # an evaluation's lies in its run's
        runs = (place for place in (folder, *folder.parents) if (place / "recipe.yaml").is_file())
        folder = next(runs, folder)
    process = None
    if settings.start:
        log = (folder or Path()) / "server.log"
        process = ServerProcess(settings.start, settings.url, log, say, key)

    @functools.cache
    def load_chat() -> Chat | None:
        try:
            return _load_chat(recipe)
        except ModelError as fault:
            say(f"the server's chat template is used, since ours is not here: {fault}")
            return None

    engine = RoleServer(
        settings.url,
        models,
        key,
        settings.parallel,
        seed=recipe.seed,
        extra=settings.extra,
        say=say,
        folder=folder,
        adapter_path=settings.adapter_path,
        load_chat=load_chat,
        options=recipe.model.chat_template,
        process=process,
        make_room=make_room,
    )
    for role, adapter in adapters.items():
        engine.use(role, adapter)
    return engine


def _load_chat(recipe: Recipe) -> Chat:
    """The template and tokenizer of the model that the server has too, without the model."""
    from spar_lite.model.chat import ChatTemplate
    from spar_lite.model.loading import load_tokenizer
    from spar_lite.model.source import locate, reach_hub

    where = locate(recipe.model.id)
    if not Path(where).is_dir():
        reach_hub(where)
    tokenizer = load_tokenizer(where, recipe.model)
    return ChatTemplate(tokenizer, recipe.model.chat_template, recipe.model.id)
