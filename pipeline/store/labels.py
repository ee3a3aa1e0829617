"""Labels of a store, as they were at the dump, beside those of the data now.

No output of a teacher depends on a label. So a label may be corrected after the dump: the store is used as
before, students learn the present labels, and the change is told. Figures that a store keeps, e.g. the
teacher's accuracy, are by the labels of the dump.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import counted
from pipeline.samples.labels import LabelWords
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED
from pipeline.store.index import ABSENT, UNTOLD, SampleIndex, labels_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChanges:
    """Whether labels of the data differ from those that a store was made with.

    Args:
        changed: None if unknown: the store does not tell its labels, or shares no sample with the data.
        count: number of changed labels; None if unknown.
        samples: number of compared samples.
    """

    changed: bool | None = None
    count: int | None = None
    samples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as keys of `pipeline inspect --json`."""
        return {"labels_changed": self.changed, "n_labels_changed": self.count}

    def __str__(self) -> str:
        """The findings in one line."""
        if self.changed is None:
            return "unknown, whether they have changed since the dump"
        if not self.changed:
            return "as at the dump"
        which = "labels" if self.count is None else f"{self.count:,} of {counted(self.samples, 'label')}"
        have = "has" if self.count == 1 else "have"
        return (
            f"{which} {have} changed since the dump: students learn the present ones, and the accuracy "
            "stored with the outputs is by those of the dump"
        )


def changed_labels(index: Mapping[str, SampleIndex], present: LabelWords) -> LabelChanges:
    """Compare the labels of a store with those of the data, sample by sample.

    Args:
        index: the store's samples by section.
        present: the data's labels by split.
    """
    count = samples = untold = 0
    for name, keys, words in ((name, *present[name]) for name in index if name in present):
        then = _words_of(index[name], keys)
        told = then != UNTOLD
        count += int((told & (then != words)).sum())
        samples += int(told.sum())
        untold += len(keys) - int(told.sum())
    if count:
        return LabelChanges(changed=True, count=count, samples=samples)
    known = bool(samples) and not any(part.untold.any() for part in index.values())
    return LabelChanges(changed=False, count=0, samples=samples) if known else LabelChanges()


def labels_at_dump(index: SampleIndex, images: Split, n_classes: int) -> NDArray[Any]:
    """Return the labels (N, ...) of a split as they were at the dump.

    The word of a class is the class itself. Of tags and numbers a store has a hash alone: such a label
    counts as missing once it has changed.

    Args:
        index: the store's samples of this split.
        images: the split.
        n_classes: C.
    """
    then = _words_of(index, images.keys)
    other = np.flatnonzero((then != UNTOLD) & (then != images.label_words))
    if not len(other):
        return images.labels
    labels: NDArray[Any] = images.labels.copy()
    if labels.ndim == 1:
        # A store may come from anybody, and its words may be no classes.
        words = then[other]
        labels[other] = np.where((words >= 0) & (words < n_classes), words, UNLABELLED)
    else:
        labels[other] = np.nan if labels.dtype.kind == "f" else UNLABELLED
    return labels


def digest_of_present(index: Mapping[str, SampleIndex], present: LabelWords) -> str:
    """Return the digest of the data's labels of a store's samples; absent ones count as `UNTOLD`."""
    none = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    found = {}
    for name, part in index.items():
        keys, words = present.get(name, none)
        there = SampleIndex(keys, keys, labels=words)
        found[name] = SampleIndex(part.keys, part.digests, labels=_words_of(there, part.keys))
    return str(labels_digest(found))


def compared_with(
    digest: str | None, index: Mapping[str, SampleIndex], present: LabelWords
) -> LabelChanges:
    """Compare the labels that a store without rows of its own was made with, by their digest.

    Args:
        digest: as `digest_of_present` returned it; None in stores of older versions.
        index: the samples of the store behind it.
        present: the data's labels by split.
    """
    samples = sum(map(len, index.values()))
    there = all(
        name in present
        and not (SampleIndex(present[name][0], present[name][0]).find(part.keys) == ABSENT).any()
        for name, part in index.items()
    )
    if digest is not None and digest == digest_of_present(index, present):
        return LabelChanges(changed=False, count=0, samples=samples)
    # A sample that has left the data changes the digest, too.
    return LabelChanges(changed=True, samples=samples) if digest is not None and there else LabelChanges()


def words_of(splits: Mapping[str, Split]) -> LabelWords:
    """Return keys and label words of each split."""
    return {name: (images.keys, images.label_words) for name, images in splits.items()}


def _words_of(index: SampleIndex, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the label word at each key (n,); `UNTOLD` if it is not known."""
    if index.labels is None or not len(index):
        return np.full(len(keys), UNTOLD)
    rows = index.find(keys)
    return np.where(rows == ABSENT, UNTOLD, index.labels[rows])
