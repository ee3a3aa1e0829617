"""Labels: valid class names, known labels, and the number of labels that students may see."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of
from pipeline.core.progress import note
from pipeline.core.random import Lane, permutation
from pipeline.samples.label_forms import kind_of
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED

# Control characters, surrogates, line and paragraph separators.
_UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
_INVISIBLE = "Cf"
_SHOWN = 5
Labels = Mapping[str, NDArray[Any]]  # split -> (N,) integers
LabelWords = Mapping[str, tuple[NDArray[np.uint64], NDArray[np.int64]]]  # split -> keys and words (N,)


def require_class_names(where: object, names: Sequence[str]) -> None:
    """Refuse class names that look alike or would break a line.

    Args:
        where: the source, for errors.
        names: of the classes.

    Raises:
        DataError: an empty name, one with control characters, or two that look alike.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not normal(name):
            raise DataError(f"{where}: class name {ascii(name)[:100]} is empty; expected text; rename it")
        if any(unicodedata.category(character) in _UNPRINTED for character in name):
            raise DataError(
                f"{where}: class name {ascii(name)[:100]} has control characters; expected one line of "
                "text; rename it"
            )
        other = seen.get(normal(name))
        seen[normal(name)] = name
        if other is not None:
            how = (
                "occurs twice"
                if other == name
                else f"and {ascii(other)[:100]} differ only in Unicode normalisation or outer spaces"
            )
            raise DataError(
                f"{where}: class name {ascii(name)[:100]} {how}; expected unique class names; rename one, "
                "or merge the classes"
            )


def normal(name: str) -> str:
    """Normalise a name to composed Unicode without invisible characters and outer spaces.

    Names that look equal are equal then.
    """
    shown = "".join(letter for letter in name if unicodedata.category(letter) != _INVISIBLE)
    return unicodedata.normalize("NFC", shown).strip()


def moved_class(there: Sequence[str], here: Sequence[str]) -> int | None:
    """Return the first class of `here` that has another place among as many classes; None if none has.

    >>> moved_class(["cat", "dog"], ["dog", "cat"]), moved_class(["0", "1"], ["cat", "dog"])
    (0, None)
    """
    known = set(there)
    pairs = zip(there, here, strict=True)
    return next((n for n, (one, other) in enumerate(pairs) if one != other and other in known), None)


# Numeric labels: their classes, and whether every class can be learned.


def numbered_classes(where: object, labels: Labels) -> tuple[tuple[str, ...], Labels]:
    """Name unnamed classes by their numbers; return the names, and the labels as indices into them.

    Labels that begin at 1 are shifted by 1, and the classes are named 1 to the highest label.

    Raises:
        DataError: labels have large gaps.
    """
    top = 1 + max(int(some.max()) for some in labels.values())
    occurring = len(np.unique(labels["train"]))
    if top > 2 * occurring:
        raise DataError(
            f"{where}: label {top - 1} is out of range; expected labels from 0 without large gaps, but "
            f"train_labels has only {occurring} different ones; correct them, or name the classes in "
            "'classes'"
        )
    if not _begin_at_one(labels):
        return tuple(map(str, range(top))), labels
    note(f"{where}: labels start at 1: {top - 1} classes, named 1 to {top - 1}")
    shifted = {split: np.where(some == UNLABELLED, some, some - 1) for split, some in labels.items()}
    return tuple(map(str, range(1, top))), shifted


def require_known_labels(where: object, classes: Sequence[str], labels: Labels) -> None:
    """Refuse labels without a class or a training sample; report classes without a labelled one.

    Raises:
        DataError: naming the first such label.
    """
    for some in labels.values():
        highest = int(some.max())
        if highest >= len(classes):
            mend = (
                "subtract 1, because labels start at 1"
                if _begin_at_one(labels)
                else "correct labels or classes"
            )
            raise DataError(
                f"{where}: label {highest} is out of range; expected -1 to {len(classes) - 1} for "
                f"{len(classes)} classes; {mend}"
            )
    trained = occurring(labels["train"])
    if not len(trained):
        return
    unseen = [classes[label] for label in np.setdiff1d(np.arange(len(classes)), trained)]
    # Unlabelled samples may be of any class.
    if len(labels["train"]) > np.count_nonzero(labels["train"] != UNLABELLED):
        tell_unseen(unseen, where, "labelled training sample")
        return
    for split, some in labels.items():
        unknown = np.setdiff1d(occurring(some), trained)
        if len(unknown):
            raise DataError(
                f"{where}: class {classes[unknown[0]]!r} (label {unknown[0]}) occurs in {split} but has "
                "no training sample; add some, or remove the class"
            )
    tell_unseen(unseen, where, "sample in any split")


def tell_unseen(names: Sequence[str], where: object, missing: str) -> None:
    """Report classes without a kind of sample, e.g. a labelled training sample."""
    if names:
        have = "has" if len(names) == 1 else "have"
        note(f"{where}: {counted(len(names), 'class')} {have} no {missing}: {first_of(names, _SHOWN)}")


def occurring(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the classes (n,) with a sample, or the tags that apply to one; numbers have no classes."""
    if labels.ndim == 1:
        return np.unique(labels[labels != UNLABELLED]).astype(np.int64)
    return np.flatnonzero((labels == 1).any(0)) if labels.dtype == np.int8 else np.zeros(0, np.int64)


def _begin_at_one(labels: Labels) -> bool:
    return min((int(known[0]) for known in map(occurring, labels.values()) if len(known)), default=0) == 1


# Labels per class that students may see; all others are hidden.
#
# Hiding changes no sample and no digest, so one dump serves students of any budget.


def keep_labels(images: Split, classes: Sequence[str], *, per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the labels (N,) of a split, with all but `per_class` of each class hidden.

    Samples are drawn by their keys. So a smaller number keeps a subset of a larger one, and the order of
    the split is irrelevant.

    Args:
        images: the split.
        classes: C names.
        per_class: labels to keep per class, at least 1.
        seed: 64-bit unsigned.

    Raises:
        DataError: a class has fewer labels, or labels are tags or numbers.
    """
    if images.labels.ndim > 1:
        raise DataError(
            f"data.labels_per_class is {per_class}, and labels are {kind_of(images.labels)}; expected one "
            "class per sample; set it to null"
        )
    counts = np.bincount(images.labels[images.labels != UNLABELLED], minlength=len(classes))
    smallest = int(counts.argmin())
    if counts[smallest] < per_class:
        raise DataError(
            f"data.labels_per_class is {per_class}, but class {classes[smallest]!r} has only "
            f"{counts[smallest]} labelled training samples; lower it, or label more"
        )
    kept = np.full(len(images), UNLABELLED, np.int64)
    for label in range(len(classes)):
        rows = np.flatnonzero(images.labels == label)
        order = permutation(seed=seed, epoch=0, keys=images.keys[rows], lane=Lane.LABELS)
        kept[rows[order[:per_class]]] = label
    return kept
