"""Mending a store: what is bad is made again, the rest keeps its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.audit import files_in
from pipeline.bench import Bench
from pipeline.caching.dump import cache_logits
from pipeline.caching.opening import choose, reopen
from pipeline.caching.spec import DumpSpec, splits_of
from pipeline.codecs import codec_fingerprint
from pipeline.data.packed import PreparedData
from pipeline.errors import CorruptStoreError, MismatchError, StoreError
from pipeline.models.teacher import Teacher
from pipeline.progress import note
from pipeline.store.adoption import Index, dataset_digest, read_index
from pipeline.store.faults import Fault, find_faults
from pipeline.store.frame import build_frame, read_state
from pipeline.store.header import Header
from pipeline.store.index import ABSENT, SampleIndex
from pipeline.store.layout import CODEC_GROUP, INDEX_ARRAYS, MANIFEST, ZARR_JSON, ShardId
from pipeline.store.location import Location
from pipeline.store.lock import WAIT_SECONDS, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.records import ShardRecord
from pipeline.store.slices import WHOLE

_CANNOT = "restore it (dvc checkout), or remove the store and make it again"


def repair(path: Path, bench: Bench, teacher: Teacher) -> list[str]:
    """Make again what is bad in a complete store.

    Args:
        path: the store's folder.
        bench: the data that it was made from, and the device.
        teacher: the one that made it.

    Returns:
        A line for each file that was made again or removed. A manifest that was changed vouches for
        nothing, so without it every shard is made again.

    Raises:
        IncompleteStoreError: it was not finished: going on with it is no repair.
        MismatchError: other data, or another teacher.
        StoreError: what is lost cannot be made again.
    """
    with ExitStack() as held:
        held.enter_context(gate(path, WAIT_SECONDS))
        held.enter_context(writing(path, WHOLE, WAIT_SECONDS))
        header, records, faults = _examine(path)
        header.require_teacher(teacher, str(path))
        if not faults:
            return []
        for fault in faults:
            (path / fault.name).unlink(missing_ok=True)
        reopen(path, records)
        index = _index(path, header, bench.data)
        bench = replace(bench, data=_known(bench.data, index))
        build_frame(path, header, index=index, state=_state(path, header, bench, teacher))
    note(f"{path}: {len(faults)} files are to be made again or removed")
    cache_logits(bench, teacher, DumpSpec.of(header), path)
    return [str(fault) for fault in faults]


def _examine(path: Path) -> tuple[Header, Mapping[ShardId, ShardRecord], list[Fault]]:
    """Return a store's header, the records of its good shards, and what is wrong."""
    location = Location(path)
    try:
        manifest = Manifest.read(location)
    except CorruptStoreError:
        header = Header.read(location)
        problem = "is not vouched for, since the manifest was changed"
        return header, {}, [Fault(name, problem) for name in sorted(_unproven(path))]
    faults = list(find_faults(location, manifest))
    strays = files_in(path) - {MANIFEST, *manifest.metadata, *manifest.shard_files()}
    faults.extend(Fault(name, "does not belong to the store") for name in sorted(strays))
    bad = {fault.shard for fault in faults}
    return manifest.header, {s: r for s, r in manifest.shards.items() if s not in bad}, faults


def _unproven(path: Path) -> set[str]:
    """Return the files that only a manifest proves; the header's digests prove indices and codec."""
    proven = (f"{CODEC_GROUP}/", *(f"/{column}/" for column in INDEX_ARRAYS))
    return {name for name in files_in(path) - {ZARR_JSON} if not any(part in name for part in proven)}


def _index(path: Path, header: Header, data: PreparedData) -> Index:
    """Return the samples of a store, from itself or, where that is lost, from the data."""
    with suppress(CorruptStoreError):
        stored = read_index(path, header.layout)
        if dataset_digest(stored) == header.fingerprint.dataset:
            return stored
    splits = splits_of(data)
    index = {name: SampleIndex.of(splits[name]) for name in header.layout.sections if name in splits}
    if dataset_digest(index) != header.fingerprint.dataset:
        raise StoreError(
            f"{path}: which samples its rows are is lost, and the data is not just what it was made from; "
            f"expected the same; {_CANNOT}"
        )
    return index


def _known(data: PreparedData, index: Index) -> PreparedData:
    """Return the samples of the data that a store has: mending it adds none."""
    splits: dict[str, Any] = {
        name: images.subset(np.flatnonzero(index[name].find(images.keys) != ABSENT))
        for name, images in splits_of(data).items()
        if name in index
    }
    return replace(data, **splits)


def _state(path: Path, header: Header, bench: Bench, teacher: Teacher) -> Mapping[str, Tensor]:
    """Return what the codec keeps once, from the store or, where that is lost, from the pilot."""
    with suppress(CorruptStoreError, MismatchError, KeyError):
        return header.codec(read_state(path), str(path)).state
    codec = choose(bench, teacher, DumpSpec.of(header))
    if codec_fingerprint(codec) != header.fingerprint.codec:
        raise StoreError(
            f"{path}: what its codec keeps once is lost, and the pilot does not give the same again; "
            f"expected the machine and versions of the dump; {_CANNOT}"
        )
    return codec.state
