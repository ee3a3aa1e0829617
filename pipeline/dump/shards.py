"""Make the shards of a dump: batches, the teacher's forward pass, the codec, files.

A shard's rows are cut into batches from its first row, never across shards. Its bytes therefore depend
neither on interruptions nor on the number of processes. With batch_size 256, a shard of 600 rows:

    rows (600,) -> arrange -> batches of 256, 256, 88 -> teacher (256, C) ... -> one shard file per array

Rendering runs ahead in threads, encoding happens on the device, writing in a thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs import TeacherOutput, is_own_codec
from pipeline.core.arrays import Rows
from pipeline.core.device import RENDER_ON_CPU, naming_memory
from pipeline.core.errors import ModelError
from pipeline.core.progress import note, track
from pipeline.dump.encode import ShardBuffer, ShardBuffers
from pipeline.dump.open import make_feeds
from pipeline.dump.plan import DumpPlan, places
from pipeline.dump.preflight import Rates
from pipeline.dump.read_ahead import DecodedBlocks, PixelChecks
from pipeline.dump.spec import splits_of
from pipeline.dump.speed import Stopwatch
from pipeline.loading.feed import consecutive
from pipeline.models.teacher import CompiledTeacher
from pipeline.samples.label_forms import is_known
from pipeline.store.index import ABSENT
from pipeline.store.labels import labels_at_dump
from pipeline.store.layout import ShardId
from pipeline.store.records import RenderChecksums, checksum_rows
from pipeline.store.writer import StoreWriter, direct_top1

_LESS_MEMORY = "lower the dump's batch_size, or use precision: bf16"


class ShardMaker:
    """Make shards of a store in order."""

    def __init__(self, plan: DumpPlan) -> None:
        self._teacher, self._spec, self._codec = plan.teacher, plan.spec, plan.codec
        self._device, self._task = plan.context.device, plan.context.task
        self.writer = StoreWriter(plan.path, plan.header)
        self._splits = splits_of(plan.context.data)
        self._places = places(self.writer.layout, plan.index, self._splits)
        # Not those of the data now: the figures of all shards are by the same labels.
        n_classes = self.writer.layout.n_classes
        self._labels = {
            name: labels_at_dump(plan.index[name], images, n_classes)
            for name, images in self._splits.items()
        }
        # Feeds read from this context, whose splits hold decoded images; checks read the files themselves.
        self._decoded = DecodedBlocks(plan.context, plan.spec.batch_size)
        self._checks = PixelChecks(self._splits, plan.context.workers)
        self._stopwatch = Stopwatch(plan.spec.batch_size)
        self._feeds = make_feeds(
            self._decoded.context, plan.teacher, plan.spec.views, self.writer.layout, self._places
        )

    def make(self, shards: Sequence[ShardId]) -> None:
        """Make the missing ones among some shards.

        Raises:
            DataError: a sample differs from the prepared one.
            ModelError: logits are not finite.
        """
        missing = self.writer.missing(shards)
        if not missing:
            return
        if len(missing) < len(shards):
            note(f"resuming: {len(shards) - len(missing)} of {len(shards)} shards are done")
        note(f"{shards[0].section}: {self._feeds[shards[0].section].path}")
        rows = {shard: self._rows(shard) for shard in missing}
        with (
            self._stopwatch.running(self._forward, sum(map(len, rows.values()))),
            self._decoded.expecting(rows),
            self._checks.ending(),
            _ShardThread() as thread,
        ):
            progress = self._progress(missing)
            for _, section in itertools.groupby(missing, lambda shard: shard.section):
                self._make_section(list(section), progress, thread)

    def _make_section(self, shards: list[ShardId], progress: Iterator[int], thread: _ShardThread) -> None:
        """Make shards of one section; rendering runs ahead of the teacher, across shard borders."""
        feed = self._feeds[shards[0].section]
        buffers = ShardBuffers(self._codec, self._task, self._device)
        # One stream over all shards, so that the device never waits at the border of two shards.
        requests = ((shard.view, rows) for shard in shards for rows in self._batches(shard))
        with closing(feed.rendered(requests)) as rendered:
            for shard in shards:
                self._make_shard(shard, rendered, buffers, progress, thread)
        self._finish(buffers.finish(), thread)

    def _make_shard(
        self,
        shard: ShardId,
        rendered: Iterator[Tensor],
        buffers: ShardBuffers,
        progress: Iterator[int],
        thread: _ShardThread,
    ) -> None:
        feed, rows = self._feeds[shard.section], self._rows(shard)
        self._decoded.start(shard)
        self._checks.begin(shard, rows)
        # The same order as in `_batches`: position i of the stream is row arrange(...)[i] of the shard.
        buffers.begin(shard, feed.arrange(shard.view, rows))
        for _ in range(-(-len(rows) // self._spec.batch_size)):
            pixels = next(rendered)  # (B, *shape) integers; images (B, S, S, C) uint8
            # (B, channels, S, S) float32, as the teacher wants it.
            images = self._teacher.card.preprocessing.normalise(pixels)
            self._stopwatch.see(images)
            # Checksums that are not of rendered samples are taken when the shard is written.
            checked = pixels if feed.checks_rendered else pixels[:, :0]
            with naming_memory(
                self._device, f"a forward pass of {len(images)} samples", _LESS_MEMORY, RENDER_ON_CPU
            ):
                whole = buffers.put(self._forward(images), checked)
            # Batches arrive one late: the shard before becomes whole in this shard's first batch. A
            # shard with a bad row comes at once, to be refused.
            self._finish(whole, thread)
            next(progress, None)
        self._decoded.end(shard)

    def _finish(self, buffer: ShardBuffer | None, thread: _ShardThread) -> None:
        """Hand a whole shard to the writing thread, after its samples were compared."""
        if buffer is None:
            return
        rows = self._rows(buffer.shard)
        self._checks.finish(buffer.shard)
        self._require_kept(buffer, rows)
        thread.submit(lambda: self._write(buffer, rows))

    def _rows(self, shard: ShardId) -> Rows:
        """Return the positions in its split (n,) of a shard's samples."""
        return self._places[shard.section][self.writer.layout.rows(shard)]

    def _batches(self, shard: ShardId) -> Iterator[Rows]:
        """Yield a shard's rows (n,) in batches of (B,), in rendering order."""
        # order (n,) has positions in rows: rows [7, 8, 9], order [2, 0, 1] and B = 2 give [9, 7], [8].
        rows = self._rows(shard)
        order = self._feeds[shard.section].arrange(shard.view, rows)
        return (rows[order[batch]] for batch in consecutive(len(rows), self._spec.batch_size))

    def _progress(self, shards: Iterable[ShardId]) -> Iterator[int]:
        size, counts = self._spec.batch_size, [len(self._rows(shard)) for shard in shards]
        steps = sum(-(-count // size) for count in counts)
        return track(range(steps), "dump", total=sum(counts), unit="sample", per_item=size)

    @cached_property
    def _forward(self) -> Callable[[Tensor], TeacherOutput]:
        """The teacher's forward pass, compiled on first use if the spec asks for it.

        Raises:
            ModelError: compilation fails here.
        """
        if not self._spec.compile:
            return self._teacher.output
        return CompiledTeacher(self._teacher, self._spec.batch_size, self._device).output

    def _write(self, buffer: ShardBuffer, rows: Rows) -> None:
        labelled, correct = buffer.tally(self._labels[buffer.shard.section][rows])
        self.writer.write(
            buffer.shard,
            buffer.arrays,
            fidelity=buffer.fidelity(),
            labelled=labelled,
            correct=correct,
            checksums=self._checksums(buffer, rows),
        )

    def _checksums(self, buffer: ShardBuffer, rows: Rows) -> RenderChecksums:
        feed, shard = self._feeds[buffer.shard.section], buffer.shard
        if feed.checks_rendered:
            return buffer.checksums()
        return RenderChecksums.of(feed.evidence(shard.view, rows[checksum_rows(len(rows))]))

    def _require_kept(self, buffer: ShardBuffer, rows: Rows) -> None:
        """Refuse a row that is not finite, or too large for the codec."""
        shard, codec = buffer.shard, self._codec.name
        wider = "auto" if self._task.measures.is_absolute else "fp16"
        lost = "too large for the codec,", f"smaller ones; use codec: {wider} or other weights"
        if is_own_codec(codec):
            lost = (
                f"that codec {codec} does not decode to finite numbers,",
                "no NaN or infinity; correct it",
            )
        for row, what, expected in (
            (
                buffer.bad,
                "that are not finite",
                "finite numbers; use precision: fp32, or different weights",
            ),
            (buffer.lost, *lost),
        ):
            if row is not None:
                sample = self._splits[shard.section].names[rows[row]]
                raise ModelError(
                    f"teacher {self._teacher.name!r} returns logits {what} for sample {sample!r} in view "
                    f"{shard.view} of {shard.section}; expected {expected}"
                )

    def rates(self) -> Rates:
        """Return bytes and seconds per row of the shards made so far."""
        made = Rates.of_shards(self.writer.done(self.writer.layout.held_out_shards()).values(), self._codec)
        return replace(made, seconds_per_row=self._stopwatch.seconds_per_image)

    def report_speed(self) -> None:
        """Report the speed, if any shard was made."""
        speed = self._stopwatch.speed()
        if speed is not None:
            note(f"{self.writer.store}: {speed}")

    def require_good_teacher(self) -> None:
        """Refuse a teacher that is hardly better than guessing, by the rule of its task.

        Raises:
            ModelError: names its accuracy and the expected one.
        """
        held_out = [name for name in self._splits if name != "train"]
        if self._spec.allow_poor_teacher or not held_out:
            return
        labels = np.concatenate([self._labels[name] for name in held_out])
        if not is_known(labels).any():
            return
        shards = self.writer.layout.held_out_shards()
        quality = direct_top1(self.writer.done(shard for shard in shards if shard.section in held_out))
        if quality is None and not self.writer.is_growing:
            quality = self._stored_quality(held_out)
        if quality is None:
            return
        weakness = self._task.weakness(quality, labels, " and ".join(held_out))
        if weakness is not None:
            raise ModelError(
                f"teacher {self._teacher.name!r} has {weakness}; typical causes are wrong labels, wrong "
                "preprocessing or too little training; fix the teacher, or set the dump's "
                "allow_poor_teacher: true"
            )

    def _stored_quality(self, sections: Sequence[str]) -> float | None:
        """Return the quality of stored held-out outputs, for a task that counts no correct answers."""
        outputs, labels = [], []
        for name in sections:
            arrays = {array: torch.from_numpy(v) for array, v in self.writer.read(name).items()}
            rows = self._places[name][self.writer.layout.sections[name].rows()]
            # Samples of an unfinished store may have left the data.
            outputs.append(self._codec.decode(arrays)[torch.from_numpy(rows != ABSENT)])
            labels.append(self._labels[name][rows[rows != ABSENT]])
        return self._task.quality(torch.cat(outputs), np.concatenate(labels))


class _ShardThread:
    """Write one shard at a time in a thread while the next is made; use it in a `with` statement.

    One at a time bounds memory: while a shard is written, only the next one is filled.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._pool:
            # After an error, the pool still finishes its shard; a second error must not hide the first.
            if kind is None:
                self._wait()

    def submit(self, write: Callable[[], None]) -> None:
        """Wait for the previous shard, then start to write this one."""
        self._wait()
        self._writing = self._pool.submit(write)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
