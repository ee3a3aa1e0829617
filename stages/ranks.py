"""Which process of several this one is, as torchrun tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.store.slices import Slice

if TYPE_CHECKING:
    import torch

    from pipeline.ranks import Ranks


def rank_slice(part: Slice) -> Slice:
    """Return this rank's share of a part of the work; the whole part where there are no ranks.

    Raises:
        ConfigError: torchrun's environment is not as it sets it.
    """
    rank, world = _rank_and_world()
    return Slice(part.index * world + rank, part.count * world)


@contextmanager
def training_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started, which then train together; leave them afterwards.

    Args:
        device: of this process.

    Raises:
        ConfigError: torchrun's environment is not as it sets it.
    """
    from torch import cuda
    from torch import distributed as dist

    from pipeline.ranks import Ranks

    rank, world = _rank_and_world()
    if world == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with ExitStack() as held:
            if rank > 0:
                # All ranks go through the same; the first one tells.
                silent = held.enter_context(Path(os.devnull).open("w"))
                held.enter_context(redirect_stderr(silent))
            yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()


def local_device() -> str:
    """Return the name of this rank's own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if under_torchrun() else "cuda"


def local_ranks() -> int:
    """Return how many ranks share this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if under_torchrun() else 1


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _rank_and_world() -> tuple[int, int]:
    if not under_torchrun():
        return 0, 1
    given = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    try:
        rank, world = map(int, given)
    except ValueError:
        rank, world = 0, 0
    if not 0 <= rank < world:
        raise ConfigError(f"RANK and WORLD_SIZE are {given}; expected those that torchrun sets")
    return rank, world
