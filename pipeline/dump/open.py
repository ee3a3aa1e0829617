"""Opening a store for writing: a new one, or one that is there and may have to grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import Codec, codec_fingerprint, find_codec
from pipeline.core.errors import CorruptStoreError, LockedError, MismatchError
from pipeline.core.files import sync_folder
from pipeline.core.progress import note
from pipeline.dump.choose_codec import choose_codec, run_pilot
from pipeline.dump.decode_ahead import fitting_shard_rows
from pipeline.dump.spec import DumpSpec, counts_of, splits_of
from pipeline.evaluation.context import Bench
from pipeline.loading.drift import measure_drift, sightings
from pipeline.loading.feed import Feed
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.teacher import Teacher
from pipeline.places.location import Location
from pipeline.samples.dataset import PreparedData
from pipeline.samples.packed import Images
from pipeline.samples.samples import UNLABELLED
from pipeline.store.arrays import RESTORE
from pipeline.store.frame import build_frame, read_state
from pipeline.store.growth import (
    frame_folder,
    growth_folder,
    is_complete,
    is_growing,
    prepare_growth,
    read_growth,
)
from pipeline.store.header import Fingerprint, Header
from pipeline.store.index import ABSENT, Index, SampleIndex, Wanted, adopt, dataset_digest, read_index
from pipeline.store.layout import MANIFEST, ZARR_JSON, Layout, Section, ShardId, default_shard_rows
from pipeline.store.lock import writers
from pipeline.store.manifest import Manifest
from pipeline.store.place import (
    clean,
    clear_unfinished_frame,
    discard,
    partial_folder,
    require_store_or_nothing,
)
from pipeline.store.reader import LogitStore
from pipeline.store.records import Records, ShardRecord, versions
from pipeline.store.writer import StoreWriter


def open_for_writing(bench: Bench, teacher: Teacher, spec: DumpSpec, path: Path) -> tuple[Header, Codec]:
    """Bring a store into the form that a spec asks for; to be called at its gate.

    Returns:
        What the store is to hold, and its codec. Where it is complete, but with less, that is its growth's.

    Raises:
        MismatchError: there is a store made from something else.
        LockedError: it is to grow while others write it.
        StoreError: the folder holds something that is no store.
    """
    require_store_or_nothing(path)
    clean(path, alone=not writers(path))
    if not (path / ZARR_JSON).exists():
        return _create(bench, teacher, spec, path)
    header, index, codec = as_wanted(bench, teacher, spec, path)
    if not is_complete(path, header):
        shards, done = list(header.layout.shards()), finished_shards(path)
        rows = places(header.layout, index, splits_of(bench.data))
        require_samples(path, header.layout, rows, (s for s in shards if s not in done))
        require_same_pixels(bench, teacher, path, header, rows, {s: done[s] for s in shards if s in done})
        _grow(path, header, index, codec.state)
    return header, codec


def as_wanted(bench: Bench, teacher: Teacher, spec: DumpSpec, path: Path) -> tuple[Header, Index, Codec]:
    """Return header, samples and codec of a store that is there with what a spec adds to it.

    What its growth has begun is part of that, unless the store already holds all that is wanted.

    Raises:
        MismatchError: it is made from something else.
        CorruptStoreError: it is damaged.
    """
    frame, wanted = frame_folder(path), _wanted(bench, teacher, spec)
    found = Header.read(Location(frame))
    codec = found.codec(read_state(frame, found.layout), str(path))
    known = read_index(frame, found)
    if not (path / MANIFEST).exists() and not is_growing(path):
        # Nobody relies on its views yet: those beyond what is wanted are set aside.
        found = found.with_views(min(found.layout.sections["train"].n_views, wanted.view_count))
    header, index = adopt(path, found, known, wanted)
    if header != found and is_growing(path):
        header, index = _as_begun(path, found, known, wanted)
    return header, index, codec


def _as_begun(path: Path, found: Header, known: Index, wanted: Wanted) -> tuple[Header, Index]:
    """Return header and samples of a store's growth with what is wanted; it may be of fewer views.

    Raises:
        CorruptStoreError: there is no manifest, or the growth is damaged.
        MismatchError: it is not of this store, or other samples are wanted.
    """
    if not (path / MANIFEST).exists():
        raise CorruptStoreError(f"{path}: {MANIFEST} is missing beside an unfinished growth; {RESTORE}")
    folder, (begun, index) = growth_folder(path), read_growth(path)
    if not begun.extends(found) or not all(index[name].begins_with(some) for name, some in known.items()):
        raise MismatchError(
            f"{folder}: an unfinished growth of another store than the one around it; expected one of its "
            f"samples, teacher, views and codec; remove it with: rm -r {folder}"
        )
    return adopt(folder, begun.with_views(wanted.view_count), index, wanted)


def places(layout: Layout, index: Index, splits: Mapping[str, Images]) -> dict[str, NDArray[np.int64]]:
    """Return, for each row of each section, which sample of its split it is, or `ABSENT`.

    The data may have another order than the store, and lack some of its samples.
    """
    found = {}
    for name, section in layout.sections.items():
        found[name] = np.full(section.n_rows, ABSENT, np.int64)
        if name in splits:
            found[name][section.rows()] = SampleIndex.of(splits[name]).find(index[name].keys)
    return found


def blocks_of(layout: Layout, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the block of each of `count` training samples, given the `places` of its rows."""
    blocks = np.full(count, ABSENT, np.int64)
    there = np.flatnonzero(rows != ABSENT)
    blocks[rows[there]] = there // layout.shard_rows
    return blocks


