"""Disk space, memory and cgroup limits that a machine or container leaves to this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # cgroup v1 writes 2^63 minus a page for "no limit"


def free_disk_bytes(place: Path) -> int:
    """Return the free bytes of a folder's file system; the folder need not exist."""
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory available to this process in total: free memory plus its current use.

    None if the system has no `/proc`, e.g. macOS.

    Args:
        root: folder with `proc` and `sys`; tests pass their own.
    """
    free = _available(root)
    if free is None:
        return None
    limits = [left for group in cgroups("memory", root) if (left := _left(group)) is not None]
    return max(0, min([free, *limits])) + _own(root)


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, of both versions, and of their parents.

    A container may see only its own cgroup, mounted as the root but named as on the host.

    Args:
        controller: cpu or memory.
        root: folder with `proc` and `sys`; tests pass their own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # "0::/user.slice" in version 2, "4:cpu,cpuacct:/docker/ab12" in version 1.
        _, controllers, group = line.split(":", 2)
        mount = root / "sys/fs/cgroup" / controllers
        if not controllers or controller in controllers.split(","):
            inner = mount / group.lstrip("/")
            yield inner
            yield from (folder for folder in inner.parents if folder.is_relative_to(mount))


def _left(cgroup: Path) -> int | None:
    """Return the memory left in a cgroup, in bytes, or None without a limit."""
    for limit, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = (int((cgroup / name).read_text()) for name in (limit, used))
            counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the file is missing, or says "max"
            continue
        # Cached file pages count as used, but the kernel reclaims them on demand.
        return None if most >= _UNLIMITED else most - taken + int(counts.get(reclaimable, 0))
    return None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    found = values.get("MemAvailable", "").split()  # e.g. "17041240 kB"
    return int(found[0]) << 10 if found else None


def _own(root: Path) -> int:
    """Return this process's resident memory in bytes, without file pages."""
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values.get("RssAnon", "0").split()[0]) << 10
