"""Learned maps of features that some losses need; trained with the student, and then thrown away."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.losses.features import Features


class ContrastProjection(nn.Module):
    """Both networks' features to embeddings (B, E) of length 1: a linear layer each.

    Args:
        student_dim: Ds.
        teacher_dim: Dt.
        embedding_dim: E; the default is that of arXiv 1910.10699.
    """

    def __init__(self, student_dim: int, teacher_dim: int, embedding_dim: int = 128) -> None:
        super().__init__()
        self.student = nn.Linear(student_dim, embedding_dim)
        self.teacher = nn.Linear(teacher_dim, embedding_dim)

    def forward(self, features: Features) -> Features:
        """Return the features with student, teacher and negatives embedded."""
        negatives = features.negatives
        return replace(
            features,
            student=_embed(self.student, features.student),
            teacher=_embed(self.teacher, features.teacher),
            negatives=None if negatives is None else _embed(self.teacher, negatives),
        )


class CentreProjection(nn.Module):
    """The student's features to the teacher's width: a linear layer, or nothing where they are equal.

    Args:
        student_dim: Ds.
        teacher_dim: Dt.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        same = student_dim == teacher_dim
        self.student = nn.Identity() if same else nn.Linear(student_dim, teacher_dim)

    def forward(self, features: Features) -> Features:
        """Return the features with the student's (B, Dt)."""
        return replace(features, student=self.student(features.student))


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    return F.normalize(layer(features), dim=1)
