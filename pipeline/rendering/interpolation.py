"""The filters by which crops are resized, as torch's antialiased kernels define them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

# How far a filter reaches from its centre, in pixels of the smaller of source and result.
REACH: Mapping[Interpolation, int] = {"bilinear": 1, "bicubic": 2}

# Torch's kernels on the CPU.
KERNELS: Mapping[Interpolation, Any] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}

# Of Keys' cubic convolution, as Pillow and torch's antialiased kernel have it.
_SLOPE = -0.5


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    near = ((_SLOPE + 2) * distance - (_SLOPE + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _SLOPE
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


# The weight of a pixel by its distance from the centre, float64 and at least 0; with the operations of
# torch's kernels in their order, as the last bit of a double depends on it.
FILTERS: Mapping[Interpolation, Callable[[Tensor], Tensor]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
}
