"""Which process of several this one is, as torchrun tells it."""

from __future__ import annotations

import os

from pipeline.store.slices import Slice


def rank_slice(part: Slice) -> Slice:
    """Return this rank's share of a part of the work; the whole part where there are no ranks."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return Slice(part.index * world + rank, part.count * world)


def local_device() -> str:
    """Return the name of this rank's own GPU."""
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
