"""The plan of a dump: existing, planned and missing shards. Values only; nothing is written.

`pipeline plan` prints it, `open.py` creates or grows the store, `shards.py` makes the missing shards, and
`repair.py` mends a store by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.codecs import Codec, codec_fingerprint, find_codec
from pipeline.codecs.rule import Measures
from pipeline.core.errors import CorruptStoreError, MismatchError
from pipeline.core.progress import note
from pipeline.dump.choose_codec import Pilot, choose_codec, run_pilot
from pipeline.dump.preflight import Rates
from pipeline.dump.read_ahead import fitting_shard_rows
from pipeline.dump.spec import DumpSpec, counts_of, splits_of
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher, require_same_outputs
from pipeline.places.addresses import removal
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.samples.packed import Split
from pipeline.store.commands import restoring
from pipeline.store.frame import has_frame, is_framed, read_state
from pipeline.store.growth import frame_folder, growth_folder, is_growing, read_growth, writing_folder
from pipeline.store.header import Fingerprint, Header
from pipeline.store.index import (
    ABSENT,
    Index,
    SampleIndex,
    Wanted,
    adopt,
    dataset_digest,
    labels_digest,
    read_index,
    require_same_making,
)
from pipeline.store.layout import (
    MANIFEST,
    SCHEMA,
    ZARR_JSON,
    Layout,
    Section,
    ShardId,
    default_shard_rows,
)
from pipeline.store.ledger import Records
from pipeline.store.manifest import Manifest
from pipeline.store.place import behind_links, require_store_or_nothing
from pipeline.store.records import Recorded, versions
from pipeline.store.shards import Joined
from pipeline.tasks.task import Task


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DumpPlan:
    """A planned dump.

    Args:
        context: the data, the device, and the task with the units that the store keeps.
        teacher: the model to run.
        spec: the dump's settings.
        path: the store's folder.
        header: the store's planned content.
        index: the store's samples, by section.
        codec: the store's codec.
        done: the finished shards.
        written_bytes: size of these.
        rates: bytes and seconds per row, from the pilot or from finished shards.
        is_new: whether the store does not exist yet.
        is_framed: whether the store's frame is already the planned one.
    """

    context: RunContext
    teacher: Teacher
    spec: DumpSpec
    path: Root
    header: Header
    index: Index
    codec: Codec
    done: Mapping[ShardId, Recorded]
    written_bytes: int
    rates: Rates
    is_new: bool
    is_framed: bool

    @property
    def missing(self) -> list[ShardId]:
        """Shards that do not exist yet."""
        return [shard for shard in self.header.layout.shards() if shard not in self.done]

    @property
    def forwards(self) -> int:
        """Remaining forward passes: one per sample and view."""
        return sum(map(self.header.layout.n_rows, self.missing))


def plan_dump(
    context: RunContext, teacher: Teacher, spec: DumpSpec, path: Root, *, pilot: Pilot | None = None
) -> DumpPlan:
    """Plan a new store, or additions to an existing one.

    Args:
        context: the data and the device.
        teacher: the model to run.
        spec: the dump's settings.
        path: the store's folder.
        pilot: chooses a new store's codec; None runs a pilot if the codec needs one.

    Raises:
        ModelError: classes do not match, or logits of the pilot are not finite.
        MismatchError: the existing store has a different teacher, data, views or codec.
        CorruptStoreError: the existing store is damaged.
        StoreError: the folder holds something other than a store.
        ConfigError: every codec exceeds the budget.
    """
    require_same_outputs(teacher.name, teacher.card, context.data, context.task)
    spec.codec.require_link(context.task.measures)
    path = behind_links(path)
    require_store_or_nothing(path)
    is_new = not at(path).exists(ZARR_JSON) or _is_claimed(context, teacher, spec, path)
    done: Mapping[ShardId, Recorded] = {}
    written_bytes = 0
    if is_new:
        header, index, codec, rates = _new(context, teacher, spec, pilot)
    else:
        header, index, codec = _extended(context, teacher, spec, path)
        done, written_bytes, rows = _finished(path, header)
        rates = Rates.of_sizes(written_bytes, rows, codec)
    return DumpPlan(
        context=replace(context, task=context.task.restored(header.layout.measures)),
        teacher=teacher,
        spec=spec,
        path=path,
        header=header,
        index=index,
        codec=codec,
        done=done,
        written_bytes=written_bytes,
        rates=rates,
        is_new=is_new,
        is_framed=not is_new and has_frame(writing_folder(path), header, codec.state),
    )


def _is_claimed(context: RunContext, teacher: Teacher, spec: DumpSpec, path: Root) -> bool:
    """Whether the store, in object storage, has a header and no whole frame yet.

    Another writer creates it, or was killed meanwhile: whoever plans the same store completes its frame.

    Raises:
        MismatchError: that writer has a different teacher, views or codec.
    """
    if at(path).has_locks or at(path).exists(MANIFEST):
        return False
    header = Header.read(Location(path))
    if is_framed(path, header.layout):
        return False
    require_same_making(path, header, _wanted(context, teacher, spec))
    return True


def renewed(plan: DumpPlan) -> DumpPlan:
    """Plan again from the store's current state; keep the plan if the store does not exist yet."""
    if plan.is_new and not at(plan.path).exists(ZARR_JSON):
        return plan
    return plan_dump(plan.context, plan.teacher, plan.spec, plan.path)


