"""The index of a prepared split: facts about each sample, and the storage format.

SPLIT.npz      arrays of N: shapes, labels, keys, digests, contents, and further columns of a kind of split
SPLIT.names    one sample name per line
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.errors import DataError
from pipeline.core.files import write_bytes
from pipeline.samples.label_forms import DTYPES
from pipeline.samples.samples import NO_DECODER, UNLABELLED, Names

Columns = dict[str, NDArray[Any]]
# Dtype of each column of the index; `shapes` is (N, axes), all others are (N,). Labels may also be tags or
# numbers, (N, C): see `label_forms.py`.
INDEX: Mapping[str, str] = {
    "shapes": "<i4",
    "labels": "<i8",
    "keys": "<u8",
    "digests": "<u8",
    "contents": "<u8",
    "offsets": "<i8",
    "parts": "<i4",
    "starts": "<i8",
    "lengths": "<i8",
}
# Columns that data of older versions lacks.
_NEWER = {"contents"}
# Errors of numpy for a damaged archive; which one depends on the first wrong byte.
_DAMAGED = (
    *(EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError),
)


def write_index(folder: Path, split: str, columns: Columns, names: Names) -> None:
    """Write the index of one split."""
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    write_bytes(folder / f"{split}.npz", buffer.getvalue())
    write_bytes(folder / f"{split}.names", names.to_bytes())


def read_index(folder: Path, split: str, form: Form, expected: tuple[str, ...]) -> tuple[Columns, Names]:
    """Read the columns and names that `write_index` wrote.

    Args:
        folder: of the prepared dataset.
        split: its name.
        form: storage format of its samples.
        expected: names of the columns of this kind of split.

    Raises:
        DataError: the index is missing, damaged, or has unexpected columns, dtypes or values.
    """
    path = folder / f"{split}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            columns = dict(archive)
        text = (folder / f"{split}.names").read_bytes()
    except FileNotFoundError as error:
        raise missing(error.filename) from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged ({reason}); run: pipeline prepare") from None
    names = Names.parse(text)
    problem = _problem(columns, len(names), form, expected)
    if problem is not None:
        raise DataError(f"{path}: {problem}; run: pipeline prepare")
    if not _is_utf8(text):
        raise DataError(f"{folder / split}.names: names are not valid UTF-8; run: pipeline prepare")
    return columns, names


def read_labels(folder: Path, split: str) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Read keys (N,) and labels (N, ...) of a split alone: no sample, and no name.

    Raises:
        DataError: the index is missing or damaged.
    """
    path = folder / f"{split}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["keys"], archive["labels"]
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: cannot be read ({error}); run: pipeline prepare") from None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _problem(columns: Columns, count: int, form: Form, expected: tuple[str, ...]) -> str | None:
    """Describe the first problem of the columns of an index with `count` names, or return None."""
    if set(columns) - _NEWER != set(expected):
        return f"contains arrays {sorted(columns)}, expected {', '.join(sorted(expected))}"
    for name, values in columns.items():
        shape = (count, form.axes) if name == "shapes" else (count,)
        if name == "labels" and values.ndim == 2:
            if values.dtype.str not in (DTYPES["tags"], DTYPES["numbers"]) or len(values) != count:
                return f"labels are {values.dtype} {values.shape}, expected int8 or float32 ({count}, C)"
            continue
        if values.dtype.newbyteorder("<") != np.dtype(INDEX[name]) or values.shape != shape:
            return f"{name} is {values.dtype} {values.shape}, expected {INDEX[name]} {shape}"
    lengths, labels = columns["shapes"], columns["labels"]
    if count and not 1 <= int(lengths.min()) <= int(lengths.max()) <= form.longest:
        return (
            f"shapes range from {int(lengths.min())} to {int(lengths.max())}, expected 1 to {form.longest}"
        )
    if count and labels.dtype.kind == "i" and labels.size and int(labels.min()) < UNLABELLED:
        return f"a label is {int(labels.min())}, expected {UNLABELLED} or more"
    return None


def missing(path: str | Path) -> DataError:
    """Return the error for a file that is missing in a prepared dataset."""
    return DataError(f"{path}: missing; run: pipeline prepare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The storage format of a prepared dataset: arrays of one dtype, each with its own shape.

    A modality with further needs derives a class from this one.

    Args:
        dtype: NumPy's name of an integer type, e.g. uint8.
        axes: number of leading axes whose length varies per sample, at least 1; the index has the lengths.
        unit: lengths of the trailing axes, equal for all samples; () for none.
        decoder: name and version of the decoder of files; none for arrays.
    """

    dtype: str
    axes: int
    unit: tuple[int, ...] = ()
    decoder: str = NO_DECODER

    # The word for one sample in messages.
    noun: ClassVar[str] = "sample"
    # Whether equal samples are usual, e.g. histories of one item; elsewhere prepare reports them as leaks.
    repeats: ClassVar[bool] = False
    # Suffix of the file with a split's arrays, e.g. train.values.
    suffix: ClassVar[str] = "values"
    # The largest accepted length: an index is untrusted.
    longest: ClassVar[int] = (1 << 31) - 1

    @property
    def packs(self) -> bool:
        """Whether samples are packed into one file per split; otherwise their source files stay."""
        return True

    def shape(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return the full shape of a sample, given the lengths of its variable axes."""
        return (*lengths, *self.unit)

    def sizes(self, shapes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the number of values (n,) of samples of these shapes (n, axes)."""
        values: NDArray[np.int64] = shapes.astype(np.int64).prod(1) * math.prod(self.unit)
        return values

    @property
    def value_bytes(self) -> int:
        """Size of one value in bytes."""
        return np.dtype(self.dtype).itemsize

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Form:
        """Read the storage format from the values of a dataset.json.

        Raises:
            pydantic.ValidationError: wrong types or ranges.
        """
        found = _FormDescribed.model_validate(plain)
        return Form(dtype=found.dtype, axes=found.axes, unit=found.unit, decoder=found.decoder)

    def to_dict(self) -> dict[str, Any]:
        """Return the format as plain values for dataset.json."""
        return {
            "dtype": self.dtype,
            "axes": self.axes,
            "unit": list(self.unit),
            "decoder": self.decoder,
        }


class _FormDescribed(pydantic.BaseModel):
    """A storage format in dataset.json, which is untrusted."""

    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"]
    axes: Annotated[int, Field(ge=1, le=4)]
    unit: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...], Field(max_length=4)] = ()
    decoder: Annotated[str, Field(max_length=200)] = NO_DECODER
