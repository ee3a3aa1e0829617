"""The two networks of PyTorch's knowledge distillation tutorial, written from their description.

A teacher and a student without normalisation layers, for images of 32 x 32 pixels. Source: A. Chariton,
"Knowledge Distillation Tutorial", docs.pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

_POOL = -1


def teacher(num_classes: int) -> nn.Module:
    """Return the deep network: four convolutions, 1.2 M parameters."""
    return _network([128, 64, _POOL, 64, 32, _POOL], hidden=512, num_classes=num_classes)


def student(num_classes: int) -> nn.Module:
    """Return the light network: two convolutions, 0.27 M parameters."""
    return _network([16, _POOL, 16, _POOL], hidden=256, num_classes=num_classes)


def _network(plan: Sequence[int], *, hidden: int, num_classes: int) -> nn.Module:
    widths = [3, *(width for width in plan if width != _POOL)]
    convolutions = (nn.Conv2d(narrow, wide, 3, padding=1) for narrow, wide in pairwise(widths))
    body: list[nn.Module] = []
    for width in plan:
        body += [nn.MaxPool2d(2)] if width == _POOL else [next(convolutions), nn.ReLU()]
    head = nn.Linear(widths[-1] * 8 * 8, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, num_classes)
    return nn.Sequential(*body, nn.Flatten(), *head)
