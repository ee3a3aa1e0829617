"""Processors that this process may use: the machine's, less what affinity and cgroups withhold.

`os.cpu_count()` is of the whole machine: a container with a quota of two processors of 96 would start 96
threads, each with an image in memory. Memory limits are not looked at.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MOST_WORKERS = 8


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
    quotas = [math.ceil(quota) for folder in _cgroups(root) if (quota := _quota(folder)) is not None]
    return max(1, min([_allowed(), *quotas]))


def bound_threads() -> None:
    """Let torch compute with no more threads than there are processors: it looks at no quota itself."""
    from torch import get_num_threads, set_num_threads

    set_num_threads(min(get_num_threads(), usable_processors()))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, of both versions, and of those around them.

    A container may see its own alone, as the root, though its name is that on the host.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # "0::/user.slice" in version 2, "4:cpu,cpuacct:/docker/ab12" in version 1.
        _, controllers, group = line.split(":", 2)
        mount = root / "sys/fs/cgroup" / controllers
        if not controllers or "cpu" in controllers.split(","):
            inner = mount / group.lstrip("/")
            yield inner
            yield from (folder for folder in inner.parents if folder.is_relative_to(mount))


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
