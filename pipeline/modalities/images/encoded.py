"""Encoded images, whose files stay in place and are decoded on use; and the moments of pixels.

The index holds each image's decoded shape and a digest of its bytes, and the place of an image inside a
larger file, e.g. a tar. An image that has changed since preparation is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted
from pipeline.core.hashing import bytes_glance, encoded_digest
from pipeline.modalities.images.decoding import decode, read_file, shrink
from pipeline.modalities.images.form import ImageForm, find_root
from pipeline.places.folder import Root
from pipeline.samples.containers import Cell, Container, require_cells
from pipeline.samples.index import read_index
from pipeline.samples.label_forms import label_word
from pipeline.samples.packed import Split

_LEVELS = 256
# Smallest deviation, so that a constant channel can be divided by it.
_LEAST_STD = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedSplit(Split):
    """Images decoded on use.

    Args:
        root: folder that the samples' names are relative to.

    """

    form: ImageForm
    root: Root

    decodes_at_use: ClassVar[bool] = True

    def array(self, row: int) -> NDArray[np.uint8]:
        """Read, decode and shrink one image (H, W, C) uint8.

        Raises:
            DataError: the file is missing or has changed since preparation.
        """
        path, content = self._path(row), self._content(row)
        height, width = self.shapes[row].tolist()
        image = shrink(decode(content, self.form.channels, path), self.form.short_side)
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path}: decodes to {image.shape[0]}x{image.shape[1]} pixels; expected {height}x{width}, "
                "according to its header; re-save it and run: pipeline prepare; or set data.keep: pixels"
            )
        return image

    def digests_with(self, row: int, words: Iterable[int]) -> list[int]:
        """Return a digest of one file's bytes with each of these label words."""
        content, shape = self._read(row), (*self.shapes[row].tolist(), self.form.channels)
        return [encoded_digest(content, shape, word) for word in words]

    def faults(self, rows: NDArray[np.int64]) -> list[str]:
        """Return a line for each of these files (n,) that is missing or changed since preparation."""
        lines = []
        for row in rows.tolist():
            try:
                self._content(row)
            except DataError as error:
                lines.append(str(error))
        return lines

    def _path(self, row: int) -> Path | str:
        """Return the path of an image, or a name of it for messages."""
        return Path(str(self.root)) / self.names[row]

    def _read(self, row: int) -> NDArray[np.uint8]:
        """Return the bytes of an image, changed or not."""
        path = Path(self._path(row))
        if not path.exists():
            raise DataError(f"{path}: missing, but it was prepared; restore it, or run: pipeline prepare")
        return read_file(path)

    def _content(self, row: int) -> NDArray[np.uint8]:
        """Read an image and require its prepared content."""
        content = self._read(row)
        if self._is_prepared(row, content):
            return content
        if self._forget(row) and self._is_prepared(row, content := self._read(row)):
            return content
        raise DataError(
            f"{self._path(row)}: content ({counted(len(content), 'byte')}) has changed since it was "
            "prepared; restore the file, or run: pipeline prepare"
        )

    def _is_prepared(self, row: int, content: NDArray[np.uint8]) -> bool:
        shape = (*self.shapes[row].tolist(), self.form.channels)
        return bool(encoded_digest(content, shape, label_word(self.labels[row])) == self.digests[row])

    def _forget(self, row: int) -> bool:
        """Remove a copy of the bytes, which may be damaged; return whether there is one."""
        return False


@dataclass(frozen=True, eq=False, kw_only=True)
class ContainedSplit(EncodedSplit):
    """Images inside larger files, decoded on use.

    Args:
        container: the files.
        parts: (N,) int32, number of the file of each image.
        starts: (N,) int64, its first byte in a tar, or its row in a table.
        lengths: (N,) int64, its length in bytes in a tar.
    """

    container: Container
    parts: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    columns: ClassVar[tuple[str, ...]] = ("parts", "starts", "lengths", *EncodedSplit.columns)

    def _path(self, row: int) -> Path | str:
        file = self.container.file(int(self.parts[row]))
        return file / self.names[row] if isinstance(file, Path) else f"{file}/{self.names[row]}"

    def _read(self, row: int) -> NDArray[np.uint8]:
        return self.container.read(self._cell(row))

    def _forget(self, row: int) -> bool:
        return self.container.forget(self._cell(row))

    def _cell(self, row: int) -> Cell:
        return Cell(int(self.parts[row]), int(self.starts[row]), int(self.lengths[row]))


def open_encoded(folder: Path, split: str, form: ImageForm) -> EncodedSplit:
    """Open a split of encoded images; image files are read only on use.

    Raises:
        DataError: an index file is missing or damaged.
    """
    root = find_root(form.root or "", folder)
    if form.contained is None:
        columns, names = read_index(folder, split, form, EncodedSplit.columns)
        return EncodedSplit(root=root, form=form, names=names, **columns)
    columns, names = read_index(folder, split, form, ContainedSplit.columns)
    require_cells(folder / f"{split}.npz", columns, len(form.contained.parts))
    container = form.contained.at(root)
    return ContainedSplit(root=root, form=form, names=names, container=container, **columns)


# Mean and deviation of pixels, from exact integer counts.


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Histogram of the levels of some images, per channel; histograms can be added and subtracted.

    Args:
        counts: (C, 256) int64.
    """

    counts: NDArray[np.int64]

    @classmethod
    def none(cls, channels: int) -> Moments:
        """Return the counts of zero images."""
        return cls(np.zeros((channels, _LEVELS), np.int64))

    @classmethod
    def of(cls, image_HWC: NDArray[np.uint8]) -> Moments:
        """Count the levels of one image."""
        # torch's bincount releases the GIL, numpy's does not. A copy: images may be read-only.
        channels = (torch.from_numpy(image_HWC[..., c].flatten()) for c in range(image_HWC.shape[2]))
        return cls(np.stack([torch.bincount(c, minlength=_LEVELS).numpy() for c in channels]))

    def glance(self) -> int:
        """Return a 64-bit digest of the counts; different images hardly ever share one."""
        return bytes_glance(self.counts.view(np.uint8))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.counts - other.counts)

    def to_plain(self) -> list[list[int]]:
        """Return the counts as plain values."""
        counts: list[list[int]] = self.counts.tolist()
        return counts

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return mean and deviation of pixels scaled to 0..1, rounded to six digits."""
        values = np.arange(_LEVELS) / (_LEVELS - 1)
        total = self.counts.sum(1)
        mean = self.counts @ values / total
        variance = self.counts @ values**2 / total - mean**2
        std = np.sqrt(np.maximum(variance, 0))
        return [round(float(m), 6) for m in mean], [max(round(float(s), 6), _LEAST_STD) for s in std]
