"""What a dump will cost, before it runs: bytes, files, forward passes, time and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codecs.fidelity import Fidelity
from pipeline.core.hashing import canonical_json
from pipeline.core.limits import free_disk_bytes, free_memory_bytes
from pipeline.dump.choose_codec import Candidate, choose_codec, measure, run_pilot
from pipeline.dump.plan import new_layout, plan_dump
from pipeline.dump.preflight import memory_bytes, written_bytes
from pipeline.dump.spec import DumpSpec, counts_of, splits_of
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher, require_same_classes
from pipeline.samples.index import Form
from pipeline.store.layout import GATHERED, MANIFEST, Layout
from pipeline.store.place import require_store_or_nothing
from pipeline.store.records import PLACES, ShardRecord, Witness, witness_rows

_INDEX_BYTES_PER_ROW = 16
# Measured: resident bytes of a dump of 220,000 samples beyond those of one of 20,000, a sample.
_MEMORY_PER_SAMPLE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What `pipeline plan` tells.

    Args:
        samples: of all splits.
        image_bytes: of their packed pixels; 0 where their files stay encoded.
        codec: the one that is named, or that the pilot chose.
        bytes_total: of the finished store.
        bytes_per_sample_view: of the training logits, compressed.
        files: of the finished store.
        teacher_forwards: images that the teacher has still to see.
        seconds_estimate: for these on this machine, at the pilot's speed; it compiles nothing.
        memory_bytes: resident at most while the pilot ran, two shards, images that are held decoded, and
            what is known of samples that the pilot did not have.
        disk_needed_bytes: of `bytes_total`, what is not written yet.
        disk_free_bytes: where the store is or will be.
        memory_free_bytes: what this process may have in all; None where the system does not tell.
        fidelity: what the codec cost on the pilot.
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
    disk_free_bytes: int
    memory_free_bytes: int | None
    fidelity: Fidelity

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, with the mean of each divergence."""
        names = (field.name for field in fields(self) if field.name != "fidelity")
        return {**{name: getattr(self, name) for name in names}, **self.fidelity.means()}


def forecast(
    context: RunContext, teacher: Teacher, spec: DumpSpec, path: Path, samples: int | None = None
) -> Forecast:
    """Run the pilot and say what a dump, or what is left of it, will cost.

    Args:
        context: the data and the device.
        teacher: whose logits.
        spec: what to dump.
        path: where the store is, or will be; nothing is written.
        samples: training and validation samples of a larger dataset of which this one is a sample, and
            whose dump is then foretold as a new one; None for the data as it is.

    Raises:
        ModelError: classes do not match, or logits are not finite.
        MismatchError: there is a store made from something else.
        ConfigError: no codec keeps the budget.
    """
    require_same_classes(teacher.name, teacher.card, context.data)
    require_store_or_nothing(path)
    counts = counts_of(context.data, samples)
    pilot = run_pilot(context, teacher, spec, counts["train"])
    if samples is None:
        plan = plan_dump(context, teacher, spec, path, pilot=pilot)
        layout, forwards = plan.header.layout, plan.forwards
        candidate, written = measure(plan.codec, pilot, context.task), written_bytes(layout, plan.done)
    else:
        rows = counts["train"] * spec.view_count
        candidate = choose_codec(spec.codec, pilot, context.task, head=teacher.head, rows=rows)
        layout = new_layout(context.data, spec, candidate.codec, counts)
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
        disk_free_bytes=free_disk_bytes(path),
        memory_free_bytes=free_memory_bytes(),
        fidelity=candidate.fidelity,
    )


def _image_bytes(data: PreparedData, counts: Mapping[str, int]) -> int:
    """Return the size of so many packed images, as large on average as those that are there."""
    return sum(
        images.size_bytes * counts[name] // len(images)
        for name, images in splits_of(data).items()
        if name in counts and not images.decodes_at_use
    )


def _bytes(layout: Layout, candidate: Candidate, form: Form) -> int:
    logits = sum(layout.n_rows(shard) for shard in layout.shards()) * candidate.bytes_per_row
    samples = sum(section.n_samples for section in layout.sections.values())
    records = sum(_record_bytes(layout.n_rows(shard), layout, candidate, form) for shard in layout.shards())
    return math.ceil(logits) + _INDEX_BYTES_PER_ROW * samples + candidate.state_bytes + records


def _record_bytes(rows: int, layout: Layout, candidate: Candidate, form: Form) -> int:
    """Return the size of what is kept of a shard, once among the records and once in the manifest."""
    rendered = np.zeros((len(witness_rows(rows)), *(PLACES,) * form.axes, *form.unit), form.dtype)
    record = ShardRecord(
        rows=rows,
        files=dict.fromkeys(layout.arrays, (rows, "0" * 64)),
        fidelity=candidate.fidelity,
        labelled=rows,
        correct=rows,
        witness=Witness.of(rendered),
    ).to_dict()
    return len(canonical_json(record)) + len(json.dumps(record, indent=1))


def _files(layout: Layout, candidate: Candidate) -> int:
    shards = layout.n_shards * len(layout.arrays)
    return shards + len(layout.frame_files()) + candidate.state_files + len((MANIFEST, GATHERED))
