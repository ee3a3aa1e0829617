"""Files of a store that are not what was written, or that nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.digests import bytes_digest
from pipeline.progress import track
from pipeline.store.layout import Layout, ShardId
from pipeline.store.local import NoFileError, names_in
from pipeline.store.location import Location
from pipeline.store.records import ShardRecord


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
        yield Fault(name, "does not belong to the store")


def files_in(path: Path) -> set[str]:
    """Return the names of all files in a folder, relative to it; a link to a file is one."""
    return {name for name in names_in(path) if (path / name).is_file()}


def _problem(location: Location, name: str, digest: str, size: int | None = None) -> str | None:
    """Say what is wrong with a file, if anything is; see `problem_of`."""
    try:
        content = location.find(name) if size is None else location.find(name, size)
    except NoFileError as error:
        return error.problem
    return problem_of(content, digest, size)


def problem_of(content: bytes | None, digest: str, size: int | None = None) -> str | None:
    """Say what is wrong with a file's content, if anything is.

    Args:
        content: its bytes, or None where there is no such file.
        digest: SHA-256 (hex) of what was written.
        size: bytes that were written.
    """
    if content is None:
        return "is missing"
    if size is not None and len(content) != size:
        return f"has {len(content)} bytes, expected {size}"
    return None if bytes_digest(content) == digest else "has other bytes than were written"
