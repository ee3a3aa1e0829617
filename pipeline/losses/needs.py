"""What a loss of features asks of those who train by it, beside logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureNeeds:
    """Needs of a loss that compares penultimate features; those of student and teacher it always gets.

    Args:
        projection: from Ds and Dt, the numbers of features, to a module that maps `Features` to `Features`
            and is trained with the student; None for features as they are.
        negatives: how many of the teacher's features of other samples of the view are wanted.
        centres: whether the teacher's mean features of each class are.
    """

    projection: Callable[[int, int], nn.Module] | None = None
    negatives: int = 0
    centres: bool = False
