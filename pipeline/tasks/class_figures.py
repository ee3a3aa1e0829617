"""Figures of a classifier: accuracy, agreement with its teacher, calibration, and figures per class.

All figures are measured on un-augmented samples. Accuracies and agreement are fractions between 0 and 1.
Unlabelled samples count only for the figures against the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.samples.samples import UNLABELLED

_ECE_BINS = 15
# With this many classes or fewer, top-5 is always 1.
FIRST = 5
CONFUSIONS = 10
# If the logits separate the labels, the best temperature is 0; if they are always wrong, infinity.
_HIGHEST_TEMPERATURE = 100.0
_TOLERANCE = 1e-9
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Figures of one model on one split; None if a figure cannot be computed.

    Args:
        top1, top5: share of samples whose label is the first, or among the first five, logits. No top-5 for
            five classes or fewer: any model would have 1.
        nll: mean negative log-likelihood of the label, in nats.
        ece: expected calibration error, 15 equal-width bins (Guo et al., arXiv 1706.04599).
        agreement: share of samples on which the model and its teacher have the same first class.
        kl_to_teacher: mean KL(teacher || model) at temperature 1, in nats.

    """

    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    agreement: float | None = None
    kl_to_teacher: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values."""
        return asdict(self)

    @property
    def followed(self) -> Mapping[str, float | None]:
        """The figures against the labels that show the training's progress."""
        return {"top1": self.top1, "nll": self.nll}

    @property
    def headline(self) -> str:
        """Top-1 in words, or nothing."""
        return "" if self.top1 is None else f"top-1 {self.top1:.4f}"

    def __str__(self) -> str:
        return "" if self.nll is None else f"{self.headline} nll {self.nll:.4f}"

    @property
    def score(self) -> tuple[float, float] | None:
        """Top-1, then likelihood."""
        return None if self.top1 is None or self.nll is None else (self.top1, -self.nll)


def compare(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Metrics:
    """Compute the figures of finite logits (N, C) from labels (N,) and teacher logits (N, C)."""
    known = labels != UNLABELLED
    figures: dict[str, float | None] = {}
    if bool(known.any()):
        figures |= _against_labels(logits[known], labels[known])
    if teacher_logits is not None and len(logits):
        teacher = teacher_logits.to(logits.device)
        log_teacher, log_model = F.log_softmax(teacher, 1), F.log_softmax(logits, 1)
        divergence = F.kl_div(log_model, log_teacher, log_target=True, reduction="none").sum(1)
        same = teacher.argmax(1) == logits.argmax(1)
        figures |= {"agreement": _mean(same), "kl_to_teacher": _mean(divergence)}
    return Metrics(**figures)


def _against_labels(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    first = logits.topk(min(FIRST, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "top1": _mean(first[:, 0]),
        "top5": _mean(first.any(1)) if logits.shape[1] > FIRST else None,
        "nll": _mean(F.cross_entropy(logits, labels, reduction="none")),
        "ece": _calibration_error(logits, labels),
    }


def _calibration_error(logits: Tensor, labels: Tensor) -> float:
    confidence, predicted = F.softmax(logits, 1).double().max(1)
    gap = (predicted == labels).double() - confidence
    bins = (confidence * _ECE_BINS).long().clamp_(0, _ECE_BINS - 1)
    sums = torch.zeros(_ECE_BINS, dtype=torch.float64, device=logits.device)
    return float(sums.index_add_(0, bins, gap).abs().sum() / len(labels))


def _mean(values: Tensor) -> float:
    """Return the mean of values (N,) in double precision, so that no sum of finite values overflows."""
    return float(values.double().mean())


# Temperature scaling: one number, fitted on validation images, that corrects a model's confidence.
#
# Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599. The temperature divides the
# logits, so the first class never changes.


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted temperature and the figures that it gives.

    Args:
        temperature: divides the logits, 0.01 to 100.
        nll, ece: of the test images at this temperature; None if no test image is labelled.
    """

    temperature: float
    nll: float | None
    ece: float | None


def calibrate(validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Calibration | None:
    """Fit the temperature on one split and measure it on another.

    Args:
        validation: logits (N, C) and labels (N,), -1 for unlabelled.
        test: logits and labels of other images.

    Returns:
        None if no validation image is labelled.
    """
    logits, labels = validation
    known = labels != UNLABELLED
    if not bool(known.any()):
        return None
    temperature = fit_temperature(logits[known], labels[known])
    # In float64: a low temperature may lift finite logits beyond float32's range.
    scaled = compare(test[0].double() / temperature, test[1])
    return Calibration(temperature=temperature, nll=scaled.nll, ece=scaled.ece)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the lowest mean NLL of logits (N, C) for labels (N,).

    NLL is convex in the inverse temperature. The search takes Newton's steps in float64. If a step leaves
    the bracket around the minimum, it takes the bracket's geometric middle instead.
    """
    scores = logits.double()
    right = scores.gather(1, labels[:, None])[:, 0]
    low, high = 1 / _HIGHEST_TEMPERATURE, _HIGHEST_TEMPERATURE
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _derivatives(scores, right, inverse)
        if slope == 0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        before, inverse = inverse, step if low < step < high else math.sqrt(low * high)
        if abs(inverse - before) <= _TOLERANCE * before:
            break
    return 1 / inverse


def _derivatives(scores: Tensor, right: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first two derivatives of the mean NLL by the inverse temperature."""
    probabilities = torch.softmax(scores * inverse, 1)
    mean = (probabilities * scores).sum(1)
    variance = (probabilities * (scores - mean[:, None]).square()).sum(1)
    return float((mean - right).mean()), float(variance.mean())


# Figures per class: recall and precision, and the most frequent confusions.


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """Recall and precision of one class on the labelled images.

    Args:
        name: of the class.
        support: number of images with this label.
        recall: share of these that the model assigns to this class; None if there are none.
        precision: share of images assigned to this class that have its label; None if there are none.
    """

    name: str
    support: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class that the model assigns to another class.

    Args:
        label, predicted: names of the two classes.
        count: number of images.
        share: of the images with this label.
    """

    label: str
    predicted: str
    count: int
    share: float


def class_figures(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ClassFigures, ...]:
    """Return the figures of every class, in the order of the classes.

    Args:
        logits: (N, C).
        labels: (N,), -1 for unlabelled images, which do not count.
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
    """Return the most frequent pairs of a label and a different predicted class; ties in class order.

    Args:
        logits: (N, C).
        labels: (N,), -1 for unlabelled images, which do not count.
        classes: C names.
        count: maximum number of pairs.
    """
    predicted, labels = _known(logits, labels)
    supports = _counts(labels, len(classes))
    wrong = predicted != labels
    # pair = label * C + predicted. Only pairs that occur are counted: a table of all has C x C cells.
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
