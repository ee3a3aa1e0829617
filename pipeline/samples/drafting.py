"""Make the drafts of a dataset: every sample is read once, on threads or in processes, and measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, plural
from pipeline.core.progress import note
from pipeline.core.team import Elsewhere
from pipeline.samples.draft import Draft, ReusableSamples
from pipeline.samples.elsewhere import Reopened, read_elsewhere
from pipeline.samples.intake import IDENTITY, Bits, Entry, Intake, identity_of, read_by
from pipeline.samples.processes import LEAST_SAMPLES, Piece, ProcessReader, Read
from pipeline.samples.reading import Seat, closing_progress, in_order
from pipeline.samples.samples import Sample

Progress = Callable[[Sequence[Sample], str], Iterator[Sample]]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DraftBuilder:
    """Makes drafts on threads or in processes, with equal bytes, and shows the progress.

    Args:
        intake: reads the samples.
        state: folder of the drafts.
        workers: threads or processes.
        progress: wraps samples to show the progress of a step.
        forks: whether samples may be read in forked processes.
        elsewhere: reads samples in other processes; None for this machine.
    """

    intake: Intake
    state: Path
    workers: int
    progress: Progress
    forks: bool = False
    elsewhere: Elsewhere[Reopened] | None = None

    def make_draft(self, name: str, samples: Sequence[Sample]) -> list[str]:
        """Make or resume a split's draft; return one message per unreadable sample."""
        unreadable: list[str] = []
        with ExitStack() as drafts:
            draft = drafts.enter_context(Draft(self.state, name, self.intake))
            spare = drafts.enter_context(Draft(self.state, f"{name}.spare", self.intake))
            self._go_on(draft, spare, name, samples)
            rest = samples[len(draft) :]
            watched = self.progress(rest, f"{self.intake.step} {name}")
            read = partial(self._read, ReusableSamples(spare))
            if self.elsewhere is not None:
                read_there = read_elsewhere(self.elsewhere, name, samples, len(draft))
                lines = self._by_pieces(draft, read_there, watched)
            elif self.forks and self.workers > 1 and len(rest) >= LEAST_SAMPLES:
                reader = ProcessReader(read=read, intake=self.intake, workers=self.workers)
                lines = self._by_pieces(draft, reader.pieces(rest), watched)
            else:
                lines = self._by_threads(draft, read, rest, watched)
            for line in drafts.enter_context(closing(lines)):
                if not unreadable:
                    note(f"{line}; continuing, to find all of them")
                unreadable.append(line)
        return unreadable

    def _by_threads(
        self, draft: Draft, read: Read, rest: Sequence[Sample], watched: Iterator[Sample]
    ) -> Generator[str, None, None]:
        """Add samples to a draft; yield one message per unreadable sample."""
        with closing(in_order(read, rest, self.workers, watched)) as entries:
            for entry in entries:
                if isinstance(entry, DataError):
                    yield str(entry)
                else:
                    draft.add(entry)

    def _by_pieces(
        self, draft: Draft, read: Generator[Piece, None, None], watched: Iterator[Sample]
    ) -> Generator[str, None, None]:
        """Do the same with pieces that other processes read."""
        with closing_progress(watched), closing(read) as pieces:
            for piece in pieces:
                draft.extend(piece.rows, piece.arrays, piece.statistics)
                yield from piece.unreadable
                for _ in islice(watched, piece.count):
                    pass

    def rows(self, name: str) -> NDArray[np.void]:
        """Return the records of a split's draft (N,), of `row_dtype`."""
        with Draft(self.state, name, self.intake) as draft:
            return draft.rows()

    def statistics(self, name: str) -> Any:
        """Return the statistics of all samples of a split's draft."""
        with Draft(self.state, name, self.intake) as draft:
            return draft.statistics

    def measure(self, name: str, samples: Sequence[Sample], count: int) -> Measured:
        """Decode `count` evenly spread samples of a split, for statistics and remarks."""
        rows = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64)
        chosen = [samples[row] for row in rows.tolist()]
        total, unreadable = self.intake.nothing(), []
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
        """Keep the valid part of a draft: unchanged first samples in place, others in a spare draft."""
        rows, offsets = draft.rows(), draft.offsets()
        kept = count_unchanged(rows, samples, self.workers)
        if kept < len(rows):
            has_room = offsets[-1] - offsets[kept] < shutil.disk_usage(self.state).free // 2
            can_be_told = (rows["file_bytes"][kept:] >= 0).any()
            keeps = has_room and can_be_told and self.elsewhere is None
            draft.shorten(kept, spare if keeps else None)
        if len(rows) or len(spare):
            moved_too = f", up to {len(spare):,} more are reused" if len(spare) else ""
            known = f"{kept:,} of {len(samples):,} {name} {plural(self.intake.form.noun)}"
            note(f"resuming: {known} are done{moved_too}")

    def _read(self, spare: ReusableSamples, sample: Sample, seat: Seat) -> Entry | DataError:
        """Return a sample's entry for the draft, from the spare draft if it is known.

        An unreadable sample gives its error as the result, so that all of them are found in one run.
        """
        # Taken before the read: if the file is replaced meanwhile, a later run notices the change.
        identity = identity_of(sample)
        known = spare.find(identity)
        return read_by(self.intake, sample, seat, identity) if known is None else known

    def _measured(self, sample: Sample, seat: Seat) -> tuple[Any, int] | DataError:
        try:
            return self.intake.measure(sample, seat)
        except DataError as error:
            return error


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Results of decoding some of N samples.

    Args:
        statistics: of the decoded samples.
        remarks: (N,) bits per sample; 0 for samples that were not decoded.
        unreadable: one message per unreadable sample.
    """

    statistics: Any
    remarks: Bits
    unreadable: list[str]


def count_unchanged(rows: NDArray[np.void], samples: Sequence[Sample], workers: int) -> int:
    """Return the number of leading rows of a draft that still match the source.

    Args:
        rows: (n,) of `row_dtype`.
        samples: of the split.
        workers: threads that query file sizes and times.
    """
    count = min(len(rows), len(samples))
    if not count:
        return 0
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda part: _identities(samples, part), np.array_split(np.arange(count), workers))
        now = np.concatenate(list(parts))
    same = now["file_bytes"] >= 0
    for name, _ in IDENTITY:
        same &= rows[name][:count] == now[name]
    return count if same.all() else int(same.argmin())


def _identities(samples: Sequence[Sample], rows: NDArray[np.int64]) -> NDArray[np.void]:
    return np.fromiter((identity_of(samples[row]) for row in rows.tolist()), np.dtype(IDENTITY), len(rows))
