"""Offline knowledge distillation: run a teacher once, train many students from its cached logits.

The names here are what other programs import; each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.core.user import name_user

# Before torch is imported, by whatever module of this package.
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

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    if name == "losses":
        return importlib.import_module("pipeline.losses")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
