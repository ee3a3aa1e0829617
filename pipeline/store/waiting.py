"""Wait for a store that other processes write: how often to look, and when to give up.

A folder's locks tell whether a process writes it. Object storage has no locks: there, new records are the
sign of a writer, and each look costs requests, so pauses grow with the time waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline.core.errors import IncompleteStoreError, counted
from pipeline.core.progress import note
from pipeline.places.folder import Root
from pipeline.places.place import Place
from pipeline.store.commands import dump_command
from pipeline.store.layout import RECORDS
from pipeline.store.lock import writer_of

# Time without a new shard and without a writer, after which a reader gives up.
TIMEOUT_SECONDS = 300.0
_POLL_SECONDS = 0.5
# In object storage: a tenth of the time waited, up to this.
_LONGEST_POLL_SECONDS = 15.0
_SECONDS_BETWEEN_LINES = 60.0


def wait_until(path: Root, look: Callable[[], str], *, timeout_seconds: float) -> None:
    """Wait until nothing is missing; note once a minute what is, and who writes the store.

    Args:
        path: the store's folder or place.
        look: returns what is missing, or nothing.
        timeout_seconds: without a change and without a writer, after which waiting ends.

    Raises:
        IncompleteStoreError: the time is over.
    """
    missing, begun, told = look(), time.monotonic(), float("-inf")
    signs, alive, command = _signs_at(path), begun, dump_command(path, "--by-view")
    while missing:
        now = time.monotonic()
        is_late, tells = now - alive >= timeout_seconds, now - told >= _SECONDS_BETWEEN_LINES
        if is_late or tells:
            writer = signs.look()
            if is_late and not writer:
                raise IncompleteStoreError(
                    f"{path}: waited for {missing}, but {signs.silence} for {timeout_seconds:g} s; resume "
                    f"the dump with: {command}, then run this command again"
                )
            alive = now if writer else alive
        if tells:
            note(f"{path}: waiting for {missing}; {writer or f'{signs.unseen}: {command}'}")
            told = now
        time.sleep(signs.pause(now - begun))
        before, missing = missing, look()
        alive = alive if missing == before else time.monotonic()


class _Signs(Protocol):
    """Signs of a process that writes a store.

    Args:
        silence: the words for no sign at all.
        unseen: the words for no sign just now, before a command.
    """

    silence: str
    unseen: str

    def look(self) -> str:
        """Say who writes the store; nothing if no process is seen."""

    def pause(self, waited_seconds: float) -> float:
        """Return the seconds until the next look."""


class _Locks:
    """Signs in a folder: its locks, which a look costs nothing."""

    silence, unseen = "no process has written the store", "no process writes it; run"

    def __init__(self, path: Path) -> None:
        self._path = path

    def look(self) -> str:
        writer = writer_of(self._path)
        return f"written by {writer}" if writer else ""

    def pause(self, waited_seconds: float) -> float:
        return _POLL_SECONDS


class _NewRecords:
    """Signs in object storage: records of any shard that were added since the last look."""

    silence, unseen = "no shard was added", "if no process writes it, run"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._count: int | None = None

    def look(self) -> str:
        before, self._count = self._count, len(self._place.names(RECORDS))
        added = 0 if before is None else self._count - before
        return f"{counted(added, 'new shard')} since the last look" if added > 0 else ""

    def pause(self, waited_seconds: float) -> float:
        return min(max(_POLL_SECONDS, waited_seconds / 10), _LONGEST_POLL_SECONDS)


def _signs_at(path: Root) -> _Signs:
    return _Locks(path) if isinstance(path, Path) else _NewRecords(path)
