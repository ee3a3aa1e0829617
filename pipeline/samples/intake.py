"""How samples of a modality are read when a dataset is prepared: the part that each modality owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import bytes_glance, content_digest
from pipeline.samples.index import Form
from pipeline.samples.packed import Split, open_packed
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample, Source

# What makes a sample the same one in a later run; a file of -1 bytes is none.
IDENTITY = [("key", "<u8"), ("label", "<i8"), ("file_bytes", "<i8"), ("modified_ns", "<i8")]
# A digest of little, label apart, and the remarks.
_KNOWN = [("glance", "<u8"), ("remarks", "u1")]

Identity = tuple[int, ...]
Bits = NDArray[np.uint8]  # (N,), a sample each


def row_dtype(form: Form) -> np.dtype[np.void]:
    """Return the dtype of a draft's record: who a sample is, its shape, and digests of its content."""
    return np.dtype([*IDENTITY, ("shape", "<i4", (form.axes,)), ("digest", "<u8"), *_KNOWN])


class Statistics(Protocol):
    """Exact figures of samples, which can be added and taken away."""

    def __add__(self, other: Self) -> Self: ...

    def __sub__(self, other: Self) -> Self: ...

    def to_plain(self) -> Any:
        """Return the figures as plain values."""


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """A sample that was read.

    Args:
        row: () of `row_dtype`.
        array: the sample; None where its file is kept as it is.
        statistics: of the array.
    """

    row: NDArray[np.void]
    array: NDArray[Any] | None
    statistics: Any


@dataclass(frozen=True, eq=False, slots=True)
class Remarks:
    """Something odd about samples that were read nevertheless, to be told once for all of them.

    A remark is a bit in a sample's record, so that an interrupted preparation tells the same as another.

    Args:
        splits: name -> its samples, and their remarks.
    """

    splits: Mapping[str, tuple[Sequence[Sample], Bits]]

    def files(self, remark: int) -> list[str]:
        """Return which files, or samples that are none, a remark is made of."""
        found = []
        for samples, bits in self.splits.values():
            found += [samples[row] for row in np.flatnonzero(bits & remark).tolist()]
        return [sample.file or sample.name for sample in found]


class Intake(Protocol):
    """Reads the samples of a source, on any thread; open in a `with` block."""

    @property
    def form(self) -> Form:
        """In which form samples are kept."""

    @property
    def step(self) -> str:
        """What reading does, for people: decode, scan."""

    @property
    def files(self) -> Sequence[str]:
        """Names of further files that it writes into the folder of a prepared dataset."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def plan(self) -> dict[str, Any]:
        """Return what decides the content of drafts beside form and samples."""

    def goes_on(self, found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
        """Whether drafts that were left with one plan are right for another, e.g. an equal one."""

    def nothing(self) -> Any:
        """Return the statistics of no sample."""

    def restored(self, plain: Any) -> Any:
        """Return the statistics that `Statistics.to_plain` described."""

    def statistics(self, array: NDArray[Any]) -> Any:
        """Return the statistics of one sample."""

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Return what is kept of a sample.

        Raises:
            DataError: it is not readable.
        """

    def measure(self, sample: Sample, seat: Seat) -> tuple[Any, int]:
        """Return the statistics of a sample whose file stays, and the remarks on it.

        Raises:
            DataError: it is not readable.
        """

    def tell_measured(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Say of how many samples whose files stay something is known: split -> (measured, all)."""

    def require_sound(self, remarks: Remarks, count: int, state: Path) -> None:
        """Refuse to finish with samples that remarks are made of, where that was asked for.

        Args:
            remarks: on the samples.
            count: of all samples.
            state: folder of the unfinished preparation, where a list goes.

        Raises:
            DataError: naming the first of them.
        """

    def tell(self, remarks: Remarks, folder: Path) -> None:
        """Tell remarks on stderr, a line each; lists go into the folder of the prepared dataset."""

    def count(self, remarks: Remarks) -> dict[str, int]:
        """Return how many samples each remark is made of, without those of none."""

    def describe(self, statistics: Any) -> dict[str, Any]:
        """Return what dataset.json says of the training samples' statistics."""

    def open_split(self, folder: Path, name: str) -> Split:
        """Open a split that was just written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySource(Source):
    """A dataset of arrays as it is found.

    Args:
        form: of the samples.
    """

    form: Form


class ArrayIntake:
    """Takes samples that their source gives as arrays: nothing is decoded, and nothing is odd.

    Args:
        form: of the samples.
    """

    step = "read"
    files = ()

    def __init__(self, form: Form) -> None:
        self.form = form

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def plan(self) -> dict[str, Any]:
        """Return nothing: form and samples decide all."""
        return {}

    def goes_on(self, found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
        """Whether the plans are equal."""
        return found == plan

    def nothing(self) -> NoStatistics:
        """Return the statistics of no sample."""
        return NoStatistics()

    def restored(self, plain: Any) -> NoStatistics:
        """Return the statistics of some."""
        return NoStatistics()

    def statistics(self, array: NDArray[Any]) -> NoStatistics:
        """Return the statistics of one."""
        return NoStatistics()

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Return a sample's array with its digests.

        Raises:
            DataError: it is not of the form's dtype and axes, or is empty.
        """
        array = np.asarray(sample.load())
        own, form = array.shape[: self.form.axes], self.form
        if array.dtype != form.dtype or array.shape != form.shape(own) or len(own) < form.axes:
            raise DataError(
                f"{sample.name}: {array.dtype} of shape {array.shape}; expected {form.dtype} of shape "
                f"{('any',) * form.axes + form.unit}; correct the source"
            )
        if not 1 <= min(own) <= max(own) <= form.longest:
            raise DataError(f"{sample.name}: of shape {array.shape}; expected lengths of 1 or more")
        seat.take(array.size)
        glance = bytes_glance(np.frombuffer(array.tobytes(), np.uint8))
        row = (*identity, own, content_digest(array, sample.label), glance, 0)
        return Entry(np.array(row, row_dtype(form)), array, NoStatistics())

    def measure(self, sample: Sample, seat: Seat) -> tuple[NoStatistics, int]:
        """Return no statistics and no remark; all samples are packed."""
        return NoStatistics(), 0

    def tell_measured(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Say nothing."""

    def require_sound(self, remarks: Remarks, count: int, state: Path) -> None:
        """Refuse nothing."""

    def tell(self, remarks: Remarks, folder: Path) -> None:
        """Say nothing."""

    def count(self, remarks: Remarks) -> dict[str, int]:
        """Return that there are no remarks."""
        return {}

    def describe(self, statistics: Any) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def open_split(self, folder: Path, name: str) -> Split:
        """Open a split that was just written."""
        return open_packed(folder, name, self.form)


class NoStatistics:
    """Statistics of samples of which none are kept."""

    def __add__(self, other: Self) -> Self:
        return self

    def __sub__(self, other: Self) -> Self:
        return self

    def to_plain(self) -> None:
        """Return nothing."""
