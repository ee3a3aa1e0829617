"""Preflight: what a dump will need beside what is there. Disk, memory and hours, before work is done.

    require_room(plan, need)     # a line with the figures; refuses what the disk cannot hold

Rates come from the pilot, or from shards that are finished; where a new store's codec needs no pilot, from
its held-out shards, which are made first. Nothing is run for it.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.codecs import Codec
from pipeline.core.errors import StoreError
from pipeline.core.limits import free_disk_bytes, free_memory_bytes
from pipeline.core.progress import note
from pipeline.dump.read_ahead import held_bytes
from pipeline.samples.packed import Split
from pipeline.store.layout import Layout, ShardId
from pipeline.store.records import ShardRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a sample in a view takes, as far as it was measured.

    Args:
        bytes_per_row: of the store, compressed.
        seconds_per_row: of rendering, the teacher and encoding.
    """

    bytes_per_row: float | None = None
    seconds_per_row: float | None = None

    @classmethod
    def of_shards(cls, records: Iterable[ShardRecord], codec: Codec) -> Rates:
        """Return the size of finished shards; small ones have more around them than full ones."""
        sizes = [(record.bytes, record.rows) for record in records]
        rows = sum(count for _, count in sizes)
        return cls(bytes_per_row=min(sum(size for size, _ in sizes) / rows, codec.bytes)) if rows else cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is still to be made of a store.

    Args:
        rows: samples that the teacher has still to see here, each view counted.
        disk_bytes: of all that is missing, whoever makes it; None where nothing was measured yet.
        seconds: that the rows take; None where nothing was measured yet.
        memory_bytes: resident at most, as far as this is known before.
    """

    rows: int
    disk_bytes: int | None
    seconds: float | None
    memory_bytes: int

    @classmethod
    def of(cls, *, rows: int, own_rows: int, rates: Rates, memory_bytes: int) -> Need:
        """Return what rows need, of which this process makes its own; others write to the same disk."""
        size, seconds = rates.bytes_per_row, rates.seconds_per_row
        return cls(
            rows=own_rows,
            disk_bytes=None if size is None else math.ceil(size * rows),
            seconds=None if seconds is None else seconds * own_rows,
            memory_bytes=memory_bytes,
        )


def memory_bytes(layout: Layout, codec: Codec, images: Split) -> int:
    """Return what a dump will have resident: what this process had so far, two shards, decoded images.

    Args:
        layout: of the store.
        codec: of the store.
        images: the training split.
    """
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return resident + 2 * layout.shard_rows * codec.bytes + held_bytes(images, layout.shard_rows)


def written_bytes(layout: Layout, done: Mapping[ShardId, ShardRecord]) -> int:
    """Return the size of a store's finished shards that are part of a layout."""
    return sum(done[shard].bytes for shard in layout.shards() if shard in done)


def require_room(path: Path, need: Need) -> None:
    """Say what the rest of a dump needs, and refuse one that the disk cannot hold.

    Args:
        path: the store's folder, which need not exist.
        need: of what is missing.

    Raises:
        StoreError: the disk has less free than is needed.
    """
    if not need.rows:
        return
    disk, memory = free_disk_bytes(path), free_memory_bytes()
    if need.disk_bytes is not None and need.disk_bytes > disk:
        raise StoreError(
            f"{path}: what is missing takes {size(need.disk_bytes)}, and its disk has {size(disk)} free; "
            "expected room for all of it; free some, lower views.count, choose a smaller codec, or name "
            "another disk with --out"
        )
    if need.disk_bytes is not None or need.seconds is not None:
        note(f"{path}: {', '.join(_told(need, disk))}")
    if memory is not None and need.memory_bytes > memory:
        note(
            f"{path}: may need {size(need.memory_bytes)} of memory, and {size(memory)} can be had; the "
            "system may end it; lower batch_size or shard_rows of the dump, or --workers"
        )


def _told(need: Need, disk: int) -> list[str]:
    parts = [f"{need.rows:,} forward passes to do"]
    if need.seconds is not None:
        parts.append(duration(need.seconds))
    if need.disk_bytes is not None:
        parts.append(f"{size(need.disk_bytes)} of {size(disk)} that are free")
    return parts


def size(count: float) -> str:
    """Return bytes as people say them.

    >>> size(999), size(1234567), size(3.2e12)
    ('999 bytes', '1.2 MB', '3.2 TB')
    """
    if count < 1000:
        return f"{round(count)} bytes"
    unit = next((unit for unit in ("kB", "MB", "GB") if (count := count / 1000) < 999.95), None)
    return f"{count:.1f} {unit}" if unit else f"{count / 1000:,.1f} TB"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(12), duration(3720)
    ('less than a minute', '1 h 2 min')
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours or minutes else "less than a minute"
