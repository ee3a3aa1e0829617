"""Splits: draw validation and test samples, and recognise the folders of splits by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of
from pipeline.core.hashing import sample_key
from pipeline.core.progress import note
from pipeline.core.random import Lane, draw
from pipeline.samples.label_forms import label_word
from pipeline.samples.samples import UNLABELLED, Sample, part_of

TRAIN, TEST = "train", "test"
TEST_SHARE = 0.2  # of each class of a source without a test split; fixed, as is the seed
VALIDATION = ("val", "valid", "validation")
_MEANT = {
    **dict.fromkeys(("training",), TRAIN),
    **dict.fromkeys(("testing", "tests"), TEST),
    **dict.fromkeys(("validate", "vali"), "val"),
}


def split_validation(
    samples: Sequence[Sample], *, fraction: float, seed: int
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Divide a training set into training and validation samples.

    Each labelled sample is drawn by its name, so adding or removing files moves no other sample. Unlabelled
    samples always train. If a whole class is drawn, one sample of it stays in training.

    Args:
        samples: the source's training set.
        fraction: expected share of validation samples, 0 <= fraction < 1.
        seed: 64-bit unsigned.

    Returns:
        (train, validation), each in the given order.

    """
    if fraction == 0:
        return samples, []
    keys = np.fromiter((sample_key(sample.name) for sample in samples), np.uint64, len(samples))
    words = draw(seed=seed, view=0, keys=keys, lane=Lane.VALIDATION)[0]
    chosen = words < _bound(fraction)
    labels = np.fromiter((label_word(sample.label) for sample in samples), np.int64, len(samples))
    chosen &= labels != UNLABELLED
    # Only classes have a last image: nearly every row of tags or numbers is a label of its own.
    spared = _spare_last(chosen, labels, words) if np.ndim(samples[0].label) == 0 else []
    if spared:
        names = first_of([samples[row].name for row in spared])
        stay = "of its class stays" if len(spared) == 1 else "of their classes stay"
        note(f"validation: {counted(len(spared), 'last training sample')} {stay} in training: {names}")
    train, validation = (part_of(samples, np.flatnonzero(part)) for part in (~chosen, chosen))
    if not validation or not train:
        labelled = int((labels != UNLABELLED).sum())
        raise DataError(
            f"{counted(len(samples), 'training sample')}, {labelled:,} of them labelled, with "
            f"data.validation = {fraction} leave {len(train):,} for training and {len(validation):,} for "
            "validation, which is drawn from labelled ones; expected at least one each; add or label "
            "samples, or change data.validation (0 skips validation and keeps the last epoch)"
        )
    return train, validation


def draw_test(names: Sequence[str], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Draw a test split for a source without one: a fifth of each class, by the hash of each name.

    The draw has no parameter, so every command makes the same split. Adding or removing files moves no
    other file, except one in small classes:

    * a class without a drawn sample tests on the one with the lowest hash, if it has two or more;
    * a class that is drawn as a whole trains on the one with the highest hash;
    * unlabelled samples always train.

    Args:
        names: N names.
        labels: (N,), -1 for unlabelled.

    Returns:
        (N,) bool, true for test samples.

    >>> draw_test([f"cat/{n}.jpg" for n in range(8)], np.zeros(8, np.int64)).sum()
    np.int64(1)
    """
    keys = np.fromiter((sample_key(name) for name in names), np.uint64, len(names))
    words = draw(seed=0, view=0, keys=keys, lane=Lane.TEST)[0]
    chosen: NDArray[np.bool_] = (words < _bound(TEST_SHARE)) & (labels != UNLABELLED)
    for label in np.setdiff1d(labels[labels != UNLABELLED], labels[chosen]):
        rows = np.flatnonzero(labels == label)
        chosen[rows[words[rows].argmin()]] = True
    _spare_last(chosen, labels, words)
    return chosen


def tell_drawn_test(where: object, tested: NDArray[np.bool_], noun: str) -> None:
    """Say which samples `draw_test` took, on stderr.

    The share that came out is told beside the chance: of few samples, 35 % may be drawn.

    Args:
        where: the source.
        tested: (N,) bool, as drawn.
        noun: the word for one sample, e.g. image.
    """
    count = int(tested.sum())
    share = f"{count:,} of {counted(len(tested), noun)} ({count / len(tested):.0%})"
    note(
        f"{where}: no test split; {share} are drawn for it, each with a chance of {TEST_SHARE:.0%} by the "
        "hash of its name: the same ones each time"
    )


def _bound(fraction: float) -> np.uint64:
    """Return the bound below which a random 32-bit word falls with this probability."""
    return np.uint64(int(fraction * (1 << 32)))


def _spare_last(chosen: NDArray[np.bool_], labels: NDArray[np.int64], words: NDArray[Any]) -> list[int]:
    """Put back, in place, one sample of each class that was chosen as a whole; return their rows."""
    spared = []
    for label in np.setdiff1d(labels[chosen], labels[~chosen]):
        rows = np.flatnonzero(labels == label)
        spared.append(int(rows[words[rows].argmax()]))
    chosen[spared] = False
    return spared


# Recognise splits by the usual names of folders and arrays.


@dataclass(frozen=True, slots=True)
class SplitNames:
    """Names of the splits of a source.

    Args:
        test: the test split; without one, the validation split.
        validation: the split that chooses the epoch; None to draw it from the training images.
    """

    test: str
    validation: str | None


def find_splits(where: object, names: Collection[str]) -> SplitNames | None:
    """Recognise the splits by name; None without a training split or a split to test on.

    Args:
        where: the source, for errors.
        names: of its folders.

    Raises:
        DataError: a misspelt split name, or two names for one split.
    """
    known = (TRAIN, TEST, *VALIDATION)
    for name in sorted(names):
        meant = _MEANT.get(name.lower(), name.lower())
        if meant in known and name != meant:
            raise DataError(
                f"{where}: found {name!r}, expected {meant!r}; rename {name!r} to {meant!r}, or move it "
                "away"
            )
    found = [name for name in VALIDATION if name in names]
    if len(found) > 1:
        raise DataError(
            f"{where}: found {' and '.join(map(repr, found))}; expected one validation split; merge them, "
            "or move one away"
        )
    validation = found[0] if found else None
    if TRAIN not in names or (TEST not in names and validation is None):
        return None
    if TEST in names:
        return SplitNames(TEST, validation)
    note(f"{where}: has no {TEST!r}, so {validation!r} is the test split")
    return SplitNames(str(validation), None)
