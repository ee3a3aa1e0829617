"""The dump: shard by shard, one view of one block of rows, until nothing is missing.

Batches are fixed inside a shard, so its bytes do not depend on where a run was interrupted or on how
many processes there are. Encoding happens on the device, writing in a thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs import Codec
from pipeline.core.errors import ModelError, StoreError
from pipeline.core.progress import note, track
from pipeline.dump.decode_ahead import DecodedBlocks
from pipeline.dump.encode import Encoder, PixelChecks, ShardContent
from pipeline.dump.open import complete, discard_without_views, make_feeds, open_for_writing, places
from pipeline.dump.spec import DumpSpec, splits_of
from pipeline.evaluation.context import Bench
from pipeline.loading.feed import consecutive
from pipeline.models.teacher import Teacher, require_same_classes
from pipeline.places.location import Location
from pipeline.samples.samples import UNLABELLED
from pipeline.store.growth import is_complete, tell_pending
from pipeline.store.index import read_index
from pipeline.store.layout import ShardId
from pipeline.store.lock import PREPARATION_SECONDS, WAIT_SECONDS, WHOLE, Slice, gate, writing
from pipeline.store.manifest import Manifest
from pipeline.store.place import behind_links
from pipeline.store.writer import StoreWriter, direct_top1

Rows = NDArray[np.int64]


def cache_logits(
    bench: Bench,
    teacher: Teacher,
    spec: DumpSpec,
    path: Path,
    *,
    part: Slice = WHOLE,
    completes: bool = True,
) -> Manifest | None:
    """Make a store, or go on with one that lacks something; a complete one is left as it is.

    Args:
        bench: the data and the device.
        teacher: whose logits.
        spec: what to dump.
        path: the store's folder.
        part: which of the training shards this process makes; others may make theirs meanwhile.
        completes: write the manifest if nothing is missing in the end.

    Returns:
        The manifest, or None where the store is not complete yet.

    Raises:
        ModelError: classes do not match, the teacher is too poor to be right, or logits are not finite.
        MismatchError: there is a store made from something else.
        LockedError: another process is writing it.
    """
    require_same_classes(teacher.name, teacher.card, bench.data)
    path = behind_links(path)
    wait = WAIT_SECONDS if part == WHOLE else PREPARATION_SECONDS
    with ExitStack() as held:
        with gate(path, wait):
            header, codec = open_for_writing(bench, teacher, spec, path)
            if is_complete(path, header):
                note(f"{path}: complete, nothing to do")
                tell_pending(path)
                return Manifest.read(Location(path))
            held.enter_context(writing(path, part, WAIT_SECONDS))
            writer = StoreWriter(path, header)
            dump = _Dump(bench, teacher, spec, writer, codec)
            try:
                dump.make(shard for shard in writer.layout.shards() if shard.section != "train")
                dump.require_good_teacher()
            except ModelError:
                # A wrong teacher must not stand in the way of the right one.
                discard_without_views(path, writer)
                raise
        dump.make(part.of([shard for shard in writer.layout.shards() if shard.section == "train"]))
    with gate(path, PREPARATION_SECONDS):
        manifest = complete(path, header, splits_of(bench.data), completes=completes)
    if manifest is None and completes and part == WHOLE:
        raise StoreError(f"{path}: shards are missing that were made; expected them; run the command again")
    dump.report_speed()
    if manifest is not None:
        tell_pending(path)
    return manifest


class _Dump:
    """Makes shards of a store, one after the other."""

    def __init__(
        self, bench: Bench, teacher: Teacher, spec: DumpSpec, writer: StoreWriter, codec: Codec
    ) -> None:
        self._teacher, self._spec, self._writer = teacher, spec, writer
        self._encoder = Encoder(teacher, codec, spec, bench.device)
        self._splits = splits_of(bench.data)
        index = read_index(writer.path, writer.header)
        self._places = places(writer.layout, index, self._splits)
        self._blocks = DecodedBlocks(bench)
        self._checks = PixelChecks(self._splits, bench.workers)
        self._feeds = make_feeds(self._blocks.bench, teacher, spec.views, writer.layout, self._places)

    def make(self, shards: Iterable[ShardId]) -> None:
        """Make those of some shards that are missing.

        Raises:
            DataError: an image is not the one that was prepared.
            ModelError: logits are not finite.
        """
        shards = list(shards)
        missing = self._writer.missing(shards)
        if not missing:
            return
        if len(missing) < len(shards):
            note(f"resuming: {len(shards) - len(missing)} of {len(shards)} shards are done")
        note(f"{shards[0].section}: {self._feeds[shards[0].section].path}")
        layout = self._writer.layout
        rows = {shard: self._places[shard.section][layout.rows(shard)] for shard in missing}
        encoder = self._encoder
        with (
            encoder.stopwatch.running(encoder.forward, sum(map(len, rows.values()))),
            self._blocks.expecting(rows),
            ThreadPoolExecutor(1, thread_name_prefix="shard-writer") as pool,
        ):
            writing: Future[None] | None = None
            for shard, content in encoder.encode(self._ordered(rows)):
                self._checks.finish(shard)
                self._require_finite(shard, content, rows[shard])
                if writing is not None:
                    writing.result()
                writing = pool.submit(self._write, shard, content, rows[shard])
            if writing is not None:
                writing.result()

    def _ordered(self, rows: Mapping[ShardId, Rows]) -> Iterator[tuple[ShardId, Rows, Iterator[Tensor]]]:
        """Yield each shard with the order in which its rows are rendered, and its batches of pixels."""
        for shard, batches in self._batches(rows):
            yield shard, self._feeds[shard.section].arrange(shard.view, rows[shard]), batches

    def _batches(self, rows: Mapping[ShardId, Rows]) -> Iterator[tuple[ShardId, Iterator[Tensor]]]:
        """Yield each shard with its batches of pixels, which count as progress.

        Rendering runs ahead of the teacher across the shards of a section.
        """
        size = self._spec.batch_size
        total = sum(map(len, rows.values()))
        steps = sum(-(-len(some) // size) for some in rows.values())
        progress = track(range(steps), "dump", total=total, unit="image", per_item=size)
        for section, group in itertools.groupby(rows, lambda shard: shard.section):
            cut = [(shard, consecutive(len(rows[shard]), size)) for shard in group]
            requests = (
                (shard.view, some)
                for shard, batches in cut
                for some in self._arranged(shard, rows, batches)
            )
            stream = self._feeds[section].rendered(requests)
            pixels = (batch for batch, _ in zip(stream, progress, strict=False))
            for shard, batches in cut:
                yield shard, itertools.islice(pixels, len(batches))
                self._blocks.leave(shard)

    def _arranged(
        self, shard: ShardId, rows: Mapping[ShardId, Rows], batches: Iterable[Rows]
    ) -> Iterator[Rows]:
        """Yield a shard's rows batch by batch, in the order in which they are rendered."""
        self._blocks.reach(shard)
        self._checks.begin(shard, rows[shard])
        order = self._feeds[shard.section].arrange(shard.view, rows[shard])
        return (rows[shard][order[batch]] for batch in batches)

    def _write(self, shard: ShardId, content: ShardContent, rows: Rows) -> None:
        labels = self._splits[shard.section].labels[rows]
        self._writer.write(
            shard,
            content.arrays,
            fidelity=content.fidelity(),
            labelled=int((labels != UNLABELLED).sum()),
            correct=content.correct(labels),
            witness=content.witness(),
        )

    def _require_finite(self, shard: ShardId, content: ShardContent, rows: Rows) -> None:
        if content.bad is not None:
            sample = self._splits[shard.section].names[rows[content.bad]]
            raise ModelError(
                f"teacher {self._teacher.name} gives logits that are not finite for sample {sample!r} "
                f"in view {shard.view} of {shard.section}; expected numbers; use precision: fp32 or other "
                "weights"
            )
        if content.lost is not None:
            sample = self._splits[shard.section].names[rows[content.lost]]
            raise ModelError(
                f"teacher {self._teacher.name} gives logits too large for the codec, for sample {sample!r} "
                f"in view {shard.view} of {shard.section}; expected smaller ones; use codec: fp16 or other "
                "weights"
            )

    def report_speed(self) -> None:
        """Say how fast shards were made, if any were."""
        speed = self._encoder.stopwatch.speed()
        if speed is not None:
            note(f"{self._writer.store}: {speed}")

    def require_good_teacher(self) -> None:
        """Refuse a teacher that is hardly better than always naming the largest class.

        Raises:
            ModelError: saying how good it was to be.
        """
        held_out = [name for name in self._splits if name != "train"]
        accuracy = direct_top1(self._writer.done(), *held_out)
        if accuracy is None or self._spec.allow_poor_teacher:
            return
        labels = np.concatenate([self._splits[name].labels for name in held_out])
        counts = np.bincount(labels[labels != UNLABELLED])
        share = float(counts.max() / counts.sum())
        expected = least_top1(share)
        if accuracy < expected:
            raise ModelError(
                f"teacher {self._teacher.name} has top-1 {accuracy:.3f} on {' and '.join(held_out)}; the "
                f"largest class has {share:.3f}, so at least {expected:.3f} was expected: wrong labels, "
                "wrong preprocessing or too little training look like this; mend it, or set the dump's "
                "allow_poor_teacher: true"
            )


def least_top1(share: float) -> float:
    """Return the top-1 from which a teacher knows more than the largest class.

    That is share + kappa (1 - share): kappa is the part of the errors of always naming the largest class
    that the teacher avoids, Cohen's kappa with that class for chance. It grows with the share, from the
    share itself where classes are many, and an honest teacher may err often, to 0.2, the end of what Landis
    and Koch ("The Measurement of Observer Agreement for Categorical Data", 1977) call slight. E.g. 0.002 of
    a thousand equal classes, 0.16 of ten, 0.43 of three, 0.58 of two, and 0.92 where one class has 0.9.

    Args:
        share: of the largest class, in (0, 1].
    """
    kappa = share / (1 + 4 * share)
    return share + kappa * (1 - share)
