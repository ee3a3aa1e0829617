"""A batch to try losses on, and each loss of the tables as a function of its logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.losses import LOSSES, Features
from pipeline.losses.features import ContrastProjection
from pipeline.losses.table import fill

BATCH, CLASSES = 8, 5
# Losses of other outputs have labels of other forms: see test_outputs.py.
OF_SOFTMAX = {name: loss for name, loss in LOSSES.items() if "softmax" in loss.links}
OF_FEATURES = [name for name, loss in LOSSES.items() if loss.features]
OF_LOGITS = [name for name in OF_SOFTMAX if name not in OF_FEATURES]


def logits(seed: int, classes: int = CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(BATCH, classes, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = logits(0), logits(1)
LABELS = torch.arange(BATCH) % CLASSES
HALF = torch.where(torch.arange(BATCH) % 2 == 0, LABELS, -1)
NONE = torch.full((BATCH,), -1)
# Of mixed images: two classes a row; of the third row, a half is of an unlabelled image.
SHARES = 0.75 * torch.eye(CLASSES)[LABELS] + 0.25 * torch.eye(CLASSES)[(LABELS + 2) % CLASSES]
SHARES[2] = 0.5 * torch.eye(CLASSES)[4]


def features(width: int = 6) -> Features:
    """Projected ones that fit all losses of features."""
    generator = torch.Generator().manual_seed(7)

    def draw(count: int) -> Tensor:
        return torch.randn(count, width, generator=generator, dtype=torch.float64)

    given = Features(draw(BATCH), draw(BATCH), draw(3), torch.tensor([0, 1, -1]), draw(CLASSES))
    torch.manual_seed(0)
    with torch.no_grad():
        return ContrastProjection(width, width, width).double()(given)


def of_rows(all_features: Features, rows: Tensor | slice) -> Features:
    """The features of some of the batch's samples; negatives and centres are whole."""
    student, teacher = all_features.student[rows], all_features.teacher[rows]
    rest = (all_features.negatives, all_features.negative_labels, all_features.centres)
    return Features(student, teacher, *rest)


def defaults(name: str) -> dict[str, float]:
    """The keyword-only parameters of a loss."""
    parameters = inspect.signature(LOSSES[name].function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def loss_of(name: str, **settings: object) -> Callable[..., Tensor]:
    """Return a function of (student, labels, teacher, rows of the batch), which has features if it must."""
    loss = fill(name, LOSSES[name], settings).at(float("inf"))
    if not LOSSES[name].features:
        return lambda student, labels, teacher, rows=slice(None): loss(student, labels, teacher)
    everything = features()
    return lambda student, labels, teacher, rows=slice(None): loss(
        student, labels, teacher, of_rows(everything, rows)
    )
