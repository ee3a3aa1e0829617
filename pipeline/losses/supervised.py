"""Losses of the labels alone: the baselines, and the hard-label term of all others."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.precision import in_single_precision
from pipeline.losses.settings import Smoothing
from pipeline.samples.samples import UNLABELLED


@in_single_precision
def scratch(student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, -log s_y: the baseline without a teacher.

    Sum over the classes, mean over the batch; a sample without a label adds 0 and is counted.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.

    """
    return cross_entropy(student, labels).mean()


@in_single_precision
def label_smoothing(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, *, smoothing: Smoothing = 0.1
) -> Tensor:
    """Cross-entropy with (1 - smoothing) on the label and smoothing / C on every class.

    Sum over the classes, mean over the batch; a sample without a label adds 0 and is counted.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: not used.
        smoothing: in [0, 1).

    Source: Szegedy et al., arXiv 1512.00567, section 7.

    """
    return cross_entropy(student, labels, smoothing).mean()


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return each sample's cross-entropy (B,) with its label, 0 where it has none.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares, what is missing to 1 being unlabelled.
        smoothing: share that all classes have evenly.
    """
    if not labels.is_floating_point():
        return F.cross_entropy(
            student, labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none"
        )
    known = labels.sum(1, keepdim=True)
    shares = labels * (1 - smoothing) + known * smoothing / labels.shape[1]
    return -(shares * F.log_softmax(student, dim=1)).sum(1)
