"""Losses: one pure function each, and the table that names them.

Shapes: B batch, C classes, D features. A loss takes the student's logits (B, C), the labels and the
teacher's logits (B, C). It computes in float32 outside autocast, or in float64 if the student's logits are
float64. It sums over classes unless it says otherwise, and takes the mean over the batch.

Labels are class indices (B,) int64, -1 for unlabelled: such a sample has no hard-label term. If views mix
images, labels are class shares (B, C) float32; the remainder to 1 is unlabelled. A constant added to a row
of the teacher's logits changes no loss of a softmax, because codecs keep logits only up to such a constant.
Losses of other outputs are in `outputs.py`.

A new loss is one function and one line in `LOSSES`, or a recipe names the user's own code: see
`own_code.py`.

Example:
    >>> import torch
    >>> from pipeline import losses
    >>> student, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> teacher = torch.tensor([[0.0, -8.0, -8.0], [-8.0, 0.0, -8.0]])
    >>> loss = losses.kd(student, labels, teacher, temperature=4, ce_weight=0.1, kd_weight=0.9)
    >>> f"{loss:.3f}"
    '6.346'
    >>> list(losses.LOSSES)[:4]
    ['scratch', 'label_smoothing', 'kd', 'soft_ce']
"""

from __future__ import annotations

from pipeline.losses.features import Features, centre, crd, rkd
from pipeline.losses.logits import dist, hard, kd, kd_ls, label_smoothing, mse, scratch, soft_ce, wttm
from pipeline.losses.outputs import (
    bce,
    binary_kd,
    codes,
    cosine,
    l2,
    relational,
    smooth_l1,
    squared_error,
)
from pipeline.losses.settings import FeatureNeeds, Loss, LossFunction, Schedule, ScheduledLoss
from pipeline.losses.table import (
    LOSSES,
    find_loss,
    make_loss,
    require_kept,
    require_outputs,
    require_targets,
)
from pipeline.losses.target_classes import dkd, nkd, wsld

__all__ = [
    "LOSSES",
    "FeatureNeeds",
    "Features",
    "Loss",
    "LossFunction",
    "Schedule",
    "ScheduledLoss",
    "bce",
    "binary_kd",
    "centre",
    "codes",
    "cosine",
    "crd",
    "dist",
    "dkd",
    "find_loss",
    "hard",
    "kd",
    "kd_ls",
    "l2",
    "label_smoothing",
    "make_loss",
    "mse",
    "nkd",
    "relational",
    "require_kept",
    "require_outputs",
    "require_targets",
    "rkd",
    "scratch",
    "smooth_l1",
    "soft_ce",
    "squared_error",
    "wsld",
    "wttm",
]
