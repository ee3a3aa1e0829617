"""Preflight: compare the disk, memory and hours that a dump needs with those available, before it starts.

    require_room(path, need)     # prints one line of figures; refuses a dump that the disk cannot hold

Rates come from the pilot or from finished shards. Without either, they come from the held-out shards of the
new store, which are made first. The preflight itself runs nothing.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.codecs import Codec
from pipeline.core.errors import StoreError
from pipeline.core.limits import free_disk_bytes, free_memory_bytes
from pipeline.core.progress import duration, note
from pipeline.dump.read_ahead import held_bytes
from pipeline.places.folder import Root
from pipeline.samples.packed import Split
from pipeline.store.layout import Layout
from pipeline.store.ledger import Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Cost per row (one sample in one view); None if not measured.

    Args:
        bytes_per_row: compressed bytes in the store.
        seconds_per_row: time to render, run the teacher and encode.
    """

    bytes_per_row: float | None = None
    seconds_per_row: float | None = None

    @classmethod
    def of_shards(cls, records: Iterable[Finished], codec: Codec) -> Rates:
        """Return the rates of finished shards."""
        sizes = [(record.bytes, record.rows) for record in records]
        return cls.of_sizes(sum(size for size, _ in sizes), sum(rows for _, rows in sizes), codec)

    @classmethod
    def of_sizes(cls, size: int, rows: int, codec: Codec) -> Rates:
        """Return bytes per row of so many bytes, at most uncompressed: small shards add overhead."""
        return cls(bytes_per_row=min(size / rows, codec.bytes)) if rows else cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Resources for the missing part of a store.

    Args:
        rows: remaining forward passes of this process.
        disk_bytes: bytes of all missing shards, including other processes'; None if not measured.
        seconds: time for `rows`; None if not measured.
        memory_bytes: expected peak of resident bytes.
    """

    rows: int
    disk_bytes: int | None
    seconds: float | None
    memory_bytes: int

    @classmethod
    def of(cls, *, rows: int, own_rows: int, rates: Rates, memory_bytes: int) -> Need:
        """Compute needs: disk for all rows, since processes share it, and time for this process's rows."""
        size, seconds = rates.bytes_per_row, rates.seconds_per_row
        return cls(
            rows=own_rows,
            disk_bytes=None if size is None else math.ceil(size * rows),
            seconds=None if seconds is None else seconds * own_rows,
            memory_bytes=memory_bytes,
        )


def memory_bytes(layout: Layout, codec: Codec, images: Split) -> int:
    """Return the expected peak of resident bytes: the peak so far, two shards and decoded images.

    Args:
        layout: the store's layout.
        codec: the store's codec.
        images: the training split.
    """
    # Linux reports ru_maxrss in KiB. Two shards: one is filled while the thread writes the other.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return resident + 2 * layout.shard_rows * codec.bytes + held_bytes(images, layout.shard_rows)


def require_room(path: Root, need: Need) -> None:
    """Report the needs of the rest of a dump, and refuse it if the disk is too small.

    Args:
        path: the store's folder, existing or not, or its place.
        need: resources for the missing part.

    Raises:
        StoreError: the disk has too little free space.
    """
    if not need.rows:
        return
    # Object storage has no limit that could be asked for.
    disk = free_disk_bytes(path) if isinstance(path, Path) else None
    memory = free_memory_bytes()
    if disk is not None and need.disk_bytes is not None and need.disk_bytes > disk:
        raise StoreError(
            f"{path}: the missing shards need {size(need.disk_bytes)}, but the disk has {size(disk)} "
            "free; free some space, lower views.count, choose a smaller codec, or use a different disk "
            "with --out"
        )
    if need.disk_bytes is not None or need.seconds is not None:
        note(f"{path}: {', '.join(_told(need, disk))}")
    if memory is not None and need.memory_bytes > memory:
        note(
            f"{path}: may need {size(need.memory_bytes)} of memory, but only {size(memory)} is available; "
            "the system may kill the dump; lower its batch_size or shard_rows, or --workers"
        )


def _told(need: Need, disk: int | None) -> list[str]:
    parts = [f"{need.rows:,} forward passes of training views to do"]
    if need.seconds is not None:
        parts.append(duration(need.seconds))
    if need.disk_bytes is not None:
        room = f" of {size(disk)} free disk space" if disk is not None else " to write"
        parts.append(f"{size(need.disk_bytes)}{room}")
    return parts


def size(count: float) -> str:
    """Format a number of bytes with a decimal prefix.

    >>> size(999), size(1234567), size(3.2e12)
    ('999 bytes', '1.2 MB', '3.2 TB')
    """
    if count < 1000:
        return f"{round(count)} bytes"
    unit = next((unit for unit in ("kB", "MB", "GB") if (count := count / 1000) < 999.95), None)
    return f"{count:.1f} {unit}" if unit else f"{count / 1000:,.1f} TB"
