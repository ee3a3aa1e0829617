"""Open a store by its plan, new or growing, and complete it when no shard is missing."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import LockedError, MismatchError, StoreError
from pipeline.core.files import sync_folder
from pipeline.core.hashing import difference
from pipeline.core.progress import note
from pipeline.dump.plan import DumpPlan, places, require_samples
from pipeline.dump.spec import splits_of
from pipeline.evaluation.context import RunContext
from pipeline.loading.drift import measure_drift, picked, sightings, spread_out
from pipeline.loading.feed import Feed
from pipeline.modalities.preprocessing import Views
from pipeline.modalities.table import read_views
from pipeline.models.teacher import Teacher
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.store.frame import begin_frame, build_frame
from pipeline.store.growth import (
    forget_work,
    growth_folder,
    is_complete,
    is_growing,
    prepare_growth,
)
from pipeline.store.header import Header
from pipeline.store.index import ABSENT, Index
from pipeline.store.labels import labels_at_dump
from pipeline.store.layout import MANIFEST, ZARR_JSON, Layout, ShardId
from pipeline.store.ledger import Done
from pipeline.store.leftovers import half_written
from pipeline.store.lock import PREPARATION_SECONDS, WHOLE, forget_killed, gate, has_locks, writers, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import (
    clean,
    discard,
    partial_folder,
    require_store_or_nothing,
)
from pipeline.store.reader import LogitStore
from pipeline.store.records import Recorded
from pipeline.store.writer import StoreWriter
from pipeline.tasks.task import Task

_ATTEMPTS = 10


def clean_up(path: Root, wait_seconds: float) -> None:
    """Remove the leftovers of killed writers; they are looked for before the store's gate is held.

    Args:
        path: the store's folder.
        wait_seconds: maximum wait at the gate.

    Raises:
        StoreError: the folder holds something other than a store.
        LockedError: another process still holds the gate.
    """
    require_store_or_nothing(path)
    found = half_written(path)
    with gate(path, wait_seconds):
        forget_killed(path)
        clean(path, () if writers(path) else found)


def require_resumable(plan: DumpPlan) -> None:
    """Refuse data that lacks samples of missing shards, or renders differently from the finished ones.

    Raises:
        MismatchError: samples are missing from the data, or they render differently from the teacher's.
    """
    if plan.is_new or is_complete(plan.path, plan.header):
        return
    rows = places(plan.header.layout, plan.index, splits_of(plan.context.data))
    require_samples(plan.path, plan.header.layout, rows, plan.missing)
    require_same_pixels(plan.context, plan.teacher, plan.path, plan.header, rows, plan.done)


def open_store(plan: DumpPlan) -> None:
    """Create or grow a store to match its plan; the caller holds the store's gate.

    A frame that stands already is not read: how long the gate is held does not depend on the shards.

    Raises:
        LockedError: the store should grow while other processes write it.
    """
    path = plan.path
    if plan.is_new:
        _create(plan)
    elif not (plan.is_framed or is_complete(path, plan.header)):
        _grow(path, plan.header, plan.index, plan.codec.state)


def blocks_of(layout: Layout, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the block of each of `count` training samples (count,), given the `places` of store rows.

    Example: with shard_rows = 2, rows [3, 0, ABSENT, 1] give blocks [0, 1, ABSENT, 0].
    """
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
    """Return a feed per split, with the teacher's preprocessing.

    Args:
        context: the data and the device.
        teacher: owner of the preprocessing.
        views: views of the training samples.
        layout: the store's layout; samples are mixed only within a block.
        rows: the store's `places`.
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
    path: Root,
    header: Header,
    rows: Mapping[str, NDArray[np.int64]],
    done: Mapping[ShardId, Recorded],
) -> None:
    """Refuse to resume a store if its samples render differently here than in its finished shards.

    Args:
        context: the data and the device.
        teacher: the store's teacher.
        path: the store's folder, still untouched.
        header: the store's planned content.
        rows: the store's `places`.
        done: its finished shards.

    Raises:
        MismatchError: names the difference and the versions that rendered then and now.
    """
    if not done:
        return
    views, layout = read_views(header.views, header.teacher, path), header.layout
    for name, feed in make_feeds(context, teacher, views, layout, rows).items():
        mixes = name == "train" and views.mixes
        shards = [shard for shard in done if shard.section == name and layout.holds(shard)]
        records = ((shard, done[shard]) for shard in picked(shards))
        seen = sightings(layout, records, rows[name], name, mixes=mixes) if name in rows else []
        measure_drift(feed, spread_out(seen)).require_none(str(path), header.versions, feed.images.decoder)


def discard_without_views(path: Root, writer: StoreWriter) -> None:
    """Remove a store without training shards, unless another process is, or may be, writing it."""
    begun = writer.is_growing or any(shard.section == "train" for shard in writer.begun())
    if has_locks(path) and not begun and len(writers(path)) <= 1:
        discard(path)


def _create(plan: DumpPlan) -> None:
    """Create a store without shards; of several writers at once, one does, and the others follow it.

    In a folder it appears whole: a killed run leaves no header, so no store. In object storage the header
    comes first, and whoever wants the same store completes its frame.

    Raises:
        MismatchError: another writer has just created a different store.
    """
    path, index, state = plan.path, plan.index, plan.codec.state
    if isinstance(path, Path) and not path.is_dir():
        created = _create_folder(plan, path)
    else:
        if isinstance(path, Path):
            # An existing folder may be a mount point, which cannot be renamed over.
            begin_frame(path, plan.header, index=index, state=state)
        created = at(path).put_if_absent(ZARR_JSON, plan.header.to_bytes()) is not None
    if not created:
        _require_same_header(path, plan.header)
    # Completes the frame of objects, and of a folder that another process, without working locks, took
    # for a killed run's and emptied as it was built.
    begin_frame(path, plan.header, index=index, state=state)


def _create_folder(plan: DumpPlan, path: Path) -> bool:
    """Build a store beside its place and rename it, which fails if another process has created one."""
    for last in (*(False,) * _ATTEMPTS, True):
        partial = partial_folder(path)
        try:
            build_frame(partial, plan.header, index=plan.index, state=plan.codec.state)
            partial.rename(path)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError) or not partial.exists()
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            # Without working locks another process may take the folder for a killed run's, and remove it.
            if last or not gone:
                raise
        else:
            sync_folder(path.parent)
            return True
    raise AssertionError


def _require_same_header(path: Root, header: Header) -> None:
    found = Header.read(Location(path))
    if not found.says_the_same_as(header):
        raise MismatchError(
            f"{path}: another process has just created this store, and it differs: "
            f"{difference(found.to_dict(), header.to_dict())}; give all writers the same parameters, data "
            "and versions, or choose a different --out"
        )


def _grow(path: Root, header: Header, index: Index, state: Mapping[str, Tensor]) -> None:
    """Prepare a store for more views or samples, or resume an interrupted preparation."""
    complete = at(path).exists(MANIFEST)
    there = growth_folder(path) if complete and is_growing(path) else path
    if header != Header.read(Location(there)) and (others := writers(path)):
        raise LockedError(
            f"{path}: cannot grow while slice {others[0]} is being written; wait for that process, or "
            "stop it and run the command again"
        )
    prepare = prepare_growth if complete else build_frame
    prepare(path, header, index=index, state=state)


# Completion: the manifest is written last and marks a store without missing shards.


def complete(path: Root, header: Header, context: RunContext, *, completes: bool) -> Manifest | None:
    """Complete a store without missing shards, and measure the teacher on its stored held-out logits.

    Args:
        path: the store's folder or place.
        header: the store's planned content.
        context: the data and its task.
        completes: write the manifest; if False, only report progress.

    Returns:
        The manifest, or None if the store is still incomplete.
    """
    try:
        manifest = None if is_complete(path, header) else _complete(path, header, context, completes)
    except (StoreError, OSError):
        # Without locks another process may complete the store meanwhile, and remove its records.
        if not is_complete(path, header):
            raise
        manifest = None
    if manifest is not None:
        _warn_of_cost(path, manifest, context.task)
    elif is_complete(path, header):
        manifest = Manifest.read(Location(path))
        # Without locks, or with some that do not work, this process may have written a record after that.
        forget_work(path, manifest)
    return manifest


def _complete(path: Root, header: Header, context: RunContext, completes: bool) -> Manifest | None:
    """Complete a store; nothing is returned if shards are missing, or another process completes it."""
    writer = StoreWriter(path, header)
    finished, total = writer.done(), writer.layout.n_shards
    done = len(finished)
    if done < total or not completes:
        last = "complete the store with the same command without --shards"
        rest = f"; {last}" if done == total else f"; when all are, {last}"
        note(f"{path}: {done} of {total} shards are done{rest}")
        return None
    with ExitStack() as held:
        # No shard is missing, so that no other process has anything to write, or to complete.
        with gate(path, PREPARATION_SECONDS, free_of=WHOLE, writers_seconds=PREPARATION_SECONDS):
            held.enter_context(writing(path, WHOLE))
            if is_complete(path, header):
                return None
        return _completed(path, writer, finished, context)


def _completed(path: Root, writer: StoreWriter, finished: Done, context: RunContext) -> Manifest:
    """Write catalogues and manifest of a store without missing shards."""
    location = Location(path)
    writer.tidy()
    splits = splits_of(context.data)
    held_out = [name for name in splits if name != "train"]
    manifest = writer.manifest(dict.fromkeys(held_out), finished)
    store = LogitStore(location, manifest)
    cached: dict[str, float | None] = {}
    for name in held_out:
        section = store.sections[name]
        outputs = section.logits(0, section.rows_of(splits[name]))
        labels = labels_at_dump(section.index, splits[name], store.n_classes)
        cached[name] = context.task.quality(outputs, labels)
    manifest = replace(manifest, teacher_top1={**manifest.teacher_top1, "cached": cached})
    with gate(path, PREPARATION_SECONDS):
        writer.publish(manifest)
    forget_work(path, manifest)
    return manifest


def _warn_of_cost(path: Root, manifest: Manifest, task: Task) -> None:
    """Warn if the codec exceeded its budget over the whole dump, e.g. after an unlucky pilot."""
    budget, fidelity = manifest.header.codec_spec.budget, manifest.fidelity()
    if budget is not None and not fidelity.within(budget):
        key = "max_error" if task.measures.is_absolute else "max_kl"
        note(
            f"{path}: exceeds its error budget: {task.describe(fidelity)}; requested {budget:g}; the "
            "pilot was too small or not representative; for a smaller error, make a new dump with a lower "
            f"{key}"
        )
