"""Read samples in other processes, on any machines: each one opens the source again by itself.

command      parts of a split  ──►  team
worker       opens source and intake once, reads a part, returns its pieces
command      pieces in the order of the samples  ──►  the draft, so drafts have equal bytes
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.core.errors import DataError
from pipeline.core.hashing import spec_digest
from pipeline.core.team import Elsewhere
from pipeline.samples.intake import Intake, read_by
from pipeline.samples.label_forms import label_word
from pipeline.samples.processes import Piece, ProcessReader
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample

# A result of a worker holds so many samples; of photographs of 12 megapixels, 0.6 GB.
_PART = 16
# The samples of each split, and their intake, which is open.
Reopened = tuple[Mapping[str, Sequence[Sample]], Intake]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some samples of a split.

    Args:
        split: its name.
        count: number of its samples.
        first: row of the first sample.
        digest: of their names and labels, by which other files are noticed.
    """

    split: str
    count: int
    first: int
    digest: str


def read_elsewhere(
    elsewhere: Elsewhere[Reopened], split: str, samples: Sequence[Sample], first: int
) -> Generator[Piece, None, None]:
    """Yield the samples of a split from a row on, in order, as other processes read them.

    Raises:
        DataError: a process finds other samples.
    """
    parts = [
        Part(split=split, count=len(samples), first=row, digest=_digest(samples, row))
        for row in range(first, len(samples), _PART)
    ]
    for pieces in elsewhere.map(_read_part, parts):
        yield from pieces


def _read_part(reopened: Reopened, part: Part) -> list[Piece]:
    """Read a part in a worker."""
    splits, intake = reopened
    samples = splits[part.split]
    if len(samples) != part.count or _digest(samples, part.first) != part.digest:
        raise DataError(
            f"{part.split}: another process finds other samples than the command; give all machines the "
            "same files, and run the command again"
        )
    reader = ProcessReader(read=partial(read_by, intake), intake=intake, workers=1)
    rows = range(part.first, min(part.count, part.first + _PART))
    return list(reader.batch(samples, rows, Seat(_Unbounded(), 0)))


def _digest(samples: Sequence[Sample], first: int) -> str:
    """Return a digest of the names and labels of a part."""
    rows = range(first, min(len(samples), first + _PART))
    return spec_digest([[samples[row].name, label_word(samples[row].label)] for row in rows])


class _Unbounded:
    """A budget without limit: a process reads one part at a time."""

    def enter(self, place: int, pixels: int) -> None:
        """Admit a sample."""
