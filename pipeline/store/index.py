"""Which samples the rows of a section are, and finding them by key, never by position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MismatchError
from pipeline.core.hashing import array_digest
from pipeline.samples.packed import Images
from pipeline.samples.samples import NO_DECODER

ABSENT = -1


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """Keys and content digests of N samples.

    Args:
        keys: (N,) uint64.
        digests: (N,) uint64, of image and label.
        decoder: what made the images from files.
    """

    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    decoder: str = NO_DECODER

    @classmethod
    def of(cls, images: Images) -> SampleIndex:
        """Return the index of a split, in its order."""
        return cls(images.keys, images.digests, images.decoder)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.keys)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each key (n,), `ABSENT` where there is none."""
        if not len(self):
            return np.full(len(keys), ABSENT, np.int64)
        place = np.searchsorted(self.keys, keys, sorter=self._order)
        rows = self._order[np.minimum(place, len(self) - 1)]
        return np.where(self.keys[rows] == keys, rows, ABSENT).astype(np.int64)

    def find_unchanged(self, images: Images, origin: str) -> NDArray[np.int64]:
        """Return the position of each sample of a split, `ABSENT` where there is none.

        Args:
            images: the split.
            origin: the store, for errors.

        Raises:
            MismatchError: a sample has other content here.
        """
        rows = self.find(images.keys)
        changed = (rows != ABSENT) & (self.digests[rows] != images.digests) if len(self) else rows != rows
        _refuse(changed, images, origin, f"has other content there{self._other_decoder(images)}")
        return rows

    def rows_of(self, images: Images, origin: str, *, changed: bool = False) -> NDArray[np.int64]:
        """Return the position of each sample of a split.

        Args:
            images: the split.
            origin: the store, for errors.
            changed: accept samples that have other content here.

        Raises:
            MismatchError: a sample is not here, or has other content here.
        """
        rows = self.find(images.keys)
        _refuse(rows == ABSENT, images, origin, "is not in the store")
        return rows if changed else self.find_unchanged(images, origin)

    def _other_decoder(self, images: Images) -> str:
        same = self.decoder == images.decoder
        return "" if same else f", decoded by {self.decoder}, here by {images.decoder}"

    def begins_with(self, other: SampleIndex) -> bool:
        """Whether the first samples are just those of another index."""
        count = len(other)
        return np.array_equal(self.keys[:count], other.keys) and np.array_equal(
            self.digests[:count], other.digests
        )

    def with_new(self, images: Images) -> SampleIndex:
        """Return an index with a split's further samples behind those that are there."""
        new = self.find(images.keys) == ABSENT
        return SampleIndex(
            np.concatenate([self.keys, images.keys[new]]),
            np.concatenate([self.digests, images.digests[new]]),
            self.decoder,
        )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of keys and contents, in order."""
        return array_digest(self.keys, self.digests)


def _refuse(problem: NDArray[np.bool_], images: Images, origin: str, what: str) -> None:
    if problem.any():
        sample = images.names[int(np.argmax(problem))]
        raise MismatchError(
            f"{origin}: made from another dataset: sample {sample!r} {what} ({int(problem.sum()):,} of "
            f"{len(images):,} samples); expected the images that the teacher saw; restore the data, use a "
            f"new dump name, or remove the store with: rm -r {origin}"
        )
