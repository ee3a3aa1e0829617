"""Forecast the cost of a dump: bytes, files, forward passes, time and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.limits import free_disk_bytes, free_memory_bytes
from pipeline.dump.choose_codec import Candidate, choose_codec, measure, run_pilot
from pipeline.dump.plan import new_layout, plan_dump
from pipeline.dump.preflight import memory_bytes
from pipeline.dump.spec import DumpSpec, counts_of, splits_of
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher, require_same_outputs
from pipeline.places.folder import Root
from pipeline.samples.index import Form
from pipeline.store.catalogue import Catalogue
from pipeline.store.layout import MANIFEST, Layout, Span
from pipeline.store.place import require_store_or_nothing
from pipeline.store.records import PLACES, RenderChecksums, ShardRecord, checksum_rows

_INDEX_BYTES_PER_ROW = 16
# Resident bytes per sample, measured as the difference between dumps of 220,000 and 20,000 samples.
_MEMORY_PER_SAMPLE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The figures of `pipeline plan`.

    Args:
        samples: samples of all splits.
        image_bytes: bytes of packed samples; 0 if files stay encoded.
        codec: the named codec, or the pilot's choice.
        bytes_total: bytes of the finished store.
        bytes_per_sample_view: compressed bytes per training sample and view.
        files: files of the finished store.
        teacher_forwards: remaining forward passes, in samples.
        seconds_estimate: time for the remaining passes at the pilot's speed, without torch.compile.
        memory_bytes: peak resident bytes of the pilot, plus two shards, images held decoded, and the index
            of samples that the pilot's data lacks.
        disk_needed_bytes: bytes of `bytes_total` still to write.
        disk_free_bytes: free bytes on the store's disk; None in object storage.
        memory_free_bytes: memory available to this process; None if the system does not report it.
        fidelity: the codec's error on the pilot.
    """

    samples: int
    image_bytes: int
    codec: str
    bytes_total: int
    bytes_per_sample_view: float
    files: int
    teacher_forwards: int
    seconds_estimate: float
    memory_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int | None
    memory_free_bytes: int | None
    fidelity: Fidelity

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, including the mean of each divergence."""
        names = (field.name for field in fields(self) if field.name != "fidelity")
        return {**{name: getattr(self, name) for name in names}, **self.fidelity.means()}


def forecast(
    context: RunContext, teacher: Teacher, spec: DumpSpec, path: Root, samples: int | None = None
) -> Forecast:
    """Run the pilot and forecast the cost of a dump, or of the rest of an unfinished one.

    Args:
        context: the data and the device.
        teacher: the model to run.
        spec: the dump's settings.
        path: folder or place of the store, existing or not; nothing is written.
        samples: forecast a new dump of a larger dataset with this many training and validation samples, of
            which the data is an excerpt; None for the data itself.

    Raises:
        ModelError: classes do not match, or logits are not finite.
        MismatchError: the existing store has a different teacher, data, views or codec.
        ConfigError: every codec exceeds the budget.
    """
    require_same_outputs(teacher.name, teacher.card, context.data, context.task)
    spec.codec.require_link(context.task.measures)
    require_store_or_nothing(path)
    counts = counts_of(context.data, samples)
    pilot = run_pilot(context, teacher, spec, counts["train"])
    if samples is None:
        plan = plan_dump(context, teacher, spec, path, pilot=pilot)
        layout, forwards = plan.header.layout, plan.forwards
        candidate, written = measure(plan.codec, pilot, plan.context.task), plan.written_bytes
    else:
        rows, task = counts["train"] * spec.view_count, context.task.fitted(pilot.output.logits)
        candidate = choose_codec(spec.codec, pilot, task, head=teacher.head, rows=rows)
        outputs = len(teacher.card.classes), task.measures
        layout = new_layout(context.data, spec, candidate.codec, outputs, counts)
        forwards, written = sum(map(layout.n_rows, layout.shards())), 0
    total = _bytes(layout, candidate, context.data.train.form)
    return Forecast(
        samples=sum(counts.values()),
        image_bytes=_image_bytes(context.data, counts),
        codec=candidate.codec.name,
        bytes_total=total,
        bytes_per_sample_view=candidate.bytes_per_row,
        files=_files(layout, candidate),
        teacher_forwards=forwards,
        seconds_estimate=forwards * (1 / pilot.images_per_second + candidate.seconds_per_row),
        memory_bytes=memory_bytes(layout, candidate.codec, context.data.train)
        + _MEMORY_PER_SAMPLE * (sum(counts.values()) - sum(counts_of(context.data).values())),
        disk_needed_bytes=max(0, total - written) if forwards else 0,
        disk_free_bytes=free_disk_bytes(path) if isinstance(path, Path) else None,
        memory_free_bytes=free_memory_bytes(),
        fidelity=candidate.fidelity,
    )


def _image_bytes(data: PreparedData, counts: Mapping[str, int]) -> int:
    """Return the bytes of `counts` packed samples, at the mean size of the existing ones."""
    return sum(
        images.size_bytes * counts[name] // len(images)
        for name, images in splits_of(data).items()
        if name in counts and not images.decodes_at_use
    )


def _bytes(layout: Layout, candidate: Candidate, form: Form) -> int:
    logits = sum(layout.n_rows(shard) for shard in layout.shards()) * candidate.bytes_per_row
    samples = sum(section.n_samples for section in layout.sections.values())
    counts = Counter(map(layout.n_rows, layout.shards()))
    records = sum(n * _record_bytes(rows, layout, candidate, form) for rows, n in counts.items())
    return math.ceil(logits) + _INDEX_BYTES_PER_ROW * samples + candidate.state_bytes + records


def _record_bytes(rows: int, layout: Layout, candidate: Candidate, form: Form) -> int:
    """Return the bytes of a shard's record: in a catalogue and in its copy."""
    rendered = np.zeros((len(checksum_rows(rows)), *(PLACES,) * form.axes, *form.unit), form.dtype)
    record = ShardRecord(
        rows=rows,
        files=dict.fromkeys(layout.arrays, (rows, "0" * 64)),
        fidelity=candidate.fidelity,
        labelled=rows,
        correct=rows,
        checksums=RenderChecksums.of(rendered),
    )
    return 2 * len(Catalogue.of(Span("train", 0, 0, 1), [record], "0" * 64).to_bytes())


def _files(layout: Layout, candidate: Candidate) -> int:
    shards = layout.n_shards * len(layout.arrays)
    return (
        shards + len(layout.frame_files()) + candidate.state_files + 2 * layout.n_spans + len((MANIFEST,))
    )
