"""Encoded samples inside larger files: tars, Parquet files, and Arrow files of the library `datasets`.

A cell is the place of one sample's bytes. Its location tells only `prepare` and a reader of data that stays
encoded about the bytes to read: a sample's key is its name, wherever it lies. All reading of samples'
bytes inside other files goes through `Container.read`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import bytes_glance
from pipeline.places.chunks import ChunkedFile
from pipeline.places.folder import Root
from pipeline.places.objects import ObjectPlace
from pipeline.places.place import Tag
from pipeline.samples import arrow

Bytes = NDArray[np.uint8]  # (n,)
File = Path | ChunkedFile
ContainerKind = Literal["tar", "parquet", "arrow"]
# The end of an encoded file differs between nearly all files, and reading it costs little.
_GLANCE_BYTES = 4096
_POSITIVE = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The files with the samples of a dataset.

    Args:
        kind: of the files.
        root: folder or place that the parts' names are relative to.
        parts: names of the files.
        column: with the bytes, in tables; "" for tars.
        objects: size and tag of each file in a bucket; () in a folder.
    """

    kind: ContainerKind
    root: Root
    parts: tuple[str, ...]
    column: str = ""
    objects: tuple[tuple[int, Tag], ...] = ()

    def file(self, part: int) -> File:
        """Return a file by its number."""
        if isinstance(self.root, ObjectPlace):
            return ChunkedFile(self.root, self.parts[part], *self.objects[part])
        return self.path(part)

    def path(self, part: int) -> Path:
        """Return the path of a file on the local disk, by its number."""
        if not isinstance(self.root, Path):
            raise TypeError(f"{self.root} is no folder")
        return self.root / self.parts[part]

    def read(self, cell: Cell) -> Bytes:
        """Return the bytes of a sample.

        Raises:
            DataError: the file is missing or shorter, or the sample is not there.
        """
        if self.kind == "tar":
            return read_range(self.file(cell.part), cell.start, cell.length)
        read = arrow.parquet_cell if self.kind == "parquet" else arrow.arrow_cell
        return read(self.path(cell.part), self.column, cell.start)

    def forget(self, cell: Cell) -> bool:
        """Remove a sample's bytes from the cache of a bucket; return whether there is one."""
        file = self.file(cell.part)
        if not isinstance(file, ChunkedFile):
            return False
        file.forget(cell.start, cell.length)
        return True


@dataclass(frozen=True, slots=True)
class Cell:
    """The place of a sample's bytes in a container.

    Args:
        part: number of the file.
        start: first byte in a tar; number of the row in a table.
        length: in bytes.
    """

    part: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Content:
    """The encoded bytes of one sample; call it to read them.

    Args:
        container: of the sample.
        cell: its place.
    """

    container: Container
    cell: Cell

    def __call__(self) -> Bytes:
        """Return the bytes."""
        return self.container.read(self.cell)

    def stamp(self) -> tuple[int, int]:
        """Return values that tell whether a later run has to read this sample again.

        Of a tar's member: its length, and a hash of its last 4 KiB. So other members may be added, moved or
        removed. Of a table's row: length and time of the whole file, whose rows have no fixed place.
        """
        if self.container.kind != "tar":
            return _file_stamp(self.container.path(self.cell.part))
        file, tail = self.container.file(self.cell.part), min(self.cell.length, _GLANCE_BYTES)
        try:
            end = read_range(file, self.cell.start + self.cell.length - tail, tail)
        except DataError:
            return -1, -1
        return self.cell.length, bytes_glance(end) & _POSITIVE


def read_range(path: File, start: int, length: int) -> Bytes:
    """Return some bytes of a file.

    Raises:
        DataError: the file is missing or shorter.
        StoreError: the bucket of the file cannot be reached.
    """
    # Compared first: an index is untrusted, and a length decides how much memory is taken.
    if isinstance(path, ChunkedFile):
        if start + length > path.size:
            raise _too_short(path, start + length)
        return path.read(start, length)
    try:
        with path.open("rb") as file:
            if start + length > os.fstat(file.fileno()).st_size:
                raise _too_short(path, start + length)
            content = np.empty(length, np.uint8)
            file.seek(start)
            if file.readinto(content.data) < length:
                raise OSError(0, "it became shorter meanwhile")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected the file that was prepared; restore it, "
            "or run: pipeline prepare"
        ) from None
    return content


def _too_short(file: File, stop: int) -> DataError:
    return DataError(
        f"{file}: ends before byte {stop:,}; expected the file that was prepared; restore it, or run: "
        "pipeline prepare"
    )


def _file_stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


# The columns of an index with the cells of N samples.


def cell_columns(cells: list[Cell]) -> dict[str, NDArray[Any]]:
    """Return the columns of an index (N,) for cells."""
    count = len(cells)
    return {
        "parts": np.fromiter((cell.part for cell in cells), np.int32, count),
        "starts": np.fromiter((cell.start for cell in cells), np.int64, count),
        "lengths": np.fromiter((cell.length for cell in cells), np.int64, count),
    }


def require_cells(where: Path, columns: Mapping[str, NDArray[Any]], parts: int) -> None:
    """Refuse the columns of an untrusted index with impossible places.

    Raises:
        DataError: a part without a file, or a negative number.
    """
    numbers = columns["parts"]
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < parts:
        problem = f"names part {int(numbers.max())} of {parts}"
    elif any((columns[name] < 0).any() for name in ("starts", "lengths")):
        problem = "has a negative place"
    else:
        return
    raise DataError(f"{where}: {problem}; run: pipeline prepare")
