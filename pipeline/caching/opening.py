"""Opening a store for writing: a new one, or one that is there and may have to grow."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.bench import Bench
from pipeline.caching.choice import choose_codec
from pipeline.caching.pilot import run_pilot
from pipeline.caching.spec import DumpSpec, splits_of
from pipeline.codecs import Codec, codec_fingerprint, find_codec
from pipeline.errors import LockedError, StoreError
from pipeline.files import sync_folder
from pipeline.models.teacher import Teacher
from pipeline.progress import note
from pipeline.store.adoption import Index, Wanted, adopt, dataset_digest, read_index
from pipeline.store.frame import build_frame, read_state
from pipeline.store.header import Fingerprint, Header
from pipeline.store.index import SampleIndex
from pipeline.store.layout import MANIFEST, ZARR_JSON, Layout, Section, ShardId, default_shard_rows
from pipeline.store.location import Location
from pipeline.store.lock import writers
from pipeline.store.manifest import Manifest
from pipeline.store.records import Records, ShardRecord
from pipeline.store.writer import StoreWriter


def open_for_writing(bench: Bench, teacher: Teacher, spec: DumpSpec, path: Path) -> tuple[Header, Codec]:
    """Bring a store into the form that a spec asks for; to be called at its gate.

    Returns:
        The store's header and codec. It has a manifest only if nothing is missing.

    Raises:
        MismatchError: there is a store made from something else.
        LockedError: it is to grow while others write it.
        StoreError: the folder holds something that is no store.
    """
    if not (path / ZARR_JSON).exists():
        if path.exists() and any(path.iterdir()):
            raise StoreError(
                f"{path}: holds files but no {ZARR_JSON}; expected a store or nothing; remove it or "
                "choose another --out"
            )
        return _create(bench, teacher, spec, path)
    found = Header.read(Location(path))
    header, index, codec = as_wanted(bench, teacher, spec, path)
    if header != found:
        _grow(path, header, index, codec.state)
    return header, codec


def as_wanted(bench: Bench, teacher: Teacher, spec: DumpSpec, path: Path) -> tuple[Header, Index, Codec]:
    """Return header, samples and codec of a store that is there with what a spec adds to it.

    Raises:
        MismatchError: it is made from something else.
    """
    found = Header.read(Location(path))
    codec = found.codec(read_state(path), str(path))
    known = read_index(path, found.layout)
    header, index = adopt(path, found, known, _wanted(bench, teacher, spec))
    return header, index, codec


def choose(bench: Bench, teacher: Teacher, spec: DumpSpec) -> Codec:
    """Return the codec of a new store: by name, or by what the pilot says."""
    if not spec.codec.needs_pilot:
        return find_codec(spec.codec.name, len(bench.data.classes))
    rows = len(bench.data.train) * spec.view_count
    chosen = choose_codec(spec.codec, run_pilot(bench, teacher, spec), teacher.head, rows)
    note(f"codec {spec.codec}: takes {chosen.codec.name}")
    return chosen.codec


def new_layout(bench: Bench, spec: DumpSpec, codec: Codec) -> Layout:
    """Return how a new store is cut."""
    sections = {
        name: Section(
            name=name, extents=((0, len(images)),), n_views=spec.view_count if name == "train" else 1
        )
        for name, images in splits_of(bench.data).items()
    }
    return Layout(
        codec=codec.name,
        arrays=codec.arrays,
        n_classes=len(bench.data.classes),
        shard_rows=spec.shard_rows or default_shard_rows(codec.bytes, len(bench.data.train)),
        sections=sections,
    )


def discard_without_views(path: Path, writer: StoreWriter) -> None:
    """Remove a store in which no training view was written yet."""
    if not any(shard.section == "train" for shard in writer.done()):
        shutil.rmtree(path)


def _wanted(bench: Bench, teacher: Teacher, spec: DumpSpec) -> Wanted:
    return Wanted(
        teacher=teacher,
        views=spec.views,
        view_count=spec.view_count,
        codec=spec.codec,
        splits=splits_of(bench.data),
    )


def _create(bench: Bench, teacher: Teacher, spec: DumpSpec, path: Path) -> tuple[Header, Codec]:
    """Make a store without shards; it is there whole or not at all."""
    codec = choose(bench, teacher, spec)
    wanted = _wanted(bench, teacher, spec)
    index = {name: SampleIndex.of(images) for name, images in wanted.splits.items()}
    header = Header(
        layout=new_layout(bench, spec, codec),
        fingerprint=Fingerprint(
            dataset=dataset_digest(index),
            teacher=teacher.digest(),
            views=spec.views.digest(),
            codec=codec_fingerprint(codec),
        ),
        teacher=teacher.describe(),
        views=spec.views.canonical(),
        codec_spec=spec.codec,
        batch_size=spec.batch_size,
    )
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    build_frame(partial, header, index=index, state=codec.state)
    partial.rename(path)
    sync_folder(path.parent)
    return header, codec


def _grow(path: Path, header: Header, index: Index, state: Mapping[str, Tensor]) -> None:
    """Make room for further views or samples."""
    if others := writers(path):
        raise LockedError(
            f"{path}: is to grow while slice {others[0]} is being written; expected no other writer; wait "
            "for it, or end it and run the command again"
        )
    if (path / MANIFEST).exists():
        reopen(path, Manifest.read(Location(path)).shards)
    build_frame(path, header, index=index, state=state)


def reopen(path: Path, shards: Mapping[ShardId, ShardRecord]) -> None:
    """Turn a manifest back into records of these shards, so that others can be made."""
    records = Records(path)
    records.clear()
    for shard, record in shards.items():
        records.write(shard, record)
    (path / MANIFEST).unlink(missing_ok=True)
    sync_folder(path)