def _new(
    context: RunContext, teacher: Teacher, spec: DumpSpec, pilot: Pilot | None
) -> tuple[Header, Index, Codec, Rates]:
    """Return header, samples, codec and rates of a new store; rates are empty without a pilot."""
    codec, task, rates = choose(context, teacher, spec, pilot)
    outputs = len(teacher.card.classes), task.measures
    index = {name: SampleIndex.of(images) for name, images in splits_of(context.data).items()}
    described, views = teacher.described(), spec.views.described()
    header = Header(
        layout=new_layout(context.data, spec, codec, outputs, counts_of(context.data)),
        labels=labels_digest(index),
        fingerprint=Fingerprint(
            dataset=dataset_digest(index),
            teacher=described.digest,
            views=views.digest,
            codec=codec_fingerprint(codec),
        ),
        teacher=dict(described.plain),
        views=dict(views.plain),
        codec_spec=spec.codec,
        batch_size=spec.batch_size,
        versions=versions(context.data.train.decoder),
    )
    return header, index, codec, rates


def _extended(
    context: RunContext, teacher: Teacher, spec: DumpSpec, path: Root
) -> tuple[Header, Index, Codec]:
    """Return header, samples and codec of an existing store plus the spec's additions.

    An unfinished growth is included, unless the store already holds everything that the spec asks for.

    Raises:
        MismatchError: the store has a different teacher, data, views or codec.
        CorruptStoreError: the store is damaged.
    """
    frame, wanted = frame_folder(path), _wanted(context, teacher, spec)
    found = Header.read(Location(frame))
    codec = found.codec(read_state(frame, found.layout), str(path))
    known = read_index(frame, found)
    if not at(path).exists(MANIFEST) and not is_growing(path):
        # No reader opens an unfinished store, so a lower view_count may still drop views.
        found = found.with_views(min(found.layout.sections["train"].n_views, wanted.view_count))
    header, index = adopt(path, found, known, wanted)
    if header != found and is_growing(path):
        header, index = _as_begun(path, found, known, wanted)
    if header != found or not at(path).exists(MANIFEST):
        # A store of schema 3 keeps it until its next addition, which writes the catalogues of all shards.
        header = replace(header, schema=SCHEMA)
    return header, index, codec


def _as_begun(path: Root, found: Header, known: Index, wanted: Wanted) -> tuple[Header, Index]:
    """Return header and samples of an unfinished growth, adapted to the spec, possibly with fewer views.

    Raises:
        CorruptStoreError: the manifest is missing, or the growth is damaged.
        MismatchError: the growth belongs to a different store, or the spec has different samples.
    """
    if not at(path).exists(MANIFEST):
        raise CorruptStoreError(
            f"{path}: {MANIFEST} is missing beside an unfinished growth; {restoring(path)}"
        )
    folder, (begun, index) = growth_folder(path), read_growth(path)
    if not begun.extends(found) or not all(index[name].begins_with(some) for name, some in known.items()):
        raise MismatchError(
            f"{folder}: this unfinished growth belongs to a different store; expected the samples, "
            f"teacher, views and codec of the store around it; remove it with: {removal(folder)}"
        )
    return adopt(folder, begun.with_views(wanted.view_count), index, wanted)


