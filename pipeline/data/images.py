"""Images of one split: the one interface through which all others see them, however they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import array_digest
from pipeline.data.names import Names
from pipeline.data.sample import NO_DECODER

Uniform = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Images(ABC):
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
    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image (H, W, C) uint8; safe to call from any thread."""

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

    def subset(self, rows: NDArray[np.int64]) -> Images:
        """Return some of the samples, in the given order."""
        chosen = {column: getattr(self, column)[rows] for column in self.columns}
        return replace(self, **chosen, names=self.names.subset(rows))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys and contents, in order."""
        return array_digest(self.keys, self.digests)
