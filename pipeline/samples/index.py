"""The index of a prepared split: what is known of each sample, and in which form samples are kept.

SPLIT.npz      arrays of N: shapes, labels, keys, digests, and what a kind of images needs beside them
SPLIT.names    one sample name a line
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.files import write_bytes
from pipeline.samples.samples import UNLABELLED, Names

Columns = dict[str, NDArray[Any]]
# What each column of the index is: dtype, and values a sample.
INDEX: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "shapes": ("<i4", (2,)),
    "labels": ("<i8", ()),
    "keys": ("<u8", ()),
    "digests": ("<u8", ()),
    "offsets": ("<i8", ()),
}
# Of a damaged archive: what numpy raises depends on the first wrong byte.
_DAMAGED = (
    *(EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError),
)
_LONGEST_SIDE = 1 << 20
Keep = Literal["pixels", "encoded"]


def write_index(folder: Path, split: str, columns: Columns, names: Names) -> None:
    """Write the index of one split."""
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    write_bytes(folder / f"{split}.npz", buffer.getvalue())
    write_bytes(folder / f"{split}.names", names.to_bytes())


def read_index(folder: Path, split: str, expected: tuple[str, ...]) -> tuple[Columns, Names]:
    """Return what `write_index` wrote.

    Args:
        folder: of the prepared dataset.
        split: whose index.
        expected: names of the columns of its kind of images.

    Raises:
        DataError: it is missing, damaged, or not of the form that is written.
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
    problem = _problem(columns, len(names), expected)
    if problem is not None:
        raise DataError(f"{path}: {problem}; run: pipeline prepare")
    if not _is_utf8(text):
        raise DataError(f"{folder / split}.names: not names in UTF-8; run: pipeline prepare")
    return columns, names


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _problem(columns: Columns, count: int, expected: tuple[str, ...]) -> str | None:
    """Say in what columns are not those of an index of so many names."""
    if set(columns) != set(expected):
        return f"has the arrays {sorted(columns)}, expected {', '.join(sorted(expected))}"
    for name, values in columns.items():
        kind, shape = INDEX[name]
        if values.dtype.newbyteorder("<") != np.dtype(kind) or values.shape != (count, *shape):
            return f"{name} is {values.dtype} {values.shape}, expected {kind} {(count, *shape)}"
    sides, labels = columns["shapes"], columns["labels"]
    if count and not 1 <= int(sides.min()) <= int(sides.max()) <= _LONGEST_SIDE:
        return f"sides of {int(sides.min())} to {int(sides.max())} pixels, expected 1 to {_LONGEST_SIDE}"
    if count and int(labels.min()) < UNLABELLED:
        return f"a label of {int(labels.min())}, expected {UNLABELLED} or more"
    return None


def missing(path: str | Path) -> DataError:
    """Return what to say of a file that a prepared dataset lacks."""
    return DataError(f"{path}: missing; run: pipeline prepare")


# In which form the images of a prepared dataset are kept.


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """In which form the images of a prepared dataset are kept.

    Args:
        channels: 1 or 3.
        decoder: what makes pixels of files, with its version.
        keep: pixels, packed once, or encoded, files that are decoded at use.
        short_side: largest shorter side in pixels; larger images are shrunk to it. None leaves all alone.
        root: of files, the folder that names are relative to; where it is relative itself, to the folder
            of the prepared dataset. None for pixels.
    """

    channels: int
    decoder: str
    keep: Keep = "pixels"
    short_side: int | None = None
    root: str | None = None

    @property
    def packs(self) -> bool:
        """Whether samples are packed into one file a split; otherwise their own files stay."""
        return self.keep == "pixels"

    def to_dict(self) -> dict[str, Any]:
        """Return the form as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Return the form that `to_dict` described, among other things."""
        return cls(**{field.name: value[field.name] for field in fields(cls)})


def relative_root(root: Path, folder: Path) -> str:
    """Return the root of files as a prepared dataset in `folder` names it: the project may be moved."""
    return str(root) if root.is_absolute() else os.path.relpath(root, folder)


def find_root(root: str, folder: Path) -> Path:
    """Return the folder that `relative_root` named, absolute: a program may change its own folder."""
    # Not resolved: folders on the way may be links.
    return Path(os.path.abspath(folder / root))
