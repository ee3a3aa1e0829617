"""Read samples while a dataset is prepared: the interface that each modality implements."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, PipelineError, brief, is_out_of_memory
from pipeline.core.hashing import bytes_glance, encoded_digests, sample_key
from pipeline.samples.index import Columns, Form
from pipeline.samples.label_forms import label_word
from pipeline.samples.packed import Split, open_packed
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample, Source

# A sample is the same in a later run if all of these are equal; -1 bytes means no file. `label` is the word
# of a label: labels themselves come from the source when the split is published.
IDENTITY = [("key", "<u8"), ("label", "<i8"), ("file_bytes", "<i8"), ("modified_ns", "<i8")]
# Digests of the content with the label, and of the content alone.
_DIGESTS = [("digest", "<u8"), ("content", "<u8")]
# A digest of a small part of the content, without the label, and the remarks.
_KNOWN = [("glance", "<u8"), ("remarks", "u1")]

_NO_FILE = -1, -1

Identity = tuple[int, ...]
Bits = NDArray[np.uint8]  # (N,), one byte per sample


def row_dtype(form: Form) -> np.dtype[np.void]:
    """Return the dtype of a draft's record: identity of a sample, shape, and digests of its content."""
    return _row_dtype(form.axes)


@cache
def _row_dtype(axes: int) -> np.dtype[np.void]:
    # Built once: every sample of a dataset has a record.
    return np.dtype([*IDENTITY, ("shape", "<i4", (axes,)), *_DIGESTS, *_KNOWN])


class Statistics(Protocol):
    """Exact sums over samples, which can be added and subtracted."""

    def __add__(self, other: Self) -> Self: ...

    def __sub__(self, other: Self) -> Self: ...

    def to_plain(self) -> Any:
        """Return the figures as plain values."""


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """A sample that was read.

    Args:
        row: () of `row_dtype`.
        array: the sample; None if its file is kept unchanged.
        statistics: of the array.
    """

    row: NDArray[np.void]
    array: NDArray[Any] | None
    statistics: Any


@dataclass(frozen=True, eq=False, slots=True)
class Remarks:
    """Oddities of readable samples, reported once for all of them.

    A remark is a bit in a sample's record, so a resumed preparation reports the same remarks.

    Args:
        splits: name -> its samples and their remarks.
    """

    splits: Mapping[str, tuple[Sequence[Sample], Bits]]

    def files(self, remark: int) -> list[str]:
        """Return the files with a remark; for samples without a file, their names."""
        found = []
        for samples, bits in self.splits.values():
            found += [samples[row] for row in np.flatnonzero(bits & remark).tolist()]
        return [sample.file or sample.name for sample in found]


