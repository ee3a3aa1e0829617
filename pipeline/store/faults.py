"""Files of a store that are not what was written, or that nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.hashing import bytes_digest
from pipeline.core.progress import track
from pipeline.places.local import NoFileError, names_in
from pipeline.places.location import JSON_BYTES, Location
from pipeline.store.layout import GROWTH, Layout, ShardId
from pipeline.store.records import ShardRecord

MISSING = "is missing"
STRAY = "does not belong to the store"


@dataclass(frozen=True, slots=True)
class Fault:
    """A file and what is wrong with it.

    Args:
        name: the file's, in the store.
        problem: as it goes on after the name.
        shard: whose file it is; None for others.
    """

    name: str
    problem: str
    shard: ShardId | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


def metadata_faults(location: Location, metadata: Mapping[str, str]) -> Iterator[Fault]:
    """Read files that are no shards, by name and SHA-256, and yield those that are something else."""
    for name, digest in metadata.items():
        if problem := _problem(location, name, digest):
            yield Fault(name, problem)


def shard_faults(
    location: Location, layout: Layout, shards: Mapping[ShardId, ShardRecord]
) -> Iterator[Fault]:
    """Read the files of shards and yield those that are not what their records say."""
    for shard in track(shards, "verify", total=len(shards), unit="shard"):
        for array, (size, digest) in shards[shard].files.items():
            name = str(layout.shard_file(shard, array))
            if problem := _problem(location, name, digest, size):
                yield Fault(name, problem, shard)


def strays(path: Path, known: set[str]) -> Iterator[Fault]:
    """Yield files of a folder whose names are not known, and links to folders, which are not followed."""
    for name in sorted(set(names_in(path)) - known):
        yield Fault(name, STRAY)


def files_in(path: Path) -> set[str]:
    """Return the names of all files in a folder, relative to it; a link to a file is one."""
    return {name for name in names_in(path) if (path / name).is_file()}


def look_up(
    location: Location, name: str, digest: str, size: int | None = None, most_bytes: int = JSON_BYTES
) -> tuple[bytes | None, str | None]:
    """Return the content of a file that a manifest lists, and what is wrong with it, if anything is.

    A store that has just grown may have the file still in its growth, or have it moved meanwhile.

    Args:
        location: of the store.
        name: of the file in it.
        digest: SHA-256 (hex) of what was written.
        size: bytes that were written; None where they are not known.
        most_bytes: the largest file that is read where its size is not known.

    Raises:
        CorruptStoreError: there is something else than a file.
    """
    content, problem = _read(location, name, digest, size, most_bytes)
    if not problem:
        return content, None
    for place in (f"{GROWTH}/{name}", name):
        moved, still = _read(location, place, digest, size, most_bytes)
        if not still:
            return moved, None
    return content, problem


def _read(
    location: Location, name: str, digest: str, size: int | None, most_bytes: int
) -> tuple[bytes | None, str | None]:
    content = location.find(name, most_bytes if size is None else size)
    return content, problem_of(content, digest, size)


def _problem(location: Location, name: str, digest: str, size: int | None = None) -> str | None:
    """Say what is wrong with a file that a manifest lists, if anything is."""
    try:
        return look_up(location, name, digest, size)[1]
    except NoFileError as error:
        return error.problem


def problem_of(content: bytes | None, digest: str, size: int | None = None) -> str | None:
    """Say what is wrong with a file's content, if anything is.

    Args:
        content: its bytes, or None where there is no such file.
        digest: SHA-256 (hex) of what was written.
        size: bytes that were written.
    """
    if content is None:
        return MISSING
    if size is not None and len(content) != size:
        return f"has {len(content)} bytes, expected {size}"
    return None if bytes_digest(content) == digest else "has other bytes than were written"
