"""Offline knowledge distillation: run a teacher once, train many students from its cached logits.

These are the public names. Each is loaded on first use, so `import pipeline` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.core.user import name_user

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from pipeline import losses
    from pipeline.loading.feed import Feed
    from pipeline.loading.loader import Loader
    from pipeline.loading.replay import ReplayDataset
    from pipeline.loading.targets import Targets
    from pipeline.modalities.images.draw import view_parameters
    from pipeline.modalities.images.rendering.render import render
    from pipeline.modalities.images.spec import ViewSpec
    from pipeline.modalities.prepared import PreparedData
    from pipeline.store.reader import LogitStore

    __version__: str

# Must run before any module of this package imports torch.
name_user()

_HOMES = {
    "LogitStore": "pipeline.store.reader",
    "ViewSpec": "pipeline.modalities.images.spec",
    "view_parameters": "pipeline.modalities.images.draw",
    "render": "pipeline.modalities.images.rendering.render",
    "PreparedData": "pipeline.modalities.prepared",
    "Feed": "pipeline.loading.feed",
    "Targets": "pipeline.loading.targets",
    "Loader": "pipeline.loading.loader",
    "ReplayDataset": "pipeline.loading.replay",
    "losses": "pipeline",
}

__all__ = [
    "Feed",
    "Loader",
    "LogitStore",
    "PreparedData",
    "ReplayDataset",
    "Targets",
    "ViewSpec",
    "losses",
    "render",
    "view_parameters",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("pipeline.core.package").program_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    if name == "losses":
        return importlib.import_module("pipeline.losses")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
