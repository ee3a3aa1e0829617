"""Bring a complete store of an older schema to the present one: its bookkeeping, and no shard.

An upgrade is a growth without new shards: catalogues and header are made beside the store, one replacement
of the manifest publishes them, then they move to their places. Killed at any moment, it is resumed by the
same command; until it is published, the store is the one of before.

The digests of an older store cover content and label together. Where a sample of the data has the very
digest, its content is that of the dump, and so is the label with which the digest comes out: the row gets a
digest of the content alone, and the label. Other rows keep what they have, and stay `UNTOLD`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError
from pipeline.places.addresses import removal
from pipeline.places.folder import Root, at
from pipeline.places.local import require_own_folders
from pipeline.places.location import Location
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED
from pipeline.store.commands import dump_command, restoring
from pipeline.store.faults import metadata_faults
from pipeline.store.frame import read_state
from pipeline.store.growth import begun_as, growth_folder, is_growing, prepare_growth
from pipeline.store.header import Header
from pipeline.store.index import (
    ABSENT,
    UNTOLD,
    Index,
    SampleIndex,
    Splits,
    describing,
    read_index,
)
from pipeline.store.layout import MANIFEST, OF_RECORDS, SCHEMA, ZARR_JSON
from pipeline.store.leftovers import half_written
from pipeline.store.lock import WAIT_SECONDS, WHOLE, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import clean
from pipeline.store.writer import StoreWriter

# Labels are tried for so many samples at most: a decoder that differs would ask for all of them.
_MOST_TRIED = 10_000
_MOST_CLASSES = 1 << 16


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The result of an upgrade.

    Args:
        changed: whether there was anything to do.
        untold: number of samples whose digest still covers the label, so that a corrected label is refused.
    """

    changed: bool
    untold: int


def upgrade(path: Root, splits: Splits | None = None) -> Upgraded:
    """Rewrite the bookkeeping of a complete store in the present schema; shards are neither read nor moved.

    Args:
        path: the store's folder.
        splits: the store's samples, or some of them, to tell contents and labels apart.

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
            f"{dump_command(path)}"
        )
    if isinstance(path, Path):
        require_own_folders(path)
    left = half_written(path)
    with ExitStack() as held:
        with gate(path, WAIT_SECONDS, free_of=WHOLE):
            held.enter_context(writing(path, WHOLE))
            clean(path, left)
        manifest = Manifest.read(Location(path))
        known = read_index(path, manifest.header)
        index = _told(known, splits or {}, manifest.layout.n_classes)
        untold = sum(int(part.untold.sum()) for part in index.values())
        keeps_labels = all(part.labels is not None for part in index.values())
        layout = replace(manifest.layout, keeps_labels=keeps_labels)
        header = describing(replace(manifest.header, schema=SCHEMA), layout, index)
        if header.says_the_same_as(manifest.header):
            return Upgraded(changed=False, untold=untold)
        writer, upgraded = _upgraded(path, manifest, header, index)
        with gate(path, WAIT_SECONDS):
            writer.complete_with(upgraded)
    return Upgraded(changed=True, untold=untold)


def _upgraded(path: Root, manifest: Manifest, header: Header, index: Index) -> tuple[StoreWriter, Manifest]:
    """Write header and catalogues into the store's growth; return the manifest that publishes them."""
    _require_whole(path, manifest)
    if is_growing(path) and not begun_as(path, header):
        upgrades = ", which upgrades the store once it is complete" if _is_older(manifest) else ""
        raise StoreError(
            f"{path}: has an unfinished growth{upgrades}; finish it with: "
            f"{dump_command(path)}, or remove it with: {removal(growth_folder(path))}"
        )
    prepare_growth(path, header, index=index, state=read_state(path, manifest.layout))
    writer = StoreWriter(path, header)
    # Not `done`: whether shards are there is no matter of the bookkeeping; readers and `verify` see to it.
    made = writer.manifest({}, dict(manifest.finished(manifest.shards)))
    return writer, replace(made, teacher_top1=manifest.teacher_top1, written_by=manifest.written_by)


def _is_older(manifest: Manifest) -> bool:
    return manifest.header.schema == OF_RECORDS


def _told(index: Index, splits: Splits, n_classes: int) -> Index:
    """Return the samples with labels of their own, as far as the data proves them; all or none has some."""
    found = {
        name: _told_apart(part, splits[name], n_classes) if name in splits else part
        for name, part in index.items()
    }
    if all(part.untold.all() for part in found.values()):
        return index
    return {
        name: part if part.labels is not None else replace(part, labels=np.full(len(part), UNTOLD))
        for name, part in found.items()
    }


def _told_apart(index: SampleIndex, images: Split, n_classes: int) -> SampleIndex:
    rows = index.find(images.keys)
    # Positions in the split (n,) of samples whose row is untold.
    asked = np.flatnonzero((rows != ABSENT) & index.untold[rows]) if len(index) else rows[:0]
    if not len(asked):
        return index
    same = index.digests[rows[asked]] == images.digests[asked]
    words = np.where(same, images.label_words[asked], UNTOLD)
    others = asked[~same]
    if images.labels.ndim == 1 and same.any() and len(others) <= _MOST_TRIED:
        words[~same] = _labels_by_digest(images, others, index.digests[rows[others]], n_classes)
    told = words != UNTOLD
    digests = index.digests.copy()
    labels = np.full(len(index), UNTOLD) if index.labels is None else index.labels.copy()
    digests[rows[asked[told]]] = images.content_digests[asked[told]]
    labels[rows[asked[told]]] = words[told]
    return replace(index, digests=digests, labels=labels)


def _labels_by_digest(
    images: Split, places: NDArray[np.int64], digests: NDArray[np.uint64], n_classes: int
) -> NDArray[np.int64]:
    """Return the class (n,) with which each sample has the digest; `UNTOLD` if its content differs."""
    words = range(UNLABELLED, min(n_classes, _MOST_CLASSES))

    def of_sample(place: int, digest: int) -> int:
        found = dict(zip(images.digests_with(place, words), words, strict=True))
        return found.get(digest, UNTOLD)

    with ThreadPoolExecutor() as pool:
        return np.fromiter(pool.map(of_sample, places.tolist(), digests.tolist()), np.int64, len(places))


def _require_whole(path: Root, manifest: Manifest) -> None:
    """Refuse files that contradict the manifest: the upgrade would give them digests that fit.

    Raises:
        CorruptStoreError: names the first.
    """
    location = Location(path)
    metadata = {name: digest for name, digest in manifest.metadata.items() if not name.endswith(".jsonl")}
    for fault in metadata_faults(location, metadata):
        raise CorruptStoreError(f"{path}: {fault}; {restoring(path)}")
    root = Header.parse(manifest.read_metadata(location, ZARR_JSON), f"{path}/{ZARR_JSON}")
    if not root.says_the_same_as(manifest.header):
        raise CorruptStoreError(
            f"{path}: {ZARR_JSON} and {MANIFEST} describe different stores; {restoring(path)}"
        )
