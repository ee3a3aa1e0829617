"""Files of a store that are not what was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.digests import bytes_digest
from pipeline.progress import track
from pipeline.store.layout import ShardId
from pipeline.store.location import Location
from pipeline.store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Fault:
    """A file and what is wrong with it.

    Args:
        name: the file's, in the store.
        problem: as it goes on after the name.
        shard: whose file it is; None for metadata.
    """

    name: str
    problem: str
    shard: ShardId | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


def find_faults(location: Location, manifest: Manifest) -> Iterator[Fault]:
    """Read every file that a manifest speaks of and yield those that are not what was written."""
    for name, digest in manifest.metadata.items():
        if problem := problem_of(location.find(name), digest):
            yield Fault(name, problem)
    for shard in track(manifest.shards, "verify", total=len(manifest.shards), unit="shard"):
        for array, (size, digest) in manifest.shards[shard].files.items():
            name = str(manifest.layout.shard_file(shard, array))
            if problem := problem_of(location.find(name), digest, size):
                yield Fault(name, problem, shard)


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
