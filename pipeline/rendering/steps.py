"""Carrying out a view's steps on the CPU: each operation on the samples that have it, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.rendering.colour import hue, saturation
from pipeline.rendering.filters import sharpness
from pipeline.rendering.tables import TABLES, look_up
from pipeline.rendering.warp import warp
from pipeline.views.operations import Op
from pipeline.views.steps import Step

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, S, S, C) uint8 and operands (n, 6) to (n, S, S, C)

# What is worked on at a time on the CPU, so that it stays in the cache.
_PIXELS_AT_ONCE = 1 << 16


def _by_table(op: Op) -> Kernel:
    return lambda images, operands: look_up(images, TABLES[op](images, operands[:, 0]))


def _by_level(function: Kernel) -> Kernel:
    return lambda images, operands: function(images, operands[:, 0])


KERNELS: Mapping[Op, Kernel] = {
    **{op: _by_table(op) for op in TABLES},
    Op.SATURATION: _by_level(saturation),
    Op.HUE: _by_level(hue),
    Op.SHARPNESS: _by_level(sharpness),
    Op.AFFINE: warp,
}


def carry_out(pixels: Tensor, steps: Sequence[Step]) -> Tensor:
    """Carry out steps in place, on the samples that have them.

    Args:
        pixels: (B, S, S, C) uint8 on the CPU.
        steps: of these samples.
    """
    at_once = max(1, _PIXELS_AT_ONCE // pixels[0].numel()) if len(pixels) else 1
    for step in steps:
        operands = torch.from_numpy(step.operands)
        for op in np.unique(step.ops[step.ops != Op.NOTHING]).tolist():
            chosen = torch.from_numpy(np.flatnonzero(step.ops == op))
            for rows in torch.split(chosen, at_once):
                _carry_out_one(KERNELS[Op(op)], pixels, operands, rows)
    return pixels


def _carry_out_one(kernel: Kernel, pixels: Tensor, operands: Tensor, rows: Tensor) -> None:
    if len(rows) > 1:
        pixels[rows] = kernel(pixels[rows], operands[rows])
    else:
        # A view: large images come alone, and copying one costs as much as a simple operation.
        row = slice(int(rows[0]), int(rows[0]) + 1)
        pixels[row] = kernel(pixels[row], operands[row])
