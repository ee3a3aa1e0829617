"""A row's uniform grid below its maximum: what `affine` and `topk` keep values on."""

from __future__ import annotations

import torch
from torch import Tensor


def to_grid(relative: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Round each row to a grid of top + 1 levels from its minimum to 0.

    Args:
        relative: (B, n) float32, at most 0.
        top: the highest code, which stands for 0.

    Returns:
        (B, n) uint8 codes and (B,) float16 scales, the distance of two levels.
    """
    scale = (relative.amin(1) / -top).to(torch.float16)
    # A scale of 0 (all values equal) must not divide; its codes are all the highest.
    steps = relative / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return (steps.round() + top).clamp(0, top).to(torch.uint8), scale


def from_grid(codes: Tensor, scale: Tensor, top: int) -> Tensor:
    """Return the values (B, n) float32 that `to_grid` rounded."""
    values: Tensor = (codes.float() - top) * scale.float()[:, None]
    return values