def make_feeds(
    bench: Bench, teacher: Teacher, views: ViewSpec, layout: Layout, rows: Mapping[str, NDArray[np.int64]]
) -> dict[str, Feed]:
    """Return the images of each split as the teacher sees them.

    Args:
        bench: the data and the device.
        teacher: whose eyes.
        views: of the training images.
        layout: of the store, inside whose blocks images are mixed.
        rows: its `places`.
    """
    splits, eyes = splits_of(bench.data), teacher.card.preprocessing
    blocks = blocks_of(layout, rows["train"], len(splits["train"]))
    return {
        name: bench.feed(images, views, eyes, blocks) if name == "train" else bench.feed(images, None, eyes)
        for name, images in splits.items()
    }


def require_same_pixels(
    bench: Bench,
    teacher: Teacher,
    path: Path,
    header: Header,
    rows: Mapping[str, NDArray[np.int64]],
    done: Mapping[ShardId, ShardRecord],
) -> None:
    """Refuse to go on with a store whose finished shards show other pixels than are rendered here.

    Args:
        bench: the data and the device.
        teacher: the store's.
        path: the store's folder, before anything in it is touched.
        header: what it is to hold.
        rows: its `places`.
        done: records of its finished shards.

    Raises:
        MismatchError: saying by how much, and which versions rendered there and here.
    """
    if not done:
        return
    views, layout = ViewSpec.from_canonical(header.views), header.layout
    for name, feed in make_feeds(bench, teacher, views, layout, rows).items():
        mixes = name == "train" and views.mixes
        seen = sightings(layout, done, rows[name], name, mixes=mixes) if name in rows else []
        measure_drift(feed, seen).require_none(str(path), header.versions, feed.images.decoder)


def require_samples(
    path: Path, layout: Layout, rows: Mapping[str, NDArray[np.int64]], shards: Iterable[ShardId]
) -> None:
    """Refuse to make shards whose samples have left the data.

    Args:
        path: the store's folder.
        layout: how it is, or will be, cut.
        rows: its `places`.
        shards: those that are to be made.

    Raises:
        MismatchError: saying how many samples of which shard.
    """
    for shard in shards:
        absent = int((rows[shard.section][layout.rows(shard)] == ABSENT).sum())
        if absent:
            raise MismatchError(
                f"{path}: {absent:,} samples of shard {shard}, which is still to be made, are no longer in "
                "the data; expected the images that it was begun with; restore them or make a new dump"
            )


def finished_shards(path: Path) -> Mapping[ShardId, ShardRecord]:
    """Return the records of a store's finished shards; none where there is no store."""
    if not (path / MANIFEST).exists():
        return Records(path).read()
    return {**Manifest.read(Location(path)).shards, **Records(growth_folder(path)).read()}


def choose(bench: Bench, teacher: Teacher, spec: DumpSpec) -> Codec:
    """Return the codec of a new store: by name, or by what the pilot says."""
    if not spec.codec.needs_pilot:
        return find_codec(spec.codec.name, len(bench.data.classes))
    rows = len(bench.data.train) * spec.view_count
    chosen = choose_codec(spec.codec, run_pilot(bench, teacher, spec), teacher.head, rows)
    note(f"codec {spec.codec}: takes {chosen.codec.name}")
    return chosen.codec


