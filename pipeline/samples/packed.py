"""Samples of one split: the interface through which all others see them, and those packed in one file."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import array_digest, content_digest
from pipeline.samples.index import Form, missing, read_index
from pipeline.samples.samples import NO_DECODER, UNLABELLED, Names

Uniform = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Split(ABC):
    """N images with labels, stable keys and content digests; a kind says where the pixels come from.

    Args:
        channels: 1 or 3.
        shapes: (N, 2) int32, heights and widths.
        labels: (N,) int64, -1 for unlabelled.
        keys: (N,) uint64, hashes of the samples' names.
        digests: (N,) uint64, hashes of each image's shape, content and label.
        names: the samples' names, for people.
        decoder: what makes pixels of files, with its version; none for arrays.

    """

    channels: int
    shapes: NDArray[np.int32]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    names: Names
    decoder: str = NO_DECODER

    columns: ClassVar[tuple[str, ...]] = ("shapes", "labels", "keys", "digests")
    decodes_at_use: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def array(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8; safe to call from any thread."""

    def content(self, row: int) -> int:
        """Return a digest of one sample's content, whatever its label."""
        return content_digest(self.array(row), UNLABELLED)

    @abstractmethod
    def faults(self, rows: NDArray[np.int64]) -> list[str]:
        """Return a line for each of some images (n,) whose bytes are not those that were prepared."""

    def require_unchanged(self, rows: NDArray[np.int64]) -> None:
        """Refuse images (n,) whose bytes are not those that were prepared; from any thread.

        Images that are decoded at use are compared whenever they are read, and need no other look.

        Raises:
            DataError: naming the first, and how many there are.
        """
        faults = [] if self.decodes_at_use else self.faults(rows)
        if faults:
            more = f" ({len(faults):,} of {len(rows):,} images looked at)" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}")

    @property
    def uniform(self) -> Uniform | None:
        """Images of one size in memory (M, H, W, C), and each sample's place among them (N,).

        None where there is no such array.
        """
        return None

    @property
    def size_bytes(self) -> int:
        """Size of the samples' pixels."""
        return int(self.shapes.astype(np.int64).prod(1).sum()) * self.channels

    def subset(self, rows: NDArray[np.int64]) -> Split:
        """Return some of the samples, in the given order."""
        chosen = {column: getattr(self, column)[rows] for column in self.columns}
        return replace(self, **chosen, names=self.names.subset(rows))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys and contents, in order."""
        return array_digest(self.keys, self.digests)


# Decoded images, packed: one flat file of uint8 pixels a split, memory-mapped.
#
# SPLIT.pixels   all images one after the other, rows of H x W x C uint8
# SPLIT.npz      of the index, with offsets: where each image starts


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedSplit(Split):
    """Images that were decoded once.

    Args:
        pixels: flat uint8, memory-mapped.
        offsets: (N,) int64, where each image starts in `pixels`.
        origin: the file, for errors.

    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    origin: str = "pixels"

    columns: ClassVar[tuple[str, ...]] = ("offsets", *Split.columns)

    def array(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8, without a copy."""
        height, width = self.shapes[row].tolist()
        start = int(self.offsets[row])
        return self.pixels[start : start + height * width * self.channels].reshape(height, width, -1)

    def faults(self, rows: NDArray[np.int64]) -> list[str]:
        """Return a line for each of some images (n,) whose pixels are not those that were prepared.

        Costs a BLAKE2b of each image: about 1 ms a megabyte.
        """
        found = (content_digest(self.array(row), int(self.labels[row])) for row in rows.tolist())
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


def open_packed(folder: Path, split: str, form: Form) -> PackedSplit:
    """Open a split of packed images.

    Raises:
        DataError: a file is missing or not whole.
    """
    path = folder / f"{split}.pixels"
    columns, names = read_index(folder, split, PackedSplit.columns)
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
    return PackedSplit(
        pixels=pixels,
        origin=str(path),
        channels=form.channels,
        names=names,
        decoder=form.decoder,
        **columns,
    )
