"""Class by class: how many of each are found, and which are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.samples.samples import UNLABELLED

CONFUSIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """One class of the labelled images.

    Args:
        name: of the class.
        support: images with this label.
        recall: share of these that are given this class; None without any.
        precision: share of the images given this class that have its label; None without any.
    """

    name: str
    support: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class that are taken for another.

    Args:
        label, predicted: names of the two.
        count: images.
        share: of the label's images.
    """

    label: str
    predicted: str
    count: int
    share: float


def class_figures(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ClassFigures, ...]:
    """Return the figures of every class, in order.

    Args:
        logits: (N, C).
        labels: (N,), -1 for unlabelled ones, which do not count.
        classes: C names.
    """
    predicted, labels = _known(logits, labels)
    hits = _counts(labels[predicted == labels], len(classes))
    labelled, given = _counts(labels, len(classes)), _counts(predicted, len(classes))
    return tuple(
        ClassFigures(name=name, support=n, recall=_share(right, n), precision=_share(right, named))
        for name, right, n, named in zip(classes, hits, labelled, given, strict=True)
    )


def most_confused(
    logits: Tensor, labels: Tensor, classes: Sequence[str], count: int = CONFUSIONS
) -> tuple[Confusion, ...]:
    """Return the most frequent pairs of a label and another class that is given; of equals the first ones.

    Args:
        logits: (N, C).
        labels: (N,), -1 for unlabelled ones, which do not count.
        classes: C names.
        count: pairs at most.
    """
    predicted, labels = _known(logits, labels)
    supports = _counts(labels, len(classes))
    wrong = predicted != labels
    # By the pairs that occur: all that could are a table of C times C.
    pairs, counts = torch.unique(labels[wrong] * len(classes) + predicted[wrong], return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)[:count]
    found = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    return tuple(
        Confusion(
            label=classes[pair // len(classes)],
            predicted=classes[pair % len(classes)],
            count=n,
            share=n / supports[pair // len(classes)],
        )
        for pair, n in found
    )


def _known(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    known = labels != UNLABELLED
    return logits[known].argmax(1), labels[known]


def _counts(values: Tensor, n_classes: int) -> list[int]:
    counts: list[int] = torch.bincount(values, minlength=n_classes).tolist()
    return counts


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
