"""Several processes make the training shards of one dump, on any machines that reach data and store.

    run_shared_dump(context, path, crew)       the command
        crew.begin()                  ->       DumpWorker.begin   plan, pilot, frame, held-out shards
        units_of(missing shards)
        crew.make(begun, units)       ->       DumpWorker.make    the shards of one unit, again and again
        complete(path)                         catalogues and manifest

An engine, e.g. Ray, is a `Crew`: it starts the workers, gives each one a unit at a time, and repeats units
whose worker died. Shards are written once, under conditions, so that a unit may be made twice, and whoever
runs the command again finds what is written. This module knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Protocol

from pipeline.core.errors import MismatchError, StoreError
from pipeline.core.hashing import canonical_json, difference
from pipeline.core.progress import note, track
from pipeline.dump.open import complete, require_resumable
from pipeline.dump.plan import DumpPlan
from pipeline.dump.run import begin_dump, found_complete
from pipeline.dump.shards import ShardMaker
from pipeline.evaluation.context import RunContext
from pipeline.places.folder import Root
from pipeline.store.growth import is_complete, tell_pending
from pipeline.store.header import Header
from pipeline.store.layout import ShardId
from pipeline.store.lock import WAIT_SECONDS, WHOLE, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import behind_links
from pipeline.store.records import versions
from pipeline.store.writer import StoreWriter

# Shards that one worker makes in one go: views of one block.
Unit = tuple[ShardId, ...]
# Units per worker at least, if there are so many shards: the last ones then end at about the same time.
_UNITS_A_WORKER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A dump whose store has its frame and its held-out shards.

    Args:
        header: the store's planned content.
        versions: of the decoder, torch and torchvision where the held-out shards were made.
    """

    header: Header
    versions: Mapping[str, str]


class DumpWorker:
    """One process that makes shards of a dump; the command holds the store's lock for all of them.

    Args:
        path: the store's folder or place.
        plan: plans the dump with this process's data, teacher and device.
    """

    def __init__(self, path: Root, plan: Callable[[], DumpPlan]) -> None:
        self._path, self._plan = behind_links(path), plan
        self._maker: ShardMaker | None = None

    def begin(self, sharing: int = 1) -> Begun:
        """Open the store and make its held-out shards; done once, by one worker.

        Args:
            sharing: number of workers, for the forecast of the time.

        Raises:
            ModelError, MismatchError, LockedError: see `run_dump`.
        """
        with ExitStack() as held:
            self._maker, planned = begin_dump(self._path, self._plan, WHOLE, held, sharing=sharing)
        return Begun(header=planned.header, versions=_versions(planned))

    def make(self, begun: Begun, unit: Unit) -> None:
        """Make the missing shards of a unit.

        Raises:
            MismatchError: this process has a different teacher, other data or versions than the first one,
                or its samples render differently.
            DataError, ModelError: see `ShardMaker.make`.
        """
        if self._maker is None:
            self._maker = self._join(begun)
        self._maker.make(unit)

    def _join(self, begun: Begun) -> ShardMaker:
        planned = self._plan()
        for what, theirs, ours in (
            ("software", dict(begun.versions), _versions(planned)),
            ("data or parameters", begun.header.to_dict(), planned.header.to_dict()),
        ):
            if differing := difference(json.loads(canonical_json(theirs)), ours):
                raise MismatchError(
                    f"{self._path}: a worker has different {what} than the first one: {differing}; give "
                    "all machines the same versions, project folder and data, and run the command again"
                )
        require_resumable(planned)
        return ShardMaker(planned)


class Crew(Protocol):
    """Workers that an engine started."""

    @property
    def size(self) -> int:
        """Number of workers."""

    def begin(self) -> Begun:
        """Let one worker begin the dump; see `DumpWorker.begin`."""

    def make(self, begun: Begun, units: Sequence[Unit]) -> Iterator[Unit]:
        """Let all workers make units; yield each one when its shards are written, in any order."""


def run_shared_dump(context: RunContext, path: Root, crew: Crew, *, by_view: bool = False) -> Manifest:
    """Run a dump whose shards a crew makes; a complete store stays unchanged.

    Args:
        context: the data and the task, for the figures of the manifest; its device is not used.
        path: the store's folder or place.
        crew: the workers.
        by_view: finish each view before the next one, as `run_dump` does.

    Raises:
        StoreError: finished shards have disappeared.
        LockedError: another process is writing the store.
    """
    path = behind_links(path)
    begun = crew.begin()
    header = begun.header
    if is_complete(path, header):
        return found_complete(path)
    with ExitStack() as held:
        with gate(path, WAIT_SECONDS, free_of=WHOLE):
            held.enter_context(writing(path, WHOLE))
        train = [shard for shard in header.layout.shards() if shard.section == "train"]
        missing = StoreWriter(path, header).missing(train)
        if 0 < len(missing) < len(train):
            note(f"resuming: {len(train) - len(missing)} of {len(train)} shards are done")
        units = units_of(missing, crew.size, by_view=by_view)
        made = chain.from_iterable(crew.make(begun, units))
        for _ in track(made, "dump", total=len(missing), unit="shard"):
            pass
    judged = replace(context, task=context.task.restored(header.layout.measures))
    manifest = complete(path, header, judged, completes=True)
    if manifest is None:
        raise StoreError(f"{path}: finished shards have disappeared; run the command again to rewrite them")
    tell_pending(path)
    return manifest


def units_of(shards: Sequence[ShardId], workers: int, *, by_view: bool = False) -> list[Unit]:
    """Cut shards into units: views of one block, which is decoded once for all of them.

    Units are smaller if there would be fewer than four per worker.

    Args:
        shards: to make, all views of a block in turn.
        workers: number of workers.
        by_view: order units by view, one shard each.

    Example: two blocks of four views for one worker.
        >>> from pipeline.store.layout import ShardId
        >>> shards = [ShardId("train", view, block) for block in (0, 1) for view in range(4)]
        >>> [[str(shard) for shard in unit] for unit in units_of(shards, 1)][:2]
        [['train.v00000.b00000', 'train.v00001.b00000'], ['train.v00002.b00000', 'train.v00003.b00000']]
    """
    if by_view:
        return [(shard,) for shard in sorted(shards)]
    most = max(1, len(shards) // (_UNITS_A_WORKER * workers))
    units: list[Unit] = []
    for _, block in groupby(shards, lambda shard: shard.block):
        views = tuple(block)
        units += [views[start : start + most] for start in range(0, len(views), most)]
    return units


def _versions(planned: DumpPlan) -> dict[str, str]:
    return versions(planned.context.data.train.decoder)
