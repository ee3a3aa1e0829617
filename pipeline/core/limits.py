"""What a machine, or the container around this process, leaves to it: disk, memory, groups with limits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # cgroups of version 1 say 2^63 less a page


def free_disk_bytes(place: Path) -> int:
    """Return how many bytes a folder can still take, which need not exist: those of its file system."""
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory this process may have in all: what is free, and what it has already.

    None where the system does not tell, e.g. on macOS.

    Args:
        root: of the file system whose `proc` and `sys` tell of memory and cgroups.
    """
    free = _available(root)
    if free is None:
        return None
    limits = [left for group in cgroups("memory", root) if (left := _left(group)) is not None]
    return max(0, min([free, *limits])) + _own(root)


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, of both versions, and of those around them.

    A container may see its own alone, as the root, though its name is that on the host.

    Args:
        controller: that limits what is asked for: cpu or memory.
        root: of the file system whose `proc` and `sys` tell of cgroups.
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
    """Return how much memory a cgroup can still take, or None where it has no limit."""
    for limit, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = (int((cgroup / name).read_text()) for name in (limit, used))
            counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file; "max"
            continue
        # Files that were read count as used, and make room when it is needed.
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
    """Return how much memory this process has: resident, without files."""
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values.get("RssAnon", "0").split()[0]) << 10
