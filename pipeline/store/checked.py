"""Verified bytes of shards, from the store, or from the cache that the processes of a machine share."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import CorruptStoreError
from pipeline.places.cache import named_cache
from pipeline.places.location import Location
from pipeline.store.commands import restoring
from pipeline.store.faults import look_up, problem_of
from pipeline.store.layout import ShardId
from pipeline.store.manifest import Manifest


def read_checked(location: Location, manifest: Manifest, shard: ShardId, array: str) -> bytes:
    """Return the verified bytes of a shard's file of one array.

    Raises:
        CorruptStoreError: the file changed since it was written.
    """
    name = str(manifest.layout.shard_file(shard, array))
    size, digest = manifest.file_of(shard, array)

    def fetch() -> bytes:
        content, problem = look_up(location, name, digest, size)
        if content is None or problem:
            raise CorruptStoreError(f"{location}: {name} {problem}; {restoring(location)}")
        return content

    cache = None if isinstance(location.root, Path) else named_cache()
    if cache is None:
        return fetch()
    with cache.open(digest, fetch) as file:
        content = file.read(size)
    if problem_of(content, digest, size):
        cache.forget(digest)
        return fetch()
    return content
