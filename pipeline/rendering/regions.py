"""Boxes on a model's own pixels: painting over, and mixing with a partner. Given in parts of the side."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.rendering.steps import to_device
from pipeline.views.boxes import UNIT
from pipeline.views.mixing import WHOLE, Mixture
from pipeline.views.parameters import Erasure

Places = NDArray[np.int64]


def erase(pixels: Tensor, erasure: Erasure) -> Tensor:
    """Return pixels (B, S, S, C) uint8 with their boxes painted over."""
    inside = _inside(torch.from_numpy(erasure.boxes), pixels)
    return pixels.masked_fill(inside, erasure.value)


def mix(pixels: Tensor, own: Places, partners: Places, mixture: Mixture) -> Tensor:
    """Return samples (B, S, S, C) uint8 mixed with their partners.

    Args:
        pixels: (n, S, S, C) uint8, samples and partners, not mixed.
        own, partners: (B,) where they are in `pixels`.
        mixture: of the B samples.
    """
    device = pixels.device
    mine, theirs = (
        pixels.index_select(0, to_device(torch.from_numpy(places), device)) for places in (own, partners)
    )
    levels = to_device(torch.from_numpy(mixture.levels), device).view(-1, 1, 1, 1)
    blended = (mine.int() * levels + theirs.int() * (WHOLE - levels) + WHOLE // 2) >> 8
    return torch.where(_inside(torch.from_numpy(mixture.boxes), mine), blended.to(torch.uint8), mine)


def _inside(boxes: Tensor, pixels: Tensor) -> Tensor:
    """Return which pixels lie in each sample's box: (B, S, S, 1) bool; edges at the nearest pixel."""
    size = pixels.shape[1]
    boxes = to_device(boxes, pixels.device).long()
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    first, last = ((edges * size + UNIT // 2) // UNIT for edges in (starts, ends))
    steps = torch.arange(size, device=pixels.device)
    rows, columns = ((steps >= first[:, axis, None]) & (steps < last[:, axis, None]) for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[..., None]
