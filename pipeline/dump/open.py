"""Opening a store as its plan says, new or growing, and completing it when nothing is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import LockedError
from pipeline.core.files import sync_folder
from pipeline.core.progress import note
from pipeline.dump.plan import DumpPlan, places, require_samples
from pipeline.dump.spec import splits_of
from pipeline.evaluation.context import RunContext
from pipeline.loading.drift import measure_drift, sightings
from pipeline.loading.feed import Feed
from pipeline.modalities.preprocessing import Views
from pipeline.modalities.table import read_views
from pipeline.models.teacher import Teacher
from pipeline.places.location import Location
from pipeline.store.frame import build_frame
from pipeline.store.growth import (
    growth_folder,
    is_complete,
    is_growing,
    prepare_growth,
)
from pipeline.store.header import Header
from pipeline.store.index import ABSENT, Index
from pipeline.store.layout import MANIFEST, Layout, ShardId
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
from pipeline.store.records import ShardRecord
from pipeline.store.writer import StoreWriter
from pipeline.tasks.task import Task, quality


def clean_up(path: Path) -> None:
    """Settle what a killed writer left of a store; to be called at its gate.

    Raises:
        StoreError: the folder holds something that is no store.
    """
    require_store_or_nothing(path)
    clean(path, alone=not writers(path))


def open_store(plan: DumpPlan) -> None:
    """Bring a store into the form of its plan, a new one or one that grows; to be called at its gate.

    Raises:
        MismatchError: samples have left the data, or show other pixels than the teacher saw.
        LockedError: it is to grow while others write it.
    """
    path = plan.path
    if plan.is_new:
        _create(plan)
    elif not is_complete(path, plan.header):
        rows = places(plan.header.layout, plan.index, splits_of(plan.context.data))
        require_samples(path, plan.header.layout, rows, plan.missing)
        there = {shard: plan.done[shard] for shard in plan.header.layout.shards() if shard in plan.done}
        require_same_pixels(plan.context, plan.teacher, path, plan.header, rows, there)
        _grow(path, plan.header, plan.index, plan.codec.state)


def blocks_of(layout: Layout, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the block of each of `count` training samples, given the `places` of its rows."""
    blocks = np.full(count, ABSENT, np.int64)
    there = np.flatnonzero(rows != ABSENT)
    blocks[rows[there]] = there // layout.shard_rows
    return blocks


def make_feeds(
    context: RunContext,
    teacher: Teacher,
    views: Views,
    layout: Layout,
    rows: Mapping[str, NDArray[np.int64]],
) -> dict[str, Feed]:
    """Return the images of each split as the teacher sees them.

    Args:
        context: the data and the device.
        teacher: whose preprocessing.
        views: of the training images.
        layout: of the store, inside whose blocks images are mixed.
        rows: its `places`.
    """
    splits, preprocessing = splits_of(context.data), teacher.card.preprocessing
    blocks = blocks_of(layout, rows["train"], len(splits["train"]))
    return {
        name: context.feed(images, views, preprocessing, blocks)
        if name == "train"
        else context.feed(images, None, preprocessing)
        for name, images in splits.items()
    }


def require_same_pixels(
    context: RunContext,
    teacher: Teacher,
    path: Path,
    header: Header,
    rows: Mapping[str, NDArray[np.int64]],
    done: Mapping[ShardId, ShardRecord],
) -> None:
    """Refuse to go on with a store whose finished shards show other pixels than are rendered here.

    Args:
        context: the data and the device.
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
    views, layout = read_views(header.views, header.teacher, path), header.layout
    for name, feed in make_feeds(context, teacher, views, layout, rows).items():
        mixes = name == "train" and views.mixes
        seen = sightings(layout, done, rows[name], name, mixes=mixes) if name in rows else []
        measure_drift(feed, seen).require_none(str(path), header.versions, feed.images.decoder)


def discard_without_views(path: Path, writer: StoreWriter) -> None:
    """Remove a store in which no training view was written yet, nor is being written by others."""
    begun = any(shard.section == "train" for shard in writer.done())
    if not begun and len(writers(path)) <= 1:
        discard(path)


def _create(plan: DumpPlan) -> None:
    """Make a store without shards; it is there whole or, without its header, not at all."""
    path, index, state = plan.path, plan.index, plan.codec.state
    if path.is_dir():
        # It may be the root of a disk, which keeps its place.
        clear_unfinished_frame(path)
        build_frame(path, plan.header, index=index, state=state)
        return
    partial = partial_folder(path)
    build_frame(partial, plan.header, index=index, state=state)
    partial.rename(path)
    sync_folder(path.parent)


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


def complete(path: Path, header: Header, context: RunContext, *, completes: bool) -> Manifest | None:
    """Complete a store that lacks nothing; its held-out logits, read back, tell the teacher's accuracy.

    Args:
        path: the store's folder.
        header: what it is to hold.
        context: the data and its task.
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
    splits = splits_of(context.data)
    held_out = [name for name in splits if name != "train"]
    store = LogitStore(location, writer.manifest(dict.fromkeys(held_out)))
    cached: dict[str, float | None] = {}
    for name in held_out:
        section = store.sections[name]
        outputs = section.logits(0, section.rows_of(splits[name]))
        cached[name] = quality(context.task, outputs, splits[name].labels)
    manifest = writer.manifest(cached)
    writer.complete_with(manifest)
    _warn_of_cost(path, manifest, context.task)
    return manifest


def _warn_of_cost(path: Path, manifest: Manifest, task: Task) -> None:
    """Say so if the codec cost more than the pilot promised."""
    budget, fidelity = manifest.header.codec_spec.budget, manifest.fidelity()
    if budget is not None and not fidelity.within(budget):
        note(
            f"{path}: over its budget: {task.describe(fidelity)}; asked for {budget:g}; the pilot was too "
            "small or too unlike the rest; for less, make a dump with a lower max_kl"
        )
