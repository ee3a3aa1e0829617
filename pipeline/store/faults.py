"""Files of a store that changed since they were written, are missing, or do not belong to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pipeline.core.errors import CorruptStoreError
from pipeline.core.hashing import bytes_digest
from pipeline.core.progress import track
from pipeline.core.threads import side_by_side
from pipeline.places.addresses import hidden_place
from pipeline.places.folder import Root, at
from pipeline.places.local import NoFileError, names_in
from pipeline.places.location import JSON_BYTES, Location
from pipeline.store.layout import GROWTH, Layout, ShardId
from pipeline.store.ledger import Finished

MISSING = "is missing"
STRAY = "is not part of the store"


@dataclass(frozen=True, slots=True)
class Fault:
    """A file and its problem.

    Args:
        name: of the file in the store.
        problem: continues the sentence after the name, e.g. "is missing".
        shard: the file's shard; None for other files.
    """

    name: str
    problem: str
    shard: ShardId | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


def metadata_faults(location: Location, metadata: Mapping[str, str]) -> Iterator[Fault]:
    """Read files that are no shards, by name and SHA-256, and yield the changed or missing ones."""
    for name, digest in metadata.items():
        if problem := _problem(location, name, digest):
            yield Fault(name, problem)


def shard_faults(
    location: Location,
    layout: Layout,
    shards: Mapping[ShardId, Finished],
    *,
    workers: int = 1,
    quiet: bool = False,
    look: Callable[[ShardId, Mapping[str, bytes]], None] | None = None,
) -> Iterator[Fault]:
    """Read the files of shards, and yield those that contradict their records.

    Args:
        location: of the store.
        layout: of the store.
        shards: the shards and their records.
        workers: threads that read; hashing runs side by side.
        quiet: show no progress.
        look: called on any thread with each good shard's bytes by array, so that they are read once.
    """

    def check(shard: ShardId) -> list[Fault]:
        faults, contents = [], {}
        for array, (size, digest) in shards[shard].files.items():
            name = str(layout.shard_file(shard, array))
            content, problem = _found(location, name, digest, size)
            if content is None or problem:
                faults.append(Fault(name, problem or MISSING, shard))
            else:
                contents[array] = content
        if look is not None and not faults:
            look(shard, contents)
        return faults

    checked = side_by_side(check, shards, workers)
    watched = checked if quiet else track(checked, "verify", total=len(shards), unit="shard")
    for faults in watched:
        yield from faults


def size_faults(path: Root, layout: Layout, shards: Mapping[ShardId, Finished]) -> list[Fault]:
    """Return the shards' files that are missing or have another size, from one listing; none is read."""
    found, faults = at(path).sizes(), []
    for shard, finished in shards.items():
        for array, size in zip(sorted(layout.arrays), finished.sizes, strict=True):
            name = str(layout.shard_file(shard, array))
            # A store that has just grown may still have the file in its growth.
            there = [found[place] for place in (name, f"{GROWTH}/{name}") if place in found]
            if not there:
                faults.append(Fault(name, MISSING, shard))
            elif size not in there:
                faults.append(Fault(name, f"has {there[0]} bytes, expected {size}", shard))
    return faults


def damaged(path: Root, faults: Sequence[object]) -> CorruptStoreError:
    """Return the error for a complete store with faults, at least one."""
    more = f" and {len(faults) - 1:,} more" if len(faults) > 1 else ""
    again = f"pipeline verify {quote(hidden_place(str(path)))} --repair"
    return CorruptStoreError(
        f"{path}: {faults[0]}{more}; expected a complete dump as it was written; run: {again}"
    )


def strays(path: Root, known: set[str]) -> Iterator[Fault]:
    """Yield files with unknown names, and links to folders, which are not followed."""
    found = names_in(path) if isinstance(path, Path) else at(path).sizes()
    for name in sorted(set(found) - known):
        yield Fault(name, STRAY)


def files_in(path: Root, skip: Callable[[str], bool] | None = None) -> set[str]:
    """Return the names of all files of a store; a link to a file counts as one.

    Args:
        path: the store's folder or place.
        skip: whether a folder in it may be left out, by its name.
    """
    if not isinstance(path, Path):
        return set(path.sizes())
    return {name for name in names_in(path, skip) if os.path.isfile(f"{path}/{name}")}


def look_up(
    location: Location, name: str, digest: str, size: int | None = None, most_bytes: int = JSON_BYTES
) -> tuple[bytes | None, str | None]:
    """Return the content of a file that a manifest lists, and its problem or None.

    A store that has just grown may still have the file in its growth, or be moving it.

    Args:
        location: of the store.
        name: of the file in the store.
        digest: SHA-256 (hex) of the written bytes.
        size: number of written bytes; None if unknown.
        most_bytes: the largest file that is read if its size is unknown.

    Raises:
        CorruptStoreError: the name belongs to something other than a file.
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


def _problem(location: Location, name: str, digest: str) -> str | None:
    """Return the problem of a file that a manifest lists, or None."""
    return _found(location, name, digest)[1]


def _found(
    location: Location, name: str, digest: str, size: int | None = None
) -> tuple[bytes | None, str | None]:
    """Return the content and the problem of a file, as `look_up` does, of other things as well."""
    try:
        return look_up(location, name, digest, size)
    except NoFileError as error:
        return None, error.problem


def problem_of(content: bytes | None, digest: str, size: int | None = None) -> str | None:
    """Return the problem of a file's content, or None.

    Args:
        content: bytes of the file; None if it is missing.
        digest: SHA-256 (hex) of the written bytes.
        size: number of written bytes; None if unknown.
    """
    if content is None:
        return MISSING
    if size is not None and len(content) != size:
        return f"has {len(content)} bytes, expected {size}"
    return None if bytes_digest(content) == digest else "has changed since it was written"
