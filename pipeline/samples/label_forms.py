"""Kinds of labels: one class index, a truth value per tag, or numbers; and the missing ones of each.

    kind      array of N samples   unlabelled row   missing value
    index     (N,) int64           -1               -
    tags      (N, C) int8          all -1           -1: nobody said whether the tag applies
    numbers   (N, C) float32       all NaN          -

A split's array tells its kind by its dtype. Which kinds fit is the task's matter.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, first_of, quoted
from pipeline.samples.samples import NO_CLASSES, UNLABELLED, Label, Sample, Source

LabelKind = Literal["index", "tags", "numbers"]
# Little-endian dtype of each kind, as the index of a split has it.
DTYPES: Mapping[LabelKind, str] = {"index": "<i8", "tags": "|i1", "numbers": "<f4"}
_DESCRIBED: Mapping[LabelKind, str] = {
    "index": "one class per sample",
    "tags": "0, 1 or -1 for each of several tags",
    "numbers": "numbers",
}


def kind_of(labels_N: NDArray[Any]) -> LabelKind:
    """Return the kind of a split's labels.

    >>> kind_of(np.zeros((4, 3), np.int8))
    'tags'
    """
    if labels_N.dtype.kind == "f":
        return "numbers"
    return "index" if labels_N.ndim == 1 else "tags"


def is_known(labels_N: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (N,) bool: whether a sample is labelled; of tags, whether any is known."""
    if labels_N.ndim == 1:
        return np.asarray(labels_N != UNLABELLED)
    known = np.isfinite(labels_N) if labels_N.dtype.kind == "f" else labels_N != UNLABELLED
    return np.asarray(known.any(1))


def label_word(label: Label) -> int:
    """Return a 64-bit integer for a label: equal for equal labels, -1 for unlabelled.

    An index is its own word. Of other labels it is a hash, which a sample's content digest includes.
    """
    if isinstance(label, int) or np.ndim(label) == 0:
        return int(label)
    row = np.asarray(label)
    if not is_known(row[None])[0]:
        return UNLABELLED
    little = np.ascontiguousarray(row, row.dtype.newbyteorder("<"))
    return int.from_bytes(hashlib.blake2b(little.data, digest_size=8).digest(), "little", signed=True)


def label_words(labels_N: NDArray[Any]) -> NDArray[np.int64]:
    """Return the word of each label (N,)."""
    if labels_N.ndim == 1:
        return labels_N.astype(np.int64)
    return np.fromiter(map(label_word, labels_N), np.int64, len(labels_N))


def gather_labels(samples: Sequence[Sample], kind: LabelKind, width: int) -> NDArray[Any]:
    """Return the labels of samples that `Wanted.require` accepted, as a split has them.

    Args:
        samples: N samples.
        kind: of their labels.
        width: C, the number of tags or of numbers.
    """
    dtype = DTYPES[kind]
    if kind == "index":
        return np.fromiter((int(sample.label) for sample in samples), dtype, len(samples))
    rows = [np.asarray(sample.label, dtype) for sample in samples]
    return np.stack(rows) if rows else np.zeros((0, width), dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The labels that a task takes.

    Args:
        task: its name.
        kinds: of labels that fit.
    """

    task: str = "classes"
    kinds: tuple[LabelKind, ...] = ("index",)

    def require(self, source: Source, name: str) -> LabelKind:
        """Refuse labels that do not fit the task or each other; return their kind.

        Args:
            source: the dataset as found.
            name: of the source, for errors.

        Raises:
            DataError: names the first sample with a wrong label.
        """
        if not source.train:
            return "index"
        kind = kind_of(as_array(getattr(source.train[0], "label", UNLABELLED))[None])
        if kind not in self.kinds:
            expected = " or ".join(_DESCRIBED[kind] for kind in self.kinds)
            raise DataError(
                f"{name}: its labels are {_DESCRIBED[kind]}, and task {self.task} takes {expected}; "
                "expected labels that fit the task; correct data.task or data.source"
            )
        if source.classes == NO_CLASSES and self.kinds == ("index",):
            raise DataError(
                f"{name}: no labels; expected at least two classes to tell apart; correct data.label, or "
                "set data.task to embedding"
            )
        for samples in (source.train, source.validation or (), source.test):
            for sample in samples:
                if not (isinstance(sample, Sample) and isinstance(sample.name, str)):
                    raise DataError(
                        f"{name}: a sample is {quoted(sample)}; expected a pipeline.samples.samples.Sample "
                        "with a str as its name; correct the source"
                    )
                problem = _problem(sample.label, kind, source.classes)
                if problem:
                    raise DataError(f"{name}: the label of sample {quoted(sample.name)} {problem}")
        return kind


def as_array(label: Any) -> NDArray[Any]:
    """Return a label as an array; nested sequences of unequal lengths as an array of objects."""
    try:
        return np.asarray(label)
    except ValueError:
        return np.asarray(label, object)


def _problem(label: Any, kind: LabelKind, classes: Sequence[str]) -> str | None:
    """Describe why a label is not one of its kind, or return None."""
    if kind == "index":
        return _index_problem(label, classes)
    return _row_problem(as_array(label), kind, classes)


def _index_problem(label: Any, classes: Sequence[str]) -> str | None:
    try:
        if UNLABELLED <= operator.index(label) < len(classes):
            return None
    except TypeError:
        pass  # no integer
    return (
        f"is {quoted(label)}; expected an integer, -1 for unlabelled, or 0 to {len(classes) - 1} for "
        f"{first_of(classes)}; correct the source"
    )


def _row_problem(label: NDArray[Any], kind: LabelKind, classes: Sequence[str]) -> str | None:
    """Describe why a label is not one of tags or numbers, or return None."""
    dtype = np.dtype(DTYPES[kind])
    if label.dtype != dtype or label.shape != (len(classes),):
        return (
            f"is {label.dtype} {label.shape}; expected {dtype} {(len(classes),)}, a value for each of "
            f"{first_of(classes)}; correct the source"
        )
    if kind == "tags":
        wrong = np.flatnonzero((label < UNLABELLED) | (label > 1))
        expected = "1, 0, or -1 for unknown; correct it"
    else:
        finite = np.isfinite(label)
        wrong = np.flatnonzero(~finite) if finite.any() or np.isinf(label).any() else np.zeros(0, int)
        expected = "a finite number for each name, or none at all; add it, or leave the sample out"
    if not len(wrong):
        return None
    place = int(wrong[0])
    return f"is {label[place]} for {quoted(classes[place])}; expected {expected}"
