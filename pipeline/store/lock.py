"""Slices of a store and their locks: one writer per slice; the kernel releases a dead writer's lock.

A process holds `gate` while it inspects or changes the store's form, and a slice's lock while it writes the
slice's shards. Overlapping slices exclude each other, however they were cut.

Object storage has no locks: there, and on file systems whose locks do nothing, `gate` and `writing` keep
nobody away. What must not go wrong then rests on conditional writes: see `writer.py` and `places/place.py`.
Locks save work that would be done twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeGuard, TypeVar

from filelock import FileLock, Timeout

from pipeline.core.errors import LockedError, StoreError, brief, quoted
from pipeline.places.folder import Root

T = TypeVar("T")
_NAME = re.compile(r"([0-9]{1,6})-of-([0-9]{1,6})")
WAIT_SECONDS = 20.0
# Another rank may run the pilot and the held-out samples while this rank waits at the gate.
PREPARATION_SECONDS = 3 * 3600.0
_POLL_SECONDS = 0.2
_PROBE_SECONDS = 1.0
_GATE = "gate"


@dataclass(frozen=True, slots=True)
class Slice:
    """The shards of one of several writers: one of `count` equal parts, by its index from 0."""

    index: int
    count: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this part of a list: neighbours, so that a writer finishes whole blocks."""
        start, stop = (len(items) * k // self.count for k in (self.index, self.index + 1))
        return items[start:stop]

    def overlaps(self, other: Slice) -> bool:
        """Whether both share a part of the same list, e.g. 0-of-2 and 1-of-4."""
        (a, b), (c, d) = self._ends(), other._ends()
        return a < d and c < b

    def _ends(self) -> tuple[Fraction, Fraction]:
        return Fraction(self.index, self.count), Fraction(self.index + 1, self.count)

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Return the slice that `str` named.

        Raises:
            ValueError: the text names no slice.
        """
        match = _NAME.fullmatch(text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"{quoted(text)} is not a slice")
        return cls(int(match[1]), int(match[2]))


WHOLE = Slice(0, 1)


@contextmanager
def gate(
    store: Root,
    wait_seconds: float,
    *,
    free_of: Slice | None = None,
    writers_seconds: float = WAIT_SECONDS,
) -> Iterator[None]:
    """Hold the store's gate: only one process at a time inspects or changes its form.

    Args:
        store: the store's folder; a folder beside it has the locks and their holders' names.
        wait_seconds: maximum wait for the present holder.
        free_of: hold it only once no process writes a slice that overlaps this one. Meanwhile the gate is
            open: a writer needs it to finish.
        writers_seconds: maximum wait for these writers.

    Raises:
        LockedError: another process still holds the gate, or still writes an overlapping slice.
    """
    if not has_locks(store):
        yield
        return
    deadline = time.monotonic() + writers_seconds
    while True:
        with _gate(store, wait_seconds):
            held = writers(store, free_of) if free_of else []
            if not held:
                yield
                return
        if time.monotonic() > deadline:
            raise _locked(store, held, writers_seconds)
        time.sleep(_POLL_SECONDS)


@contextmanager
def _gate(store: Path, wait_seconds: float) -> Iterator[None]:
    lock = FileLock(_folder(store) / f"{_GATE}.lock")
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise _locked(store, [_GATE], wait_seconds) from None
    with _named(store, _GATE, lock):
        yield


@contextmanager
def writing(store: Root, part: Slice) -> Iterator[None]:
    """Lock a slice of a store for writing; enter it at the gate, `free_of` this slice.

    Raises:
        LockedError: another process holds an overlapping slice.
    """
    if not has_locks(store):
        yield
        return
    if held := writers(store, part):
        raise _locked(store, held, 0)
    lock = FileLock(_folder(store) / f"{part}.lock")
    lock.acquire(timeout=0)
    with _named(store, str(part), lock):
        yield


def writers(store: Root, part: Slice = WHOLE) -> list[str]:
    """Return the slices under way that overlap `part`; call it at the gate."""
    if not has_locks(store):
        return []
    files = [file for file in _folder(store).glob("*-of-*.lock") if _overlaps(file.stem, part)]
    return [file.stem for file in sorted(files) if _is_held(file)]


def writer_of(store: Root) -> str | None:
    """Return the process that writes a store or holds its gate, e.g. "process 12 on host"; None if none.

    The gate is held for milliseconds, and waited for a little longer: others may ask at the same time.
    Locks that cannot be reached, e.g. in a read-only folder, count as free.
    """
    if not isinstance(store, Path) or not _locks_of(store).is_dir():
        return None
    try:
        with _gate(store, _PROBE_SECONDS):
            held = writers(store)
    except LockedError:
        held = [_GATE]
    except OSError:
        held = []
    return _holder(store, held[0]) if held else None


def forget_killed(store: Root) -> None:
    """Remove the names of killed writers, whose locks the kernel released; call it at the gate."""
    if not has_locks(store):
        return
    for holder in _folder(store).glob("*-of-*.holder"):
        lock = holder.with_suffix(".lock")
        if not (lock.exists() and _is_held(lock)):
            holder.unlink(missing_ok=True)


def has_locks(store: Root) -> TypeGuard[Path]:
    """Whether locks beside a store keep writers apart; NFS with `nolock`, and some others, refuse them."""
    if not isinstance(store, Path):
        return False
    handle = os.open(_folder(store), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
    finally:
        os.close(handle)
    return True


def _overlaps(name: str, part: Slice) -> bool:
    """Whether a lock's name is a slice that overlaps `part`; other files beside a store are no locks."""
    with suppress(ValueError):
        return Slice.parse(name).overlaps(part)
    return False


def _is_held(file: Path) -> bool:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def _named(store: Path, name: str, lock: FileLock) -> Iterator[None]:
    """Write the holder's name beside a lock, and release the lock at the end."""
    holder = _folder(store) / f"{name}.holder"
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        try:
            holder.unlink(missing_ok=True)
        finally:
            lock.release()


def _locks_of(store: Path) -> Path:
    store = store.resolve()
    return store.with_name(f"{store.name}.locks")


def _folder(store: Path) -> Path:
    folder = _locks_of(store)
    with suppress(FileExistsError):
        folder.mkdir(parents=True, exist_ok=True)
    # Locks are emptied and holders written: a link would redirect that to somebody's file.
    _require(folder, stat.S_ISDIR, "folder", "the folder of the store's locks")
    for file in folder.iterdir():
        _require(file, stat.S_ISREG, "regular file", "a lock of the store")
    return folder


def _require(file: Path, is_kind: Callable[[int], bool], kind: str, expected: str) -> None:
    """Refuse a file of another kind; one that is gone is a holder's name, whose lock was released."""
    with suppress(FileNotFoundError):
        if not is_kind(file.lstat().st_mode):
            raise StoreError(f"{file}: is a link or not a {kind}; expected {expected}; remove it")


def _locked(store: Path, names: list[str], wait_seconds: float) -> LockedError:
    part = "" if names[0] in (_GATE, str(WHOLE)) else f" (slice {names[0]})"
    return LockedError(
        f"{store} is locked by {_holder(store, names[0])}{part} and was not released within "
        f"{wait_seconds:g} s; wait for that process, or stop it and run the command again"
    )


def _holder(store: Path, name: str) -> str:
    with suppress(FileNotFoundError, UnicodeDecodeError):  # released just now
        return brief((_folder(store) / f"{name}.holder").read_text())
    return "another process"
