"""Measure the processor time and memory of a process and its children.

Memory is counted in two ways. `own` is anonymous and shared memory, each page once even if several
processes map it (proportional set size, Linux 5.9 or newer). Pages of mapped files, e.g. a dataset or a
library, belong to the page cache. `rss` is the sum of resident set sizes, which counts mapped files and
shared pages once per mapping.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_SECONDS_BETWEEN_SAMPLES = 0.05
_OWN = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True, slots=True)
class Memory:
    """Host memory of some processes.

    Args:
        own: bytes of anonymous and shared memory, each page once.
        rss: sum of resident set sizes in bytes.
    """

    own: int = 0
    rss: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.own + other.own, self.rss + other.rss)

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.own - other.own, self.rss - other.rss)

    def higher(self, other: Memory) -> Memory:
        """Return the higher of each figure."""
        return Memory(max(self.own, other.own), max(self.rss, other.rss))


def memory_of(pid: int) -> Memory:
    """Return the current memory of a process and its children."""
    return sum((_memory(process) for process in _family(pid)), Memory())


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process and its children so far."""
    return sum(_cpu_seconds(process) for process in _family(pid))


def kill(pid: int) -> None:
    """Kill a process and its children."""
    for process in _family(pid):
        with suppress(psutil.Error):
            process.kill()


class Peak:
    """Peak memory of a process and its children while watched."""

    def __init__(self) -> None:
        self.memory = Memory()

    @classmethod
    @contextmanager
    def watch(cls, pid: int) -> Iterator[Peak]:
        """Sample a process and its children repeatedly in a thread."""
        peak, done = cls(), threading.Event()

        def look() -> None:
            while not done.wait(_SECONDS_BETWEEN_SAMPLES):
                peak.memory = peak.memory.higher(memory_of(pid))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()
            peak.memory = peak.memory.higher(memory_of(pid))


def _family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _memory(process: psutil.Process) -> Memory:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        rss = process.memory_info().rss
    except (OSError, psutil.Error):
        return Memory()  # the process has ended meanwhile
    return Memory(sum(1024 * int(line.split()[1]) for line in lines if line.startswith(_OWN)), rss)


def _cpu_seconds(process: psutil.Process) -> float:
    """Return a process's time, including children that have ended and been waited for."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system