def _wanted(context: RunContext, teacher: Teacher, spec: DumpSpec) -> Wanted:
    return Wanted(
        teacher=teacher.described(),
        views=spec.views.described(),
        view_count=spec.view_count,
        codec=spec.codec,
        splits=splits_of(context.data),
    )


def choose(
    context: RunContext, teacher: Teacher, spec: DumpSpec, pilot: Pilot | None = None
) -> tuple[Codec, Task, Rates]:
    """Return the codec of a new store, by name or chosen on a pilot, the task with units, and rates."""
    task = context.task
    if not (spec.codec.needs_pilot or task.needs_pilot):
        absolute = task.measures.is_absolute
        return find_codec(spec.codec.name, len(teacher.card.classes), absolute=absolute), task, Rates()
    rows = len(context.data.train) * spec.view_count
    pilot = run_pilot(context, teacher, spec) if pilot is None else pilot
    task = task.fitted(pilot.output.logits)
    chosen = choose_codec(spec.codec, pilot, task, head=teacher.head, rows=rows)
    asked = spec.codec.under(absolute=task.measures.is_absolute)
    note(f"codec {asked}: selected {chosen.codec.name}")
    return (
        chosen.codec,
        task,
        Rates(
            bytes_per_row=chosen.bytes_per_row,
            seconds_per_row=1 / pilot.images_per_second + chosen.seconds_per_row,
        ),
    )


def new_layout(
    data: PreparedData,
    spec: DumpSpec,
    codec: Codec,
    outputs: tuple[int, Measures],
    counts: Mapping[str, int],
) -> Layout:
    """Return the layout of a new store.

    Args:
        data: the data to dump, or an excerpt.
        spec: the dump's settings.
        codec: the store's codec.
        outputs: number of the teacher's outputs, and their measures.
        counts: samples per split.
    """
    sections = {
        name: Section(name=name, extents=((0, count),), n_views=spec.view_count if name == "train" else 1)
        for name, count in counts.items()
    }
    shard_rows = default_shard_rows(codec.bytes, counts["train"])
    n_outputs, measures = outputs
    return Layout(
        codec=codec.name,
        arrays=codec.arrays,
        n_classes=n_outputs,
        shard_rows=spec.shard_rows or fitting_shard_rows(data.train, shard_rows),
        sections=sections,
        measures=measures,
        keeps_labels=True,
    )


def _finished(path: Root, header: Header) -> tuple[Mapping[ShardId, Recorded], int, int]:
    """Return the finished shards of a store that exists, and their bytes and rows."""
    complete = at(path).exists(MANIFEST)
    manifest = Manifest.read(Location(path)) if complete else None
    new = Records(growth_folder(path) if complete else path).read(header)
    written, rows = sum(one.bytes for one in new.values()), sum(one.rows for one in new.values())
    if manifest is None:
        return new, written, rows
    written += manifest.size_bytes
    rows += sum(totals.rows for totals in manifest.totals.values())
    return Joined(new, manifest.shards), written, rows


def places(layout: Layout, index: Index, splits: Mapping[str, Split]) -> dict[str, NDArray[np.int64]]:
    """Return per section (n_rows,): the position in its split of each row's sample, or `ABSENT`.

    The data may be ordered differently from the store and lack some samples. For rows of samples a, b, c
    and a split [c, a], places are [1, ABSENT, 0].
    """
    found = {}
    for name, section in layout.sections.items():
        found[name] = np.full(section.n_rows, ABSENT, np.int64)
        if name in splits:
            there = SampleIndex.of(splits[name], labels=False)
            found[name][section.rows()] = there.find(index[name].keys)
    return found


def require_samples(
    path: Root, layout: Layout, rows: Mapping[str, NDArray[np.int64]], shards: Iterable[ShardId]
) -> None:
    """Refuse to make shards if the data lacks their samples.

    Args:
        path: the store's folder.
        layout: the store's current or planned layout.
        rows: the store's `places`.
        shards: the shards to make.

    Raises:
        MismatchError: names a shard and its number of missing samples.
    """
    for shard in shards:
        absent = int((rows[shard.section][layout.rows(shard)] == ABSENT).sum())
        if absent:
            raise MismatchError(
                f"{path}: {absent:,} samples of unfinished shard {shard} are no longer in the data; "
                "expected the samples that the dump started with; restore them, or make a new dump"
            )
