"""How many labels a class students are given: some are kept, all others hidden from them.

Hiding changes no image and no digest, so one dump serves students of any budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.random import Lane, permutation
from pipeline.data.images import Images
from pipeline.data.sample import UNLABELLED


def keep_labels(images: Images, classes: Sequence[str], *, per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the labels (N,) of a split with all but some of each class hidden.

    Each sample is drawn by its own key, so those kept for a number are among those kept for a larger one,
    and the order of the split does not matter.

    Args:
        images: the split.
        classes: C names.
        per_class: labels to keep of each class, at least 1.
        seed: 64-bit unsigned.

    Raises:
        DataError: a class has fewer.
    """
    counts = np.bincount(images.labels[images.labels != UNLABELLED], minlength=len(classes))
    smallest = int(counts.argmin())
    if counts[smallest] < per_class:
        raise DataError(
            f"data.labels_per_class is {per_class}, and class {classes[smallest]!r} has "
            f"{counts[smallest]} labelled images to train on; expected at most as many; lower it, or label "
            "more"
        )
    kept = np.full(len(images), UNLABELLED, np.int64)
    for label in range(len(classes)):
        rows = np.flatnonzero(images.labels == label)
        order = permutation(seed=seed, epoch=0, keys=images.keys[rows], lane=Lane.LABELS)
        kept[rows[order[:per_class]]] = label
    return kept
