"""The process of a command: its memory, its parent and its CPUs. Imports no torch."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.limits import cgroups
from stages.dvc import is_stage
from stages.launchers import under_torchrun

# Memory of CPU runs: keep freed pages instead of returning them to the kernel at every step.


# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_PAD_BYTES = 256 << 20
_PR_SET_PDEATHSIG = 1


def keep_freed_memory() -> None:
    """Tell glibc to reuse the pages of large tensors; other C libraries are left alone.

    By default every tensor above 32 MB, and many smaller ones, is mapped and unmapped each time. Then each
    training step page-faults all its activations, which can cost more than the arithmetic. The price is a
    process that never shrinks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, _PAD_BYTES)


# A stage ends when its parent, e.g. DVC or torchrun, is killed, so no orphan keeps writing.

# Environment variable with the number of a process of this program that started a command.
STARTED_BY = "PIPELINE_STARTED_BY"


def command_line(arguments: Sequence[str]) -> list[str]:
    """Return the words that run a command of this program with the same Python."""
    # -P: no module of the working folder is imported in place of this program's.
    return [sys.executable, "-P", "-c", "from stages.cli import main; main()", *arguments]


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, if it is DVC, torchrun or a sweep (Linux only).

    A command started by a person is left alone: with nohup it must outlive its shell.
    """
    starter = os.environ.pop(STARTED_BY, None)
    if sys.platform == "linux" and (is_stage() or under_torchrun() or starter):
        parent = int(starter) if starter and starter.isdecimal() else os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


# CPUs that this process may use, limited by affinity and cgroups.
#
# `os.cpu_count()` counts the whole machine. E.g. a container with a quota of 2 of 96 CPUs would start 96
# threads. Memory limits are ignored: samples being decoded are bounded in bytes, see samples/reading.py.


def default_workers(sharing: int = 1) -> int:
    """Return the default number of threads that decode and render: one per usable CPU.

    Args:
        sharing: number of processes that share the machine.
    """
    return max(1, usable_processors() // sharing)


def usable_processors(root: Path = Path("/")) -> int:
    """Return the number of CPUs for this process, at least 1; a fractional quota is rounded up.

    Args:
        root: folder with `proc` and `sys`; tests pass their own.
    """
    quotas = [math.ceil(quota) for folder in cgroups("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([_allowed(), *quotas]))


def bound_threads() -> None:
    """Limit torch's threads to the usable CPUs, since torch ignores cgroup quotas."""
    from torch import get_num_threads, set_num_threads

    set_num_threads(min(get_num_threads(), usable_processors()))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> float | None:
    """Return a cgroup's CPU quota in CPUs, e.g. 1.5, or None without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()  # e.g. "150000 100000"
        else:
            quota, period = ((cgroup / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # the file is missing, or says "max"
        return None
