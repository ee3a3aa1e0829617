"""Where the drafts of a dataset are made: every image is read once, on threads, and measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.progress import note
from pipeline.modalities.images.damage import Ear
from pipeline.modalities.images.images import Moments
from pipeline.samples.draft import Draft, Spare
from pipeline.samples.index import Form
from pipeline.samples.reading import Reader, Seat, count_unchanged, in_order, read_pixels, read_sample
from pipeline.samples.samples import Sample

Progress = Callable[[Sequence[Sample], str], Iterator[Sample]]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Workshop:
    """Where drafts are made, by how many threads, and who is told.

    Args:
        form: of the images.
        state: folder of the drafts.
        workers: threads.
        progress: wraps samples to show how far a step is.
        ear: hears what the decoder says of damaged files.
        thorough: whether also files that stay encoded are decoded, to find those that are damaged.
    """

    form: Form
    state: Path
    workers: int
    progress: Progress
    ear: Ear
    thorough: bool

    def make_draft(self, name: str, samples: Sequence[Sample]) -> list[str]:
        """Make a split's draft, or go on with it; return a message for each image that is not readable."""
        unreadable: list[str] = []
        with ExitStack() as drafts:
            draft = drafts.enter_context(Draft(self.state, name, self.form))
            spare = drafts.enter_context(Draft(self.state, f"{name}.spare", self.form))
            self._go_on(draft, spare, name, samples)
            reader = Reader(form=self.form, ear=self.ear, spare=Spare(spare), thorough=self.thorough)
            rest, step = samples[len(draft) :], "scan" if self.form.keep == "encoded" else "decode"
            watched = self.progress(rest, f"{step} {name}")
            read = partial(read_sample, reader=reader)
            for entry in drafts.enter_context(closing(in_order(read, rest, self.workers, watched))):
                if not isinstance(entry, DataError):
                    draft.add(entry)
                    continue
                if not unreadable:
                    note(f"{entry}; going on, to find them all")
                unreadable.append(str(entry))
        return unreadable

    def rows(self, name: str) -> NDArray[np.void]:
        """Return the records of a split's draft (N,), of dtype `ROW`."""
        with Draft(self.state, name, self.form) as draft:
            return draft.rows()

    def moments(self, name: str) -> Moments:
        """Return the moments of all pixels of a split's draft."""
        with Draft(self.state, name, self.form) as draft:
            return draft.moments

    def measure(self, name: str, samples: Sequence[Sample], count: int) -> Measured:
        """Decode some samples of a split, spread evenly, for their moments and remarks."""
        rows = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64)
        chosen = [samples[row] for row in rows.tolist()]
        total, unreadable = Moments.none(self.form.channels), []
        remarks = np.zeros(len(samples), np.uint8)
        watched = self.progress(chosen, f"measure {name}")
        with closing(in_order(self._measured, chosen, self.workers, watched)) as results:
            for row, found in zip(rows.tolist(), results, strict=True):
                if isinstance(found, DataError):
                    unreadable.append(str(found))
                else:
                    total, remarks[row] = total + found[0], found[1]
        return Measured(total, remarks, unreadable)

    def _go_on(self, draft: Draft, spare: Draft, name: str, samples: Sequence[Sample]) -> None:
        """Keep of a draft what is still true: the first samples where they are, others in a spare draft."""
        rows, offsets = draft.rows(), draft.offsets()
        kept = count_unchanged(rows, samples, self.workers)
        if kept < len(rows):
            has_room = offsets[-1] - offsets[kept] < shutil.disk_usage(self.state).free // 2
            can_be_told = (rows["file_bytes"][kept:] >= 0).any()
            draft.shorten(kept, spare if has_room and can_be_told else None)
        if len(rows) or len(spare):
            moved_too = f", up to {len(spare):,} more are moved" if len(spare) else ""
            note(f"resuming: {kept:,} of {len(samples):,} {name} images are there{moved_too}")

    def _measured(self, sample: Sample, seat: Seat) -> tuple[Moments, int] | DataError:
        try:
            pixels, remarks = read_pixels(sample, seat, self.form, self.ear)
        except DataError as error:
            return error
        return Moments.of(pixels), remarks


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """What decoding some of N samples shows.

    Args:
        moments: of their pixels.
        remarks: (N,) on the samples; 0 for those that were not decoded.
        unreadable: a message for each image that is not readable.
    """

    moments: Moments
    remarks: NDArray[np.uint8]
    unreadable: list[str]
