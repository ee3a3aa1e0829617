"""The training set of a run: samples of a split, student labels, and the length of an epoch.

Views are left to the feed, the order to the loader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.hashing import array_digest
from pipeline.samples.label_forms import is_known
from pipeline.samples.packed import Split


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingSet:
    """Samples of a split, student labels, and the length of an epoch.

    Distilled students train on every sample, baselines only on labelled ones.

    Args:
        images: N samples of the split.
        labels: (N, ...) student labels, of the samples' kind.
        length: samples per epoch; more than N means several passes.
    """

    images: Split
    labels: NDArray[Any]
    length: int

    @classmethod
    def of_all(cls, images: Split, labels: NDArray[Any] | None = None) -> TrainingSet:
        """Return a training set with all images.

        Args:
            images: the split.
            labels: (N,) student labels; None for the images' labels.
        """
        labels = images.labels if labels is None else labels
        return cls(images=images, labels=labels, length=len(images))

    @classmethod
    def of_labelled(
        cls, images: Split, labels: NDArray[Any] | None = None, *, length: int | None = None
    ) -> TrainingSet:
        """Return a training set with the labelled samples only.

        Args:
            images: the split.
            labels: (N,) student labels; None for the images' labels.
            length: samples per epoch; None for one pass.

        Raises:
            DataError: no sample is labelled.
        """
        labels = images.labels if labels is None else labels
        rows = np.flatnonzero(is_known(labels))
        if not len(rows):
            raise DataError(
                f"none of the {len(images):,} training samples is labelled, and training without a dump "
                "needs labels; label samples, or train a student from a dump"
            )
        return cls(images=images.subset(rows), labels=labels[rows], length=length or len(rows))

    @property
    def labelled(self) -> int:
        """Number of labelled images."""
        return int(is_known(self.labels).sum())

    def identity(self) -> dict[str, Any]:
        """Return digests that identify the training set."""
        return {
            "images": self.images.digest(),
            "labelled": self.labelled,
            "labels": array_digest(self.labels),
            "length": self.length,
        }

    def remarks(self) -> list[str]:
        """Return remarks for the progress output: missing labels, several passes."""
        count, said = len(self.labels), []
        if self.labelled < count:
            said.append(f"{self.labelled:,} labelled")
        if self.length != count:
            said.append(f"repeated to fill as many steps as {self.length:,} samples")
        return said
