"""Ranks of the processes that torchrun started; other launchers are detected and refused.

Under another launcher, every process would do the whole work and write the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError
from pipeline.store.lock import WHOLE, Slice

if TYPE_CHECKING:
    import torch

    from pipeline.core.distributed import Ranks


# Launcher -> its environment variables for the number of processes and the rank.
_LAUNCHERS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
    "mpirun_rsh": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    "jsrun": ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    "a launcher such as Ray Train or Kubeflow": ("WORLD_SIZE", "RANK"),
}


def require_one_process(instead: str) -> None:
    """Refuse to be one of several processes, unless torchrun started them.

    Args:
        instead: the correct way to share the work, for the message.

    Raises:
        ConfigError: naming the launcher's variables.
    """
    if not under_torchrun():
        _refuse_several(_launchers(), f"torchrun, or one process; {instead}")


def require_alone() -> None:
    """Refuse to be one of several processes, even with torchrun: this work cannot be shared.

    Raises:
        ConfigError: naming the launcher's variables.
    """
    several = {"torchrun": ("WORLD_SIZE", "RANK")} if under_torchrun() else _launchers()
    _refuse_several(several, "one process; run the command once, without a launcher")


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables without those of launchers, for a process that is none of theirs."""
    names = {name for pair in _LAUNCHERS.values() for name in pair}
    return {name: value for name, value in environment.items() if name not in names}


def _refuse_several(launchers: dict[str, tuple[str, str]], expected: str) -> None:
    for launcher, names in launchers.items():
        size, rank = map(_count, names)
        # Other programs set RANK too, so RANK alone proves nothing.
        if size > 1 or (rank > 0 and names[1] != "RANK"):
            given = " and ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
            raise ConfigError(
                f"{launcher} started several processes ({given}), and each would do all of the work; use "
                f"{expected}; if this is the only process, unset {' and '.join(names)}"
            )


def _launchers() -> dict[str, tuple[str, str]]:
    """Return the variables of launchers; for Slurm's srun, they depend on the job step.

    A batch script runs once. It has its job's SLURM_NTASKS and SLURM_PROCID=0, but no step.
    """
    if "SLURM_STEP_NUM_TASKS" in os.environ or "SLURM_STEP_ID" not in os.environ:
        return _LAUNCHERS
    return {**_LAUNCHERS, "srun": ("SLURM_NTASKS", "SLURM_PROCID")}


def _count(name: str) -> int:
    """Return the number in an environment variable, or 0."""
    given = os.environ.get(name, "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 10 else 0


def rank_slice(part: Slice) -> Slice:
    """Return this rank's share of a part of the work; the whole part without torchrun.

    Raises:
        ConfigError: torchrun's variables are invalid, or another launcher started several processes and
            the part is the whole work.
    """
    if part == WHOLE:
        require_one_process("give each process its part with --shards I/N, then run once without it")
    rank, world = _rank_and_world()
    return Slice(part.index * world + rank, part.count * world)


@contextmanager
def training_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the process group of torchrun for training, and leave it afterwards.

    Args:
        device: of this process.

    Raises:
        ConfigError: torchrun's variables are invalid, or another launcher started several processes.
    """
    from torch import cuda
    from torch import distributed as dist

    from pipeline.core.distributed import Ranks

    require_one_process("start the command with torchrun")
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
                # All ranks would print the same, so only the first does.
                silent = held.enter_context(Path(os.devnull).open("w"))
                held.enter_context(redirect_stderr(silent))
            yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()


def local_device() -> str:
    """Return the name of this rank's GPU, e.g. cuda:1."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if under_torchrun() else "cuda"


def local_ranks() -> int:
    """Return the number of ranks on this machine."""
    return max(1, _count("LOCAL_WORLD_SIZE")) if under_torchrun() else 1


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
        raise ConfigError(f"RANK and WORLD_SIZE are {given}; expected the values that torchrun sets")
    return rank, world