class Intake(Protocol):
    """Reads the samples of a source, on any thread; open in a `with` block."""

    @property
    def form(self) -> Form:
        """The storage format of the samples."""

    @property
    def step(self) -> str:
        """The verb for reading in progress lines, e.g. decode or scan."""

    @property
    def files(self) -> Sequence[str]:
        """Names of further files that this intake writes into the folder of a prepared dataset."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def plan(self) -> dict[str, Any]:
        """Return the values that decide the content of drafts, except format and samples."""

    def goes_on(self, found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
        """Whether drafts of the plan `found` can be resumed under `plan`, e.g. an equal one."""

    def nothing(self) -> Any:
        """Return the statistics of zero samples."""

    def restored(self, plain: Any) -> Any:
        """Return the statistics that `Statistics.to_plain` described."""

    def statistics(self, array: NDArray[Any]) -> Any:
        """Return the statistics of one sample."""

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Read a sample and return its entry for the draft.

        Raises:
            DataError: the sample is unreadable.
        """

    def measure(self, sample: Sample, seat: Seat) -> tuple[Any, int]:
        """Return statistics and remarks of a sample whose file stays.

        Raises:
            DataError: the sample is unreadable.
        """

    def tell_measured(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Print the share of samples with files that was measured: split -> (measured, all)."""

    def require_sound(self, remarks: Remarks, count: int, state: Path) -> None:
        """Refuse to finish with remarked samples, if the user asked for that.

        Args:
            remarks: on the samples.
            count: number of all samples.
            state: folder of the unfinished preparation; gets the list.

        Raises:
            DataError: naming the first such sample.
        """

    def tell(self, remarks: Remarks, folder: Path) -> None:
        """Print one line per remark to stderr; lists go into the folder of the prepared dataset."""

    def count(self, remarks: Remarks) -> dict[str, int]:
        """Return the number of samples per remark, without zeros."""

    def describe(self, statistics: Any) -> dict[str, Any]:
        """Return the statistics of the training samples as values for dataset.json."""

    def places(self, samples: Sequence[Sample]) -> Columns:
        """Return further columns of the index (N, …) for samples that stay inside their files."""

    def open_split(self, folder: Path, name: str) -> Split:
        """Open a split that was just written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySource(Source):
    """A source of arrays.

    Args:
        form: storage format of the samples.
    """

    form: Form


class ArrayIntake:
    """An intake of samples that are arrays already: nothing is decoded, nothing is remarked.

    Args:
        form: storage format of the samples.
    """

    step = "read"
    files: Sequence[str] = ()
    # Processes that `describe` may use.
    workers = 1

    def __init__(self, form: Form) -> None:
        self.form = form

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def plan(self) -> dict[str, Any]:
        """Return no values: format and samples decide everything."""
        return {}

    def goes_on(self, found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
        """Whether the plans are equal."""
        return found == plan

    def nothing(self) -> NoStatistics:
        """Return empty statistics."""
        return NoStatistics()

    def restored(self, plain: Any) -> NoStatistics:
        """Return empty statistics."""
        return NoStatistics()

    def statistics(self, array: NDArray[Any]) -> NoStatistics:
        """Return empty statistics."""
        return NoStatistics()

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Return a sample's array with its digests.

        Raises:
            DataError: the array has a different dtype or shape than the format, or is empty.
        """
        array = load_array(sample)
        own, form = array.shape[: self.form.axes], self.form
        if array.dtype != form.dtype or array.shape != form.shape(own) or len(own) < form.axes:
            raise DataError(
                f"{sample.name}: {array.dtype} of shape {array.shape}; expected {form.dtype} of shape "
                f"{('any',) * form.axes + form.unit}; correct the source"
            )
        if not 1 <= min(own) <= max(own) <= form.longest:
            raise DataError(f"{sample.name}: shape is {array.shape}; expected lengths of 1 or more")
        seat.take(array.size)
        glance = bytes_glance(np.frombuffer(array.tobytes(), np.uint8))
        digests = encoded_digests(array, array.shape, label_word(sample.label))
        row = (*identity, own, *digests, glance, 0)
        return Entry(np.array(row, row_dtype(form)), array, NoStatistics())

    def measure(self, sample: Sample, seat: Seat) -> tuple[NoStatistics, int]:
        """Return no statistics and no remark; all samples are packed."""
        return NoStatistics(), 0

    def tell_measured(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Print nothing."""

    def require_sound(self, remarks: Remarks, count: int, state: Path) -> None:
        """Refuse nothing."""

    def tell(self, remarks: Remarks, folder: Path) -> None:
        """Print nothing."""

    def count(self, remarks: Remarks) -> dict[str, int]:
        """Return no remarks."""
        return {}

    def describe(self, statistics: Any) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def places(self, samples: Sequence[Sample]) -> Columns:
        """Return no columns; all samples are packed."""
        return {}

    def open_split(self, folder: Path, name: str) -> Split:
        """Open a split that was just written."""
        return open_packed(folder, name, self.form)


class NoStatistics:
    """The empty statistics of a modality that keeps none."""

    def __add__(self, other: Self) -> Self:
        return self

    def __sub__(self, other: Self) -> Self:
        return self

    def to_plain(self) -> None:
        """Return nothing."""


# Read one sample.


def load_array(sample: Sample) -> NDArray[Any]:
    """Return the array that a sample's `load` makes; a source of one's own may fail, or make none.

    Raises:
        DataError: the code raises, or returns something else. Out-of-memory errors pass unchanged.
    """
    try:
        array = sample.load()
    except Exception as error:
        # A disk that fails, or too many open files, is no fault of the sample.
        if isinstance(error, PipelineError) or is_out_of_memory(error) or _is_of_system(error):
            raise
        reason = f"{type(error).__name__}: {brief(error)}"
        raise DataError(f"{sample.name}: its code raises {reason}; correct the source") from error
    if not hasattr(array, "__array__"):
        raise DataError(
            f"{sample.name}: loads as a {type(array).__name__}; expected an array; correct the source"
        )
    return np.asarray(array)


def _is_of_system(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EIO, errno.EMFILE, errno.ENFILE)


def read_by(
    intake: Intake, sample: Sample, seat: Seat, identity: Identity | None = None
) -> Entry | DataError:
    """Return a sample's entry for the draft, or its error.

    Args:
        intake: reads it.
        sample: the sample.
        seat: takes the room that it needs.
        identity: of the sample, if it is known.
    """
    try:
        return intake.read(sample, seat, identity_of(sample) if identity is None else identity)
    except DataError as error:
        return error


def identity_of(sample: Sample) -> tuple[int, ...]:
    """Return the values of `IDENTITY` of a sample."""
    stamp = _stamp(sample.file) if sample.stamp is None else sample.stamp()
    return sample_key(sample.name), label_word(sample.label), *stamp


def _stamp(file: str | None) -> tuple[int, int]:
    """Return a file's size in bytes and modification time in ns; -1 for both if it is missing."""
    if file is None:
        return _NO_FILE
    try:
        status = os.stat(file)
    except OSError:
        return _NO_FILE
    return status.st_size, status.st_mtime_ns
