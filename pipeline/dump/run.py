"""Run a dump shard by shard (one view of one block of rows) until no shard is missing.

    plan = plan_dump(context, teacher, spec, path)     # plan.py: values; nothing is written
    manifest = run_dump(plan)                        # open -> loop -> finish

The loop over shards is in `shards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from pipeline.core.errors import ConfigError, ModelError, StoreError
from pipeline.core.progress import note
from pipeline.dump.open import (
    clean_up,
    complete,
    discard_without_views,
    open_store,
    require_resumable,
)
from pipeline.dump.plan import DumpPlan, plan_dump, renewed
from pipeline.dump.preflight import Need, Rates, memory_bytes, require_room
from pipeline.dump.shards import ShardMaker
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.models.teacher import Teacher
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.store.faults import damaged, size_faults
from pipeline.store.growth import is_complete, tell_pending
from pipeline.store.layout import ZARR_JSON, ShardId
from pipeline.store.lock import PREPARATION_SECONDS, WAIT_SECONDS, WHOLE, Slice, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import behind_links, form_of


def cache_logits(
    context: RunContext,
    teacher: Teacher,
    spec: DumpSpec,
    path: Root,
    *,
    part: Slice = WHOLE,
    completes: bool = True,
    by_view: bool = False,
) -> Manifest | None:
    """Plan and run a dump; among several processes, one plans and the others follow its plan.

    See `plan_dump` and `run_dump` for arguments and errors.
    """
    plan = partial(plan_dump, context, teacher, spec, path)
    return _run(behind_links(path), plan, part, completes=completes, by_view=by_view)


def run_dump(
    plan: DumpPlan, *, part: Slice = WHOLE, completes: bool = True, by_view: bool = False
) -> Manifest | None:
    """Make the missing shards of a store; a complete store stays unchanged.

    Args:
        plan: the dump's plan.
        part: the slice of training shards for this process; others may run at the same time.
        completes: write the manifest if no shard is missing at the end.
        by_view: finish each view before the next one, for students that follow; the bytes are the same.

    Returns:
        The manifest, or None if the store is still incomplete.

    Raises:
        ModelError: the teacher's accuracy is implausibly low, or logits are not finite.
        MismatchError: the existing store has a different teacher, data, views or codec.
        LockedError: another process is writing the store.
    """
    return _run(plan.path, partial(renewed, plan), part, completes=completes, by_view=by_view)


def _run(
    path: Root, plan: Callable[[], DumpPlan], part: Slice, *, completes: bool, by_view: bool
) -> Manifest | None:
    with ExitStack() as held:
        dump, planned = begin_dump(path, plan, part, held)
        if dump is None:
            return found_complete(path)
        # Outside the gate: slices of training shards run at the same time.
        shards = planned.header.layout.shards()
        mine = part.of([shard for shard in shards if shard.section == "train"])
        # Sorted by view and block, within the part: parts are the same in either order.
        dump.make(sorted(mine) if by_view else mine)
    manifest = complete(path, planned.header, planned.context, completes=completes)
    if manifest is None and completes and part == WHOLE:
        raise StoreError(f"{path}: finished shards have disappeared; run the command again to rewrite them")
    dump.report_speed()
    if manifest is not None:
        tell_pending(path)
    return manifest


def found_complete(path: Root) -> Manifest:
    """Return the manifest of a complete store, whose files are there in their sizes; print that it is.

    Raises:
        CorruptStoreError: a shard's file is missing, or has another size.
    """
    manifest = Manifest.read(Location(path))
    shards = dict(manifest.finished(manifest.layout.shards()))
    if faults := size_faults(path, manifest.layout, shards):
        raise damaged(path, faults)
    note(f"{path}: complete, no shard is missing")
    tell_pending(path)
    return manifest


def begin_dump(
    path: Root, plan: Callable[[], DumpPlan], part: Slice, held: ExitStack, *, sharing: int = 1
) -> tuple[ShardMaker | None, DumpPlan]:
    """Plan a dump, create or grow its store, and make its held-out shards.

    Args:
        path: the store's folder or place, behind links.
        plan: makes the plan; called again if another process changes the store meanwhile.
        part: the slice of training shards that the caller makes next.
        held: gets the lock of that slice.
        sharing: number of processes that make this slice together, for the forecast of the time.

    Returns:
        A maker of its shards, or None for a complete store, and the plan.

    Raises:
        ModelError, MismatchError, LockedError: see `run_dump`.
    """
    # Slices start together: the first one plans and makes the held-out shards at the gate, the others wait
    # for it and find that work done.
    wait = WAIT_SECONDS if part == WHOLE else PREPARATION_SECONDS
    clean_up(path, wait)
    begun = None
    while begun is None:
        begun = _begin(path, plan, part, wait, held, sharing)
    return begun


def _begin(
    path: Root, plan: Callable[[], DumpPlan], part: Slice, wait: float, held: ExitStack, sharing: int
) -> tuple[ShardMaker | None, DumpPlan] | None:
    """Open a store for a slice of its shards, and make its held-out shards.

    A store that exists is planned, and compared with the data, before the gate is held: that reads every
    record. A new one is planned at the gate, so that one of several slices runs the pilot.

    Returns:
        The dump, or None for a complete store, and the plan. Nothing if another process created, grew or
        completed the store in between; then the plan is out of date.
    """
    form = form_of(path)
    ahead = plan() if at(path).exists(ZARR_JSON) else None
    if ahead is not None:
        require_room(path, _need(ahead, part, sharing, ahead.missing, ahead.rates))
        require_resumable(ahead)
    with gate(path, wait, free_of=part, writers_seconds=WAIT_SECONDS):
        if form_of(path) != form:
            return None
        planned = ahead or plan()
        if ahead is None:
            require_room(path, _need(planned, part, sharing, planned.missing, planned.rates))
        open_store(planned)
        if is_complete(path, planned.header):
            return None, planned
        held.enter_context(writing(path, part))
        try:
            dump = ShardMaker(planned)
        except StoreError:
            # Without locks another process may complete the store in between.
            if not is_complete(path, planned.header):
                raise
            return None, planned
        try:
            dump.make(list(planned.header.layout.held_out_shards()))
            dump.require_good_teacher()
        except (ModelError, ConfigError):
            # Otherwise the store of a wrong teacher or codec would block the dump of the right one.
            discard_without_views(path, dump.writer)
            raise
        if planned.rates.bytes_per_row is None:
            # The codec needed no pilot, so the held-out shards, just made, give the rates.
            missing = [shard for shard in planned.missing if shard.section == "train"]
            require_room(path, _need(planned, part, sharing, missing, dump.rates()))
    return dump, planned


def _need(plan: DumpPlan, part: Slice, sharing: int, missing: Sequence[ShardId], rates: Rates) -> Need:
    """Return the needs of missing shards: disk for all of them, time for this process's share of a part."""
    layout = plan.header.layout
    train = [shard for shard in layout.shards() if shard.section == "train"]
    others = set(train).difference(part.of(train))
    return Need.of(
        rows=sum(map(layout.n_rows, missing)),
        own_rows=sum(layout.n_rows(shard) for shard in missing if shard not in others) // sharing,
        rates=rates,
        memory_bytes=memory_bytes(layout, plan.codec, plan.context.data.train),
    )
