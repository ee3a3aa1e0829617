"""Labels that are numbers: which classes they are of, and whether every class can be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of
from pipeline.core.progress import note
from pipeline.data.sample import UNLABELLED

_SHOWN = 5

Labels = Mapping[str, NDArray[Any]]  # split -> (N,) integers


def numbered_classes(where: object, labels: Labels) -> tuple[tuple[str, ...], Labels]:
    """Return names for classes that have none, and the labels as indices into them.

    Labels that begin at 1 are of as many classes as the highest says, and keep their numbers as names.

    Raises:
        DataError: labels have large gaps.
    """
    top = 1 + max(int(some.max()) for some in labels.values())
    occurring = len(np.unique(labels["train"]))
    if top > 2 * occurring:
        raise DataError(
            f"{where}: label {top - 1} is out of range; expected labels from 0 without large gaps, and "
            f"only {occurring} different ones occur in train_labels; correct them, or name the classes in "
            "'classes'"
        )
    if not _begin_at_one(labels):
        return tuple(map(str, range(top))), labels
    note(f"{where}: labels begin at 1: {top - 1} classes, named 1 to {top - 1}")
    shifted = {split: np.where(some == UNLABELLED, some, some - 1) for split, some in labels.items()}
    return tuple(map(str, range(1, top))), shifted


def require_known_labels(where: object, classes: Sequence[str], labels: Labels) -> None:
    """Refuse labels without a class or a training image; tell of classes without a labelled one.

    Raises:
        DataError: naming the first such label.
    """
    for some in labels.values():
        highest = int(some.max())
        if highest >= len(classes):
            mend = (
                "subtract 1, as labels begin at 1" if _begin_at_one(labels) else "correct labels or classes"
            )
            raise DataError(
                f"{where}: label {highest} is out of range; expected -1 to {len(classes) - 1}, since there "
                f"are {len(classes)} classes; {mend}"
            )
    trained = _occurring(labels["train"])
    if not len(trained):
        return
    unseen = [classes[label] for label in np.setdiff1d(np.arange(len(classes)), trained)]
    # Unlabelled images may show any class.
    if len(labels["train"]) > np.count_nonzero(labels["train"] != UNLABELLED):
        tell_unseen(unseen, where, "labelled training image")
        return
    for split, some in labels.items():
        unknown = np.setdiff1d(_occurring(some), trained)
        if len(unknown):
            raise DataError(
                f"{where}: class {classes[unknown[0]]!r} (label {unknown[0]}) occurs in {split} and has no "
                "training image; expected at least one; add some, or leave the class out"
            )
    tell_unseen(unseen, where, "image at all")


def tell_unseen(names: Sequence[str], where: object, missing: str) -> None:
    """Tell of classes without some kind of image."""
    if names:
        have = "has" if len(names) == 1 else "have"
        note(f"{where}: {counted(len(names), 'class')} {have} no {missing}: {first_of(names, _SHOWN)}")


def _occurring(labels: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(labels[labels != UNLABELLED]).astype(np.int64)


def _begin_at_one(labels: Labels) -> bool:
    return min((int(known[0]) for known in map(_occurring, labels.values()) if len(known)), default=0) == 1
