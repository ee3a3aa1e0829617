"""The process that a command runs in: its memory, its parent, its processors. Imports no torch."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from pathlib import Path

from pipeline.core.limits import cgroups
from stages.dvc import is_stage
from stages.ranks import under_torchrun

# Memory of CPU runs: keep what is freed instead of giving it back to the kernel at every step.


# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_PAD_BYTES = 256 << 20
_PR_SET_PDEATHSIG = 1
MOST_WORKERS = 8


def keep_freed_memory() -> None:
    """Tell glibc to reuse the pages of large tensors; elsewhere do nothing.

    By default every tensor above 32 MB, and many below, is mapped anew and unmapped when it is freed:
    each step of a training loop then faults all its activations in again, which can cost more than the
    arithmetic. The price is a process that does not shrink.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, _PAD_BYTES)


# A stage that DVC or torchrun started ends when that is killed, so that no orphan writes on.


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, if it is DVC or torchrun (Linux only).

    A command typed by a person is left alone: with nohup it shall outlive its shell.
    """
    if sys.platform == "linux" and (is_stage() or under_torchrun()):
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


# Processors that this process may use: the machine's, less what affinity and cgroups withhold.
#
# `os.cpu_count()` is of the whole machine: a container with a quota of two processors of 96 would start
# 96 threads, each with an image in memory. Memory limits are not looked at.


def default_workers(sharing: int = 1) -> int:
    """Return how many threads decode and render, if the user does not say.

    Args:
        sharing: processes that share the machine.
    """
    return max(1, min(MOST_WORKERS, usable_processors() // sharing))


def usable_processors(root: Path = Path("/")) -> int:
    """Return how many processors' time this process gets, at least 1.

    Args:
        root: of the file system whose `proc` and `sys` tell of cgroups.
    """
    quotas = [math.ceil(quota) for folder in cgroups("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([_allowed(), *quotas]))


def bound_threads() -> None:
    """Let torch compute with no more threads than there are processors: it looks at no quota itself."""
    from torch import get_num_threads, set_num_threads

    set_num_threads(min(get_num_threads(), usable_processors()))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> float | None:
    """Return how many processors' time a cgroup has, or None for all there is."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()  # e.g. "150000 100000"
        else:
            quota, period = ((cgroup / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # no such file; "max"
        return None
