"""Bring a complete store of an older schema to the present one: its bookkeeping, and no shard.

An upgrade is a growth without new shards: catalogues and header are made beside the store, one replacement
of the manifest publishes them, then they move to their places. Killed at any moment, it is resumed by the
same command; until it is published, the store is the one of before.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError
from pipeline.places.addresses import removal
from pipeline.places.folder import Root, at
from pipeline.places.local import require_own_folders
from pipeline.places.location import Location
from pipeline.store.arrays import RESTORE
from pipeline.store.faults import metadata_faults
from pipeline.store.frame import read_state
from pipeline.store.growth import begun_as, growth_folder, is_growing, prepare_growth
from pipeline.store.header import Header
from pipeline.store.index import read_index
from pipeline.store.layout import MANIFEST, SCHEMA, ZARR_JSON
from pipeline.store.leftovers import half_written
from pipeline.store.lock import WAIT_SECONDS, WHOLE, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import clean
from pipeline.store.writer import StoreWriter


def upgrade(path: Root) -> bool:
    """Rewrite the bookkeeping of a complete store in the present schema; shards are neither read nor moved.

    Args:
        path: the store's folder.

    Returns:
        Whether there was anything to do.

    Raises:
        IncompleteStoreError: the store is unfinished, or does not exist.
        CorruptStoreError: manifest, header, keys or metadata of arrays changed since they were written.
        StoreError: the store has an unfinished growth, whose completion upgrades it.
        LockedError: another process is writing the store.
    """
    if not at(path).exists(MANIFEST):
        Header.read(Location(path))
        raise IncompleteStoreError(
            f"{path}: not complete, and an unfinished store needs no upgrade; resume the dump with: "
            f"pipeline cache-logits {at(path).stem}"
        )
    if isinstance(path, Path):
        require_own_folders(path)
    left = half_written(path)
    with ExitStack() as held:
        with gate(path, WAIT_SECONDS, free_of=WHOLE):
            held.enter_context(writing(path, WHOLE))
            clean(path, left)
        manifest = Manifest.read(Location(path))
        if manifest.header.schema == SCHEMA:
            return False
        writer, upgraded = _upgraded(path, manifest)
        with gate(path, WAIT_SECONDS):
            writer.complete_with(upgraded)
    return True


def _upgraded(path: Root, manifest: Manifest) -> tuple[StoreWriter, Manifest]:
    """Write header and catalogues into the store's growth; return the manifest that publishes them."""
    header = replace(manifest.header, schema=SCHEMA)
    _require_whole(path, manifest)
    if is_growing(path) and not begun_as(path, header):
        raise StoreError(
            f"{path}: has an unfinished growth, which upgrades the store once it is complete; finish it "
            f"with: pipeline cache-logits {at(path).stem}, or remove it with: "
            f"{removal(growth_folder(path))}"
        )
    index, state = read_index(path, manifest.header), read_state(path, manifest.layout)
    prepare_growth(path, header, index=index, state=state)
    writer = StoreWriter(path, header)
    # Not `done`: whether shards are there is no matter of the bookkeeping; readers and `verify` see to it.
    made = writer.manifest({}, dict(manifest.finished(manifest.shards)))
    return writer, replace(made, teacher_top1=manifest.teacher_top1, written_by=manifest.written_by)


def _require_whole(path: Root, manifest: Manifest) -> None:
    """Refuse files that contradict the manifest: the upgrade would give them digests that fit.

    Raises:
        CorruptStoreError: names the first.
    """
    location = Location(path)
    metadata = {name: digest for name, digest in manifest.metadata.items() if not name.endswith(".jsonl")}
    for fault in metadata_faults(location, metadata):
        raise CorruptStoreError(f"{path}: {fault}; {RESTORE}")
    root = Header.parse(manifest.read_metadata(location, ZARR_JSON), f"{path}/{ZARR_JSON}")
    if not root.says_the_same_as(manifest.header):
        raise CorruptStoreError(f"{path}: {ZARR_JSON} and {MANIFEST} describe different stores; {RESTORE}")
