"""One writer at a time: a lock beside the store, released by the kernel when its holder dies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import LockedError

WAIT_SECONDS = 20.0


@contextmanager
def writer_lock(store: Path, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold a store for writing.

    Args:
        store: the store's folder; the lock and its holder's name are files beside it.
        wait_seconds: how long to wait for another holder; None for `WAIT_SECONDS`.

    Raises:
        LockedError: another process holds it still.
    """
    wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(f"{store.name}.lock"))
    holder = store.with_name(f"{store.name}.holder")
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        raise LockedError(
            f"{store} is being written by {who} and was not released in {wait_seconds:g} s; expected one "
            "writer at a time; wait for it, or end it and run the command again"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
