"""Stage one: run a teacher over every view of every sample, once, and keep its logits.

The work goes shard by shard: one view of one block of rows. Batches are fixed inside a shard, so its
bytes do not depend on where a run was interrupted. Encoding happens on the device, writing in a thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bench import Bench
from pipeline.codecs import find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.data.packed import SPLITS, PackedImages, PreparedData
from pipeline.data.sample import UNLABELLED
from pipeline.digests import spec_digest
from pipeline.errors import ModelError
from pipeline.feed import consecutive
from pipeline.models.teacher import Teacher, require_same_classes
from pipeline.progress import note, track
from pipeline.store.layout import Layout, Section, ShardId, default_shard_rows
from pipeline.store.lock import writer_lock
from pipeline.store.manifest import Fingerprint, Manifest
from pipeline.store.reader import LogitStore
from pipeline.store.writer import StoreWriter
from pipeline.views.spec import ViewSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpPlan:
    """What to dump.

    Args:
        views: which views of the training images.
        view_count: V, how many.
        codec: how logits are kept.
        batch_size: images a forward pass.
        shard_rows: samples a shard; None suits it to the dataset.
        allow_poor_teacher: accept a teacher that knows little more than the largest class.
    """

    views: ViewSpec
    view_count: int
    codec: str
    batch_size: int = 256
    shard_rows: int | None = None
    allow_poor_teacher: bool = False


def cache_logits(bench: Bench, teacher: Teacher, plan: DumpPlan, path: Path) -> Manifest:
    """Make a store, or go on with an unfinished one; a complete one is left as it is.

    Args:
        bench: the data and the device.
        teacher: whose logits.
        plan: what to dump.
        path: the store's folder.

    Raises:
        ModelError: classes do not match, the teacher is too poor to be right, or logits are not finite.
        MismatchError: there is a store made from something else.
        LockedError: another process is writing it.
    """
    require_same_classes(teacher.name, teacher.card, bench.data)
    splits = {name: getattr(bench.data, name) for name in SPLITS if len(getattr(bench.data, name))}
    layout = _layout(bench.data, plan, splits)
    fingerprint = Fingerprint(
        dataset=spec_digest({name: images.digest() for name, images in splits.items()}),
        teacher=teacher.digest(),
        views=plan.views.digest(),
        codec=find_codec(plan.codec, layout.n_classes).fingerprint(),
    )
    with writer_lock(path):
        writer = StoreWriter(
            path,
            layout,
            fingerprint=fingerprint,
            teacher={"name": teacher.name, "precision": teacher.precision, **teacher.card.to_dict()},
            views=plan.views.canonical(),
            splits=splits,
        )
        if writer.complete:
            note(f"{path}: complete, nothing to do")
            return Manifest.read(path)
        try:
            _Dump(bench, teacher, plan, writer, splits).run()
        except ModelError:
            # A wrong teacher must not stand in the way of the right one.
            writer.discard_without_views()
            raise
        return _finish(writer, splits)


def _layout(data: PreparedData, plan: DumpPlan, splits: dict[str, PackedImages]) -> Layout:
    n_classes = len(data.classes)
    codec = find_codec(plan.codec, n_classes)
    rows = plan.shard_rows or default_shard_rows(codec, len(data.train))
    sections = {
        name: Section(name=name, n_samples=len(images), n_views=plan.view_count if name == "train" else 1)
        for name, images in splits.items()
    }
    return Layout(codec=plan.codec, n_classes=n_classes, shard_rows=rows, sections=sections)


class _Dump:
    """The missing shards of a store, made one after the other."""

    def __init__(
        self,
        bench: Bench,
        teacher: Teacher,
        plan: DumpPlan,
        writer: StoreWriter,
        splits: dict[str, PackedImages],
    ) -> None:
        self._teacher, self._plan, self._writer, self._splits = teacher, plan, writer, splits
        self._codec = find_codec(plan.codec, writer.layout.n_classes)
        eyes = teacher.card.preprocessing
        self._feeds = {
            name: bench.feed(images, plan.views if name == "train" else None, eyes)
            for name, images in splits.items()
        }

    def run(self) -> None:
        """Make every missing shard; the held-out ones first, since they tell whether to go on."""
        missing = self._writer.missing()
        total = len(list(self._writer.layout.shards()))
        if len(missing) < total:
            note(f"resuming: {total - len(missing)} of {total} shards are done")
        checked = False
        with ThreadPoolExecutor(1, thread_name_prefix="shard-writer") as pool:
            writing: Future[None] | None = None
            for shard, batches in self._batches(missing):
                if shard.section == "train" and not checked:
                    checked = _finished(writing)
                    self._require_good_teacher()
                write = self._encode(shard, batches)
                _finished(writing)
                writing = pool.submit(write)
            _finished(writing)

    def _batches(self, missing: list[ShardId]) -> Iterator[tuple[ShardId, Iterator[Tensor]]]:
        """Yield each missing shard with its image batches, which count as progress.

        Rendering runs ahead of the teacher across the shards of a section.
        """
        layout, size = self._writer.layout, self._plan.batch_size
        total = sum(layout.n_rows(shard) for shard in missing)
        steps = sum(-(-layout.n_rows(shard) // size) for shard in missing)
        progress = track(range(steps), "dump", total=total, unit="image", per_item=size)
        for section, group in itertools.groupby(missing, lambda shard: shard.section):
            cut = [(shard, consecutive(layout.n_rows(shard), size)) for shard in group]
            requests = ((s.view, layout.rows(s).start + rows) for s, batches in cut for rows in batches)
            stream = self._feeds[section].stream(requests)
            images = (batch for batch, _ in zip(stream, progress, strict=False))
            for shard, batches in cut:
                yield shard, itertools.islice(images, len(batches))

    def _encode(self, shard: ShardId, batches: Iterator[Tensor]) -> Callable[[], None]:
        """Run the teacher over a shard and return what writes it."""
        parts = []
        labels = self._splits[shard.section].labels[self._writer.layout.rows(shard)]
        fidelities, correct, row = [], 0, 0
        for images in batches:
            logits = self._teacher.logits(images)
            self._require_finite(logits, shard, row)
            encoded = self._codec.encode(logits)
            fidelities.append(Fidelity.measure(logits, self._codec.decode(encoded)))
            predicted = logits.argmax(1).cpu().numpy()
            correct += int((predicted == labels[row : row + len(logits)]).sum())
            parts.append({name: values.cpu().numpy() for name, values in encoded.items()})
            row += len(logits)
        arrays: dict[str, NDArray[Any]] = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
        return lambda: self._writer.write(
            shard,
            arrays,
            fidelity=Fidelity.total(fidelities),
            labelled=int((labels != UNLABELLED).sum()),
            correct=correct,
        )

    def _require_finite(self, logits: Tensor, shard: ShardId, row: int) -> None:
        bad = ~logits.isfinite().all(1)
        if bool(bad.any()):
            at = self._writer.layout.rows(shard).start + row + int(bad.int().argmax())
            sample = self._splits[shard.section].names[at]
            raise ModelError(
                f"teacher {self._teacher.name} gives logits that are not finite for sample {sample!r} "
                f"in view {shard.view} of {shard.section}; expected numbers; use precision: fp32 or other "
                "weights"
            )

    def _require_good_teacher(self) -> None:
        held_out = [name for name in self._splits if name != "train"]
        accuracy = self._writer.direct_top1(*held_out)
        if accuracy is None or self._plan.allow_poor_teacher:
            return
        labels = np.concatenate([self._splits[name].labels for name in held_out])
        counts = np.bincount(labels[labels != UNLABELLED])
        share = float(counts.max() / counts.sum())
        # Twice the share is out of reach when one class has half of the samples.
        expected = 2 * share if share < 0.5 else (1 + share) / 2
        if accuracy < expected:
            raise ModelError(
                f"teacher {self._teacher.name} has top-1 {accuracy:.3f} on {' and '.join(held_out)}; "
                f"the largest class has {share:.3f}, so at least {expected:.3f} was expected: wrong "
                "labels, wrong preprocessing or too little training look like this; mend it, or set the "
                "dump's allow_poor_teacher: true"
            )


def _finished(writing: Future[None] | None) -> bool:
    if writing is not None:
        writing.result()
    return True


def _finish(writer: StoreWriter, splits: dict[str, PackedImages]) -> Manifest:
    """Complete the store with the accuracy that its held-out logits give when read back."""
    held_out = [name for name in splits if name != "train"]
    store = LogitStore(writer.path, writer.manifest(dict.fromkeys(held_out)))
    cached: dict[str, float | None] = {}
    for name in held_out:
        labels = torch.from_numpy(splits[name].labels)
        known = labels != UNLABELLED
        hits = store.sections[name].logits().argmax(1)[known] == labels[known]
        cached[name] = float(hits.double().mean()) if len(hits) else None
    manifest = writer.manifest(cached)
    writer.complete_with(manifest)
    return manifest
