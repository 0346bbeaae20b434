"""What every test shares: no network, one thread, a tiny model on demand, GPU tests only on a GPU.

torch is imported inside the fixtures, so that logic tests start without it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

if TYPE_CHECKING:
    from spar_lite.model import Policy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU; torch is asked only if there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, made once."""
    import torch

    from tests.tiny import make_tiny_model

    torch.set_num_threads(1)
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_policy(tiny_folder: Path) -> Callable[..., Policy]:
    """A factory: ``tiny_policy(quantization="nf4", seed=1)`` is a fresh policy on the CPU."""

    def make(seed: int = 0, **settings: Any) -> Policy:
        from spar_lite.model import Policy
        from spar_lite.recipe import Lora, Model

        chosen = {
            "quantization": "none",
            "device": "cpu",
            "threads": 1,
            "lora": Lora(r=4, alpha=8),
            **settings,
        }
        return Policy.load(Model(id=str(tiny_folder), **chosen), seed)

    return make


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Fresh processes that need not import torch and TRL again: two thirds of a short run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spar_lite.loop", "spar_lite.model", "spar_lite.train"])
    return context
