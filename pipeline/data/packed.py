"""Decoded images, packed: one flat file of uint8 pixels a split, memory-mapped.

SPLIT.pixels   all images one after the other, rows of H x W x C uint8
SPLIT.npz      of the index, with offsets: where each image starts
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import content_digest
from pipeline.data.form import Form
from pipeline.data.images import Images, Uniform
from pipeline.data.index import missing, read_index


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedImages(Images):
    """Images that were decoded once.

    Args:
        pixels: flat uint8, memory-mapped.
        offsets: (N,) int64, where each image starts in `pixels`.
        origin: the file, for errors.

    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    origin: str = "pixels"

    columns: ClassVar[tuple[str, ...]] = ("offsets", *Images.columns)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8, without a copy."""
        height, width = self.shapes[row].tolist()
        start = int(self.offsets[row])
        return self.pixels[start : start + height * width * self.channels].reshape(height, width, -1)

    def faults(self, rows: NDArray[np.int64]) -> list[str]:
        """Return a line for each of some images (n,) whose pixels are not those that were prepared.

        Costs a BLAKE2b of each image: about 1 ms a megabyte.
        """
        found = (content_digest(self.image(row), int(self.labels[row])) for row in rows.tolist())
        digests = np.fromiter(found, np.uint64, len(rows))
        return [
            f"{self.origin}: image {self.names[row]!r} is not the one that was prepared (its pixels do not "
            "have its digest); run: pipeline prepare"
            for row in rows[digests != self.digests[rows]].tolist()
        ]

    @functools.cached_property
    def uniform(self) -> Uniform | None:
        """The file as images of one size (M, H, W, C) and each sample's place in it (N,).

        Nothing is copied. None where sizes differ; M is more than N for a subset.
        """
        if len(self) == 0 or (self.shapes != self.shapes[0]).any():
            return None
        height, width = self.shapes[0]
        count = int(height) * int(width) * self.channels
        if self.pixels.size % count or (self.offsets % count).any():
            return None
        return self.pixels.reshape(-1, height, width, self.channels), self.offsets // count


def pixel_offsets(shapes: NDArray[np.int32], channels: int) -> NDArray[np.int64]:
    """Return where each of N images starts in a file that holds them all, and where it ends (N + 1,)."""
    offsets = np.zeros(len(shapes) + 1, np.int64)
    np.cumsum(shapes.astype(np.int64).prod(1) * channels, out=offsets[1:])
    return offsets


def open_packed(folder: Path, split: str, form: Form) -> PackedImages:
    """Open a split of packed images.

    Raises:
        DataError: a file is missing or not whole.
    """
    path = folder / f"{split}.pixels"
    columns, names = read_index(folder, split, PackedImages.columns)
    if not path.exists():
        raise missing(path)
    offsets = pixel_offsets(columns["shapes"], form.channels)
    size, expected = path.stat().st_size, int(offsets[-1])
    if size != expected:
        raise DataError(f"{path}: {size} bytes, expected {expected}; run: pipeline prepare")
    if not np.array_equal(columns["offsets"], offsets[:-1]):
        raise DataError(
            f"{folder / split}.npz: offsets are not those of images of its shapes, one after the other; "
            "run: pipeline prepare"
        )
    # As a plain array: slicing a memmap costs more than copying a small image.
    pixels = np.memmap(path, np.uint8, "r").view(np.ndarray) if size else np.zeros(0, np.uint8)
    return PackedImages(
        pixels=pixels,
        origin=str(path),
        channels=form.channels,
        names=names,
        decoder=form.decoder,
        **columns,
    )
