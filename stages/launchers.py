"""Programs that start several processes of one command, and their environment variables.

    launcher      started by                                     the processes meet at
    torchrun      torchrun                                       MASTER_ADDR and MASTER_PORT, set by it
    srun          Slurm, a job step of several tasks             those, else the first node of the step
    mpirun, …     Open MPI, MPICH, MVAPICH, jsrun                those, which the user sets
    PyTorch's     Kubeflow, Ray Train, own scripts               those, set by it

Without a place to meet, the processes cannot know that the others exist, and are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_ADDRESS, _PORT, _STEP = "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"
# Ports of Slurm's steps: beyond those of services, below those that Linux gives to clients.
_FIRST_PORT, _PORTS = 20_000, 12_000


@dataclass(frozen=True, slots=True)
class Variables:
    """Names of a launcher's environment variables.

    Args:
        size, rank: number of processes, and the number of this one.
        local_size, local_rank: the same on this machine.
    """

    size: str
    rank: str
    local_size: str
    local_rank: str


_TORCH = Variables("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
_SLURM = "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"
LAUNCHERS: Mapping[str, Variables] = {
    "srun": Variables(*_SLURM),
    "mpirun": Variables(*(f"OMPI_COMM_WORLD_{n}" for n in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"))),
    "mpiexec": Variables("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    "mpirun_rsh": Variables(*(f"MV2_COMM_WORLD_{n}" for n in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"))),
    "jsrun": Variables(*(f"JSM_NAMESPACE_{n}" for n in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"))),
    "a launcher such as Ray Train or Kubeflow": _TORCH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One of several processes that a launcher started.

    Args:
        launcher: its name.
        given: its variables for size and rank, as text for errors.
        names: of these variables.
        size, rank: number of processes, and the number of this one.
        local_size, local_rank: the same on this machine.
        meeting: host and port where the processes meet; None if they cannot.
    """

    launcher: str
    given: str
    names: tuple[str, str]
    size: int
    rank: int
    local_size: int
    local_rank: int
    meeting: tuple[str, int] | None


def find_launch() -> Launch | None:
    """Return the launch of which this process is a part; None for a single process."""
    if under_torchrun():
        return _launch("torchrun", _TORCH)
    found = []
    for launcher, names in LAUNCHERS.items():
        launch = _launch(launcher, _of_job(names) if launcher == "srun" else names)
        # Other programs set RANK too, so RANK alone proves nothing.
        if launch.size > 1 or (launch.rank > 0 and names.rank != "RANK"):
            found.append(launch)
    # Launchers nest, e.g. mpirun starts its daemons by srun: that of most processes started this one.
    return max(found, key=lambda launch: launch.size, default=None)


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables without those of launchers, for a process that is none of theirs."""
    # Without its size, a step of Slurm would count as its whole job.
    names = {name for known in LAUNCHERS.values() for name in (known.size, known.rank)} | {_STEP}
    return {name: value for name, value in environment.items() if name not in names}


def _of_job(names: Variables) -> Variables:
    """Return Slurm's variables; in a step of unknown size, those of the job.

    A batch script runs once. It has its job's SLURM_NTASKS and SLURM_PROCID=0, but no step.
    """
    if names.size in os.environ or _STEP not in os.environ:
        return names
    return Variables("SLURM_NTASKS", names.rank, names.local_size, names.local_rank)


def _launch(launcher: str, names: Variables) -> Launch:
    both = names.size, names.rank
    return Launch(
        launcher=launcher,
        given=" and ".join(f"{name}={os.environ[name]}" for name in both if name in os.environ),
        names=both,
        size=_count(names.size),
        rank=_count(names.rank),
        local_size=max(1, _count(names.local_size)),
        local_rank=_count(names.local_rank),
        meeting=_meeting(launcher),
    )


def _meeting(launcher: str) -> tuple[str, int] | None:
    address, port = os.environ.get(_ADDRESS, ""), _count(_PORT)
    if address and port:
        return address, port
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if launcher != "srun" or not nodes or "SLURM_JOB_ID" not in os.environ:
        return None
    # Two steps of one job, or of two jobs on one node, rarely get the same port.
    step = _count("SLURM_JOB_ID") * 7 + _count(_STEP)
    return first_host(nodes), _FIRST_PORT + step % _PORTS


def first_host(nodes: str) -> str:
    """Return the first host of Slurm's list of nodes.

    >>> [first_host(nodes) for nodes in ("gpu7", "gpu[03-07,9],cpu1", "rack2-gpu[1,4]-ib", "a,b")]
    ['gpu7', 'gpu03', 'rack2-gpu1-ib', 'a']
    """
    match = re.match(r"([^\[,]*)(?:\[([0-9]+)[^\]]*\])?([^\[,]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def _count(name: str) -> int:
    """Return the number in an environment variable, the first one of Slurm's "4(x2),3", or 0."""
    match = re.fullmatch(r"([0-9]{1,9})(\(x[0-9]+\))?(,.*)?", os.environ.get(name, ""))
    return int(match[1]) if match else 0
