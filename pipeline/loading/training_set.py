"""What a network is shown of a split in training: which images, with which labels, and for how long.

Which views of them, and in which order, is left to the feed and the loader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import array_digest
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingSet:
    """Images of a split, the labels that are told of them, and how long an epoch is.

    Who has a teacher's logits learns from every image; who has labels alone is shown the labelled ones.

    Args:
        images: N of the split.
        labels: (N,) int64 as they are told, -1 for none.
        length: images an epoch; more than N are several passes.
    """

    images: Split
    labels: NDArray[np.int64]
    length: int

    @classmethod
    def of_all(cls, images: Split, labels: NDArray[np.int64] | None = None) -> TrainingSet:
        """Return a training set of all images.

        Args:
            images: the split.
            labels: (N,) as they are told; None for the images' own.
        """
        labels = images.labels if labels is None else labels
        return cls(images=images, labels=labels, length=len(images))

    @classmethod
    def of_labelled(
        cls, images: Split, labels: NDArray[np.int64] | None = None, *, length: int | None = None
    ) -> TrainingSet:
        """Return a training set of the labelled images alone.

        Args:
            images: the split.
            labels: (N,) as they are told; None for the images' own.
            length: images an epoch; None for one pass.

        Raises:
            DataError: there are none.
        """
        labels = images.labels if labels is None else labels
        rows = np.flatnonzero(labels != UNLABELLED)
        if not len(rows):
            raise DataError(
                f"none of {len(images):,} training images is labelled; expected some to train on without a "
                "teacher's logits; label images, or train a student from a dump"
            )
        return cls(images=images.subset(rows), labels=labels[rows], length=length or len(rows))

    @property
    def labelled(self) -> int:
        """How many images are labelled."""
        return int((self.labels != UNLABELLED).sum())

    def identity(self) -> dict[str, Any]:
        """Return what decides what is shown."""
        return {
            "images": self.images.digest(),
            "labelled": self.labelled,
            "labels": array_digest(self.labels),
            "length": self.length,
        }

    def remarks(self) -> list[str]:
        """Say, for people, what is not as in most lessons: missing labels, and several passes."""
        count, said = len(self.labels), []
        if self.labelled < count:
            said.append(f"{self.labelled:,} labelled")
        if self.length != count:
            said.append(f"shown again and again, in as many steps as {self.length:,} images have")
        return said
