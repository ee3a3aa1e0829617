"""Which process of several this one is, as torchrun tells it."""

from __future__ import annotations

import os

from pipeline.errors import ConfigError
from pipeline.store.slices import Slice


def rank_slice(part: Slice) -> Slice:
    """Return this rank's share of a part of the work; the whole part where there are no ranks.

    Raises:
        ConfigError: torchrun's environment is not as it sets it.
    """
    if not under_torchrun():
        return part
    given = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    try:
        rank, world = map(int, given)
    except ValueError:
        rank, world = 0, 0
    if not 0 <= rank < world:
        raise ConfigError(f"RANK and WORLD_SIZE are {given}; expected those that torchrun sets")
    return Slice(part.index * world + rank, part.count * world)


def local_device() -> str:
    """Return the name of this rank's own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if under_torchrun() else "cuda"


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
