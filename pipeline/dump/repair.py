"""Mend a store: make bad files again and keep the bytes of all others."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.codecs import codec_fingerprint
from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError, counted
from pipeline.core.progress import note
from pipeline.dump.open import require_same_pixels
from pipeline.dump.plan import choose, places, require_samples
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec, splits_of
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher
from pipeline.places.folder import Root, at
from pipeline.places.local import require_own_folders
from pipeline.places.location import Location
from pipeline.store.faults import STRAY, Fault, metadata_faults, shard_faults, strays
from pipeline.store.frame import build_frame, frame_files, read_state
from pipeline.store.header import Header
from pipeline.store.index import ABSENT, Index, SampleIndex, is_described, read_index
from pipeline.store.layout import (
    CODEC_GROUP,
    GATHERED,
    INDEX_ARRAYS,
    MANIFEST,
    ZARR_JSON,
    Layout,
    ShardId,
    catalogue_digest,
)
from pipeline.store.ledger import Finished, Records
from pipeline.store.leftovers import half_written, is_passing, is_shard_file
from pipeline.store.lock import WAIT_SECONDS, WHOLE, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import behind_links, clean

_STRAYS = ".strays"
# Faults are told in the present tense; once they are mended, in the past.
_PAST = {"is": "was", "has": "had"}
_CANNOT = "restore it (dvc checkout --force), or remove the store and dump again"


@dataclass(frozen=True, slots=True)
class _Findings:
    """Findings in a store's folder.

    Args:
        header: the store's planned content.
        records: its finished shards, including bad ones.
        faults: the problems.
        manifest: of a complete store.
    """

    header: Header
    records: Mapping[ShardId, Finished]
    faults: Sequence[Fault]
    manifest: Manifest | None


def _ignore(names: Sequence[str]) -> None:
    """Ignore bad files."""


def read_header(path: Root) -> Header:
    """Return a store's header from its manifest or, if that is lost, from its root.

    Raises:
        IncompleteStoreError: the store does not exist.
        CorruptStoreError: neither can be read.
    """
    location = Location(path)
    with suppress(CorruptStoreError, IncompleteStoreError):
        return Manifest.read(location).header
    return Header.read(location)


def repair(
    path: Root,
    context: RunContext,
    teacher: Teacher,
    *,
    about_to_mend: Callable[[Sequence[str]], None] = _ignore,
) -> list[str]:
    """Make bad files of a store again, and complete the store.

    All checks precede the first change of a file. The proof of the good files (the manifest, or header and
    records) exists at every moment, so an interrupted repair can run again.

    Args:
        path: the store's folder, complete or not.
        context: the store's data and the device.
        teacher: the store's teacher.
        about_to_mend: called with the names of the bad files before any of them is touched.

    Returns:
        One line per file that was rewritten, removed or moved away.

    Raises:
        MismatchError: the data or the teacher is not the store's.
        StoreError: a lost file cannot be rebuilt.
    """
    path = behind_links(path)
    with ExitStack() as held:
        if isinstance(path, Path):
            require_own_folders(path)
        found_before = half_written(path)
        with gate(path, WAIT_SECONDS, free_of=WHOLE):
            # Every other writer waits for this lock, so the gate is not needed for the rest.
            held.enter_context(writing(path, WHOLE))
            with suppress(CorruptStoreError):  # a bad manifest, repaired below
                clean(path, found_before)
        found = _examine(path)
        header, layout = found.header, found.header.layout
        header.require_teacher(teacher.described(), str(path))
        spec = DumpSpec.of(header, path)
        if not found.faults and at(path).exists(MANIFEST):
            return []
        index, lost = _index(path, header, context.data)
        context = replace(context, data=_known(context.data, index))
        bad = {fault.shard for fault in found.faults if fault.shard}
        to_make = bad | (set(layout.shards()) - set(found.records))
        rows = places(layout, index, splits_of(context.data))
        require_samples(path, layout, rows, to_make)
        good = {shard: record for shard, record in found.records.items() if shard not in bad}
        require_same_pixels(context, teacher, path, header, rows, good)
        state, also_lost = _state(path, header, context, teacher)
        faults = [*found.faults, *lost, *also_lost]
        about_to_mend([fault.name for fault in faults])
        _mend(path, replace(found, faults=faults), index, state)
    note(f"{path}: {counted(len(faults), 'file')} to rewrite, remove or move away")
    cache_logits(context, teacher, spec, path)
    return [_done_about(path, fault) for fault in faults]


def _mend(path: Root, found: _Findings, index: Index, state: Mapping[str, Tensor]) -> None:
    """Remove bad files and the manifest, which leaves an incomplete store for the dump to complete."""
    if found.manifest is not None:
        _keep_proof(path, found.manifest)
    for fault in found.faults:
        if _is_foreign(fault):
            _move_away(path, fault.name)
        elif fault.name not in (ZARR_JSON, MANIFEST, GATHERED) and catalogue_digest(fault.name) is None:
            at(path).delete([fault.name])
    build_frame(path, found.header, index=index, state=state)
    at(path).delete([MANIFEST])


def _keep_proof(path: Root, manifest: Manifest) -> None:
    """Write each catalogue that can be read, and its copy, unless whole: they outlive the manifest."""
    for span in manifest.layout.spans():
        with suppress(CorruptStoreError, IncompleteStoreError):
            Records(path).put(manifest.catalogue(span))


def _is_foreign(fault: Fault) -> bool:
    """Whether a stray file was written by some other program."""
    return fault.problem == STRAY and not is_shard_file(fault.name)


def _move_away(path: Root, name: str) -> None:
    if not isinstance(path, Path):
        at(path).move([name], at(_strays_folder(path)))
        return
    target = path.with_name(f"{path.name}{_STRAYS}") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    numbered = (target.with_name(f"{target.name}.{number}") for number in itertools.count(1))
    free = next(place for place in itertools.chain([target], numbered) if not os.path.lexists(place))
    # `move` copies if the store is a mount point, across which `rename` fails.
    shutil.move(path / name, free)


def _strays_folder(path: Root) -> Root:
    if isinstance(path, Path):
        return path.with_name(f"{path.name}{_STRAYS}")
    return next(path.parents()).below(f"{str(path).rpartition('/')[2]}{_STRAYS}")


def _done_about(path: Root, fault: Fault) -> str:
    verb, _, rest = fault.problem.partition(" ")
    found = f"{fault.name}, which {_PAST.get(verb, verb)} {rest}"
    if _is_foreign(fault):
        return f"moved to {_strays_folder(path)}: {found}"
    return f"{'removed' if fault.problem == STRAY else 'rewritten'}: {found}"


def _examine(path: Root) -> _Findings:
    """Check a store against its manifest or, if that is lost, against its header and records."""
    if isinstance(path, Path):
        require_own_folders(path)
    location = Location(path)
    manifest = None
    with suppress(CorruptStoreError, IncompleteStoreError):
        manifest = Manifest.read(location, copies=True)
    if manifest is None:
        header = Header.read(location)
        records = Records(path).read(header)
        # Only a manifest proves the metadata of arrays; the header has digests of index and codec.
        metadata = [
            name for name in sorted(frame_files(path)) if _only_manifest_proves(header.layout, name)
        ]
        faults = [Fault(name, "is not covered by a manifest") for name in metadata]
    else:
        header, records = manifest.header, manifest.readable()
        metadata = sorted({**manifest.metadata, **manifest.catalogue_files()})
        faults = list(metadata_faults(location, {**manifest.metadata, **manifest.catalogue_files()}))
    layout = header.layout
    faults += shard_faults(location, layout, records)
    shards = {str(layout.shard_file(s, array)) for s in layout.shards() for array in layout.arrays}
    known = {MANIFEST, GATHERED, *metadata, *frame_files(path), *shards}
    faults += (stray for stray in strays(path, known) if not is_passing(stray.name))
    return _Findings(header, records, faults, manifest)


def _only_manifest_proves(layout: Layout, name: str) -> bool:
    section, _, rest = name.partition("/")
    return section in layout.sections and rest.partition("/")[0] not in INDEX_ARRAYS


def _index(path: Root, header: Header, data: PreparedData) -> tuple[Index, list[Fault]]:
    """Return the samples of a store; if its index is lost, those of the data and the lost files."""
    with suppress(CorruptStoreError):
        return read_index(path, header), []
    splits = splits_of(data)
    layout = header.layout
    index = {
        name: SampleIndex.of(splits[name], labels=layout.keeps_labels)
        for name in layout.sections
        if name in splits
    }
    if not is_described(index, header):
        raise StoreError(
            f"{path}: the sample index is lost, and samples or labels of the data differ from those of the "
            f"dump, so it cannot be rebuilt; {_CANNOT}"
        )
    return index, _lost(path, lambda name: name.split("/")[1] in INDEX_ARRAYS)


def _known(data: PreparedData, index: Index) -> PreparedData:
    """Restrict the data to the samples of a store: a repair adds none."""
    splits: dict[str, Any] = {
        name: images.subset(np.flatnonzero(index[name].find(images.keys) != ABSENT))
        for name, images in splits_of(data).items()
        if name in index
    }
    return replace(data, **splits)


def _state(
    path: Root, header: Header, context: RunContext, teacher: Teacher
) -> tuple[Mapping[str, Tensor], list[Fault]]:
    """Return the codec's state; if it is lost, that of a new pilot and the lost files."""
    with suppress(CorruptStoreError):
        return header.codec(read_state(path, header.layout), str(path)).state, []
    codec, *_ = choose(context, teacher, DumpSpec.of(header, path))
    if codec_fingerprint(codec) != header.fingerprint.codec:
        raise StoreError(
            f"{path}: the codec's shared arrays are lost, and the pilot does not reproduce them; use the "
            f"machine and versions of the dump; otherwise {_CANNOT}"
        )
    return codec.state, _lost(path, lambda name: name.startswith(f"{CODEC_GROUP}/"))


def _lost(path: Root, which: Callable[[str], bool]) -> list[Fault]:
    names = sorted(name for name in frame_files(path) if "/" in name and which(name))
    return [Fault(name, "has changed, or belongs to a group of files that has") for name in names]