def new_layout(data: PreparedData, spec: DumpSpec, codec: Codec, counts: Mapping[str, int]) -> Layout:
    """Return how a new store is cut.

    Args:
        data: what is dumped, or a sample of it.
        spec: what to dump.
        codec: of the store.
        counts: samples of each split.
    """
    sections = {
        name: Section(name=name, extents=((0, count),), n_views=spec.view_count if name == "train" else 1)
        for name, count in counts.items()
    }
    shard_rows = default_shard_rows(codec.bytes, counts["train"])
    return Layout(
        codec=codec.name,
        arrays=codec.arrays,
        n_classes=len(data.classes),
        shard_rows=spec.shard_rows or fitting_shard_rows(data.train, shard_rows),
        sections=sections,
    )


def discard_without_views(path: Path, writer: StoreWriter) -> None:
    """Remove a store in which no training view was written yet, nor is being written by others."""
    begun = any(shard.section == "train" for shard in writer.done())
    if not begun and len(writers(path)) <= 1:
        discard(path)


def _wanted(bench: Bench, teacher: Teacher, spec: DumpSpec) -> Wanted:
    return Wanted(
        teacher=teacher,
        views=spec.views,
        view_count=spec.view_count,
        codec=spec.codec,
        splits=splits_of(bench.data),
    )


def _create(bench: Bench, teacher: Teacher, spec: DumpSpec, path: Path) -> tuple[Header, Codec]:
    """Make a store without shards; it is there whole or, without its header, not at all."""
    codec = choose(bench, teacher, spec)
    wanted = _wanted(bench, teacher, spec)
    index = {name: SampleIndex.of(images) for name, images in wanted.splits.items()}
    header = Header(
        layout=new_layout(bench.data, spec, codec, counts_of(bench.data)),
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
        versions=versions(bench.data.train.decoder),
    )
    if path.is_dir():
        # It may be the root of a disk, which keeps its place.
        clear_unfinished_frame(path)
        build_frame(path, header, index=index, state=codec.state)
        return header, codec
    partial = partial_folder(path)
    build_frame(partial, header, index=index, state=codec.state)
    partial.rename(path)
    sync_folder(path.parent)
    return header, codec


def _grow(path: Path, header: Header, index: Index, state: Mapping[str, Tensor]) -> None:
    """Make room for further views or samples, or go on with making it."""
    complete = (path / MANIFEST).exists()
    there = growth_folder(path) if complete and is_growing(path) else path
    if header != Header.read(Location(there)) and (others := writers(path)):
        raise LockedError(
            f"{path}: is to grow while slice {others[0]} is being written; expected no other writer; wait "
            "for it, or end it and run the command again"
        )
    prepare = prepare_growth if complete else build_frame
    prepare(path, header, index=index, state=state)


# Completing a store: when nothing is missing any more, the manifest says so.


def complete(path: Path, header: Header, splits: dict[str, Images], *, completes: bool) -> Manifest | None:
    """Complete a store that lacks nothing; its held-out logits, read back, tell the teacher's accuracy.

    Args:
        path: the store's folder.
        header: what it is to hold.
        splits: the data.
        completes: whether to do so; say how much is done otherwise.

    Returns:
        The manifest, or None where the store is not complete yet.
    """
    location = Location(path)
    if is_complete(path, header):
        return Manifest.read(location)
    writer = StoreWriter(path, header)
    done, total = len(writer.done()), sum(1 for _ in writer.layout.shards())
    if done < total or not completes:
        rest = "" if done < total else "; complete the store with the same command without --shards"
        note(f"{path}: {done} of {total} shards are done{rest}")
        return None
    writer.tidy()
    held_out = [name for name in splits if name != "train"]
    store = LogitStore(location, writer.manifest(dict.fromkeys(held_out)))
    cached: dict[str, float | None] = {}
    for name in held_out:
        labels, section = torch.from_numpy(splits[name].labels), store.sections[name]
        known = labels != UNLABELLED
        logits = section.logits(0, section.rows_of(splits[name]))
        hits = logits.argmax(1)[known] == labels[known]
        cached[name] = float(hits.double().mean()) if len(hits) else None
    manifest = writer.manifest(cached)
    writer.complete_with(manifest)
    _warn_of_cost(path, manifest)
    return manifest


def _warn_of_cost(path: Path, manifest: Manifest) -> None:
    """Say so if the codec cost more than the pilot promised."""
    budget, fidelity = manifest.header.codec_spec.budget, manifest.fidelity()
    if budget is not None and not fidelity.within(budget):
        figures = fidelity.summary()
        note(
            f"{path}: over its budget: mean KL {figures['kl_t1_mean']:.2e} at T = 1, "
            f"{figures['kl_t4_mean']:.2e} at T = 4, asked for {budget:g}; the pilot was too small or too "
            "unlike the rest; for less, make a dump with a lower max_kl"
        )
