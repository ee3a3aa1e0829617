"""Ranks: the processes of one command that a launcher started share its work, or are refused.

Processes that cannot share would each do the whole work, and write the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError, brief
from pipeline.core.progress import note
from pipeline.store.lock import WHOLE, Slice
from stages.launchers import Launch, find_launch, under_torchrun

if TYPE_CHECKING:
    import torch

    from pipeline.core.distributed import Ranks


def require_alone() -> None:
    """Refuse to be one of several processes: this work cannot be shared.

    Raises:
        ConfigError: naming the launcher's variables.
    """
    launch = find_launch()
    is_single = launch is None or (under_torchrun() and launch.size <= 1)
    if launch is not None and not is_single:
        raise _refused(launch, "one process; run the command once, without a launcher")


def rank_slice(part: Slice) -> Slice:
    """Return this rank's share of a part of the work; the whole part for a single process.

    Raises:
        ConfigError: the launcher's variables are invalid, or its processes cannot meet and the part is the
            whole work.
    """
    launch = find_launch()
    if launch is None or (launch.meeting is None and not under_torchrun()):
        if launch is not None and part == WHOLE:
            raise _refused(
                launch,
                "torchrun, or set MASTER_ADDR and MASTER_PORT, or use one process; or give each process "
                "its part with --shards I/N, then run once without it",
            )
        return part
    rank, size = _rank_and_size(launch)
    if part != WHOLE and size > 1 and rank == 0:
        note(
            f"the {size} processes of {launch.launcher} divide part {part.index}/{part.count} among them; "
            "give --shards to a single process, or one part to all"
        )
    return Slice(part.index * size + rank, part.count * size)


@contextmanager
def training_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the launcher's processes in a process group for training, and leave it afterwards.

    A group that exists already, e.g. of Ray Train, is used as it is.

    Args:
        device: of this process.

    Raises:
        ConfigError: the launcher's variables are invalid, or its processes cannot meet.
    """
    from torch import cuda
    from torch import distributed as dist

    from pipeline.core.distributed import Ranks

    with ExitStack() as held:
        if not (dist.is_available() and dist.is_initialized()):
            launch = find_launch()
            if launch is not None and launch.meeting is None and not under_torchrun():
                raise _refused(launch, "torchrun, or set MASTER_ADDR and MASTER_PORT, or use one process")
            rank, size = (0, 1) if launch is None else _rank_and_size(launch)
            if launch is None or size == 1:
                yield Ranks()
                return
            _join(launch, rank, size, "nccl" if device.type == "cuda" else "gloo")
            held.callback(dist.destroy_process_group)
        if device.type == "cuda":
            cuda.set_device(device)
        rank, size = dist.get_rank(), dist.get_world_size()
        if rank > 0:
            # All ranks would print the same, so only the first does.
            silent = held.enter_context(Path(os.devnull).open("w"))
            held.enter_context(redirect_stderr(silent))
        yield Ranks(rank, size)


def local_device() -> str:
    """Return the name of this rank's GPU, e.g. cuda:1; srun may show each rank its own one alone."""
    from torch import cuda

    launch = find_launch()
    if launch is None:
        return "cuda"
    sees_its_own = cuda.device_count() == 1 and not under_torchrun()
    return "cuda:0" if sees_its_own else f"cuda:{launch.local_rank}"


def local_ranks() -> int:
    """Return the number of ranks on this machine."""
    launch = find_launch()
    return 1 if launch is None else launch.local_size


def _join(launch: Launch, rank: int, size: int, backend: str) -> None:
    """Make the process group; each process waits for the others."""
    from torch import distributed as dist

    if launch.meeting is not None:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = launch.meeting[0], str(launch.meeting[1])
    try:
        dist.init_process_group(backend, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = "" if launch.meeting is None else f" at {launch.meeting[0]}:{launch.meeting[1]}"
        raise ConfigError(
            f"the {size} processes of {launch.launcher} did not meet{where} ({brief(error)}); expected all "
            "of them to start; check MASTER_ADDR, MASTER_PORT and the network"
        ) from error


def _refused(launch: Launch, expected: str) -> ConfigError:
    return ConfigError(
        f"{launch.launcher} started several processes ({launch.given}), and each would do all of the work; "
        f"use {expected}; if this is the only process, unset {' and '.join(launch.names)}"
    )


def _rank_and_size(launch: Launch) -> tuple[int, int]:
    if not 0 <= launch.rank < launch.size or not all(name in os.environ for name in launch.names):
        found = tuple(os.environ.get(name, "") for name in launch.names)
        raise ConfigError(
            f"{launch.names[1]} and {launch.names[0]} are {found[::-1]}; expected the values that "
            f"{launch.launcher} sets"
        )
    return launch.rank, launch.size
