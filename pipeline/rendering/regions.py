"""Boxes on a model's own pixels: painting over, and mixing with a partner. Given in parts of the side."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.views.boxes import UNIT
from pipeline.views.mixing import WHOLE, Mixture
from pipeline.views.parameters import Erasure

Places = NDArray[np.int64]


def erase(pixels: Tensor, erasure: Erasure) -> Tensor:
    """Return pixels (B, S, S, C) uint8 on the CPU with their boxes painted over."""
    return paint(pixels, torch.from_numpy(erasure.boxes), erasure.value)


def paint(pixels: Tensor, boxes: Tensor, value: int) -> Tensor:
    """Return pixels (B, S, S, C) uint8 with boxes (B, 4), on the same device, in a grey level."""
    return pixels.masked_fill(_inside(boxes, pixels), value)


def mix(pixels: Tensor, own: Places, partners: Places, mixture: Mixture) -> Tensor:
    """Return samples (B, S, S, C) uint8 mixed with their partners.

    Args:
        pixels: (n, S, S, C) uint8, samples and partners, not mixed.
        own, partners: (B,) where they are in `pixels`.
        mixture: of the B samples.
    """
    given = (own, partners, mixture.levels, mixture.boxes)
    return blend(pixels, *(to_device(values, pixels.device) for values in given))


def blend(pixels: Tensor, own: Tensor, partners: Tensor, levels: Tensor, boxes: Tensor) -> Tensor:
    """Do the same with places (B,), levels (B,) and boxes (B, 4) that lie where the pixels do."""
    mine, theirs = (pixels.index_select(0, places) for places in (own, partners))
    levels = levels.view(-1, 1, 1, 1)
    blended = (mine.int() * levels + theirs.int() * (WHOLE - levels) + WHOLE // 2) >> 8
    return torch.where(_inside(boxes, mine), blended.to(torch.uint8), mine)


def _inside(boxes: Tensor, pixels: Tensor) -> Tensor:
    """Return which pixels lie in each sample's box: (B, S, S, 1) bool; edges at the nearest pixel."""
    size = pixels.shape[1]
    boxes = boxes.long()
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    first, last = ((edges * size + UNIT // 2) // UNIT for edges in (starts, ends))
    steps = torch.arange(size, device=pixels.device)
    rows, columns = ((steps >= first[:, axis, None]) & (steps < last[:, axis, None]) for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[..., None]
