"""Losses of relations: not each probability matters, but how they go together over classes and samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.precision import in_single_precision
from pipeline.losses.settings import Temperature, Weight
from pipeline.losses.supervised import cross_entropy

# Keeps constant rows and columns from a division by zero; the value of the authors.
_SMALL = 1e-8


@in_single_precision
def dist(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 4.0,
    ce_weight: Weight = 1.0,
    inter_weight: Weight = 2.0,
    intra_weight: Weight = 2.0,
) -> Tensor:
    """ce_weight CE(y) + T^2 [inter_weight (1 - mean r of rows) + intra_weight (1 - mean r of columns)].

    r is Pearson's correlation of the student's probabilities s_T with the teacher's t_T: of a row, over the
    classes of a sample; of a column, over the batch for a class. So the loss of a batch is not the mean of
    its parts: `accumulate` changes it. The columns of a batch of one are constant: r = 0, no gradient. As
    with `kd_ls`, students whose logits are nearly equal have steep gradients.

    Args:
        student: (B, C) logits.
        labels: (B,) int64 class indices, or -1; or (B, C) shares.
        teacher: (B, C) logits.
        temperature: T > 0; 1 for ImageNet.
        ce_weight: of the hard labels, >= 0.
        inter_weight: of the relations between classes, beta in the paper, >= 0.
        intra_weight: of those within a class, gamma in the paper, >= 0.

    Source: Huang et al., arXiv 2205.10536, section 3; T^2 and 1e-8 as in the authors' code.

    """
    s, t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    inter, intra = 1 - _correlation(s, t, dim=1).mean(), 1 - _correlation(s, t, dim=0).mean()
    supervised = ce_weight * cross_entropy(student, labels).mean()
    return supervised + temperature**2 * (inter_weight * inter + intra_weight * intra)


def _correlation(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Return Pearson's correlations of two matrices along a dimension."""
    a, b = (values - values.mean(dim, keepdim=True) for values in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    correlations: Tensor = (a * b).sum(dim) / (norms + _SMALL)
    return correlations
