"""Operations on a pixel's neighbourhood: sharpness, in integers."""

from __future__ import annotations

from torch import Tensor

from pipeline.views.operations import FACTOR


def sharpness(images: Tensor, levels: Tensor) -> Tensor:
    """Blend with a smoothed image (3x3, centre 5, sum 13); the border stays.

    Args:
        images: (n, S, S, C) uint8.
        levels: (n,) int32 factors.
    """
    if min(images.shape[1:3]) <= 2:
        return images
    wide = images.int()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = wide[:, 1:-1, 1:-1]
    # The nearest integer; a 13th never lies half-way.
    smooth = (sums + 4 * inner + 6) // 13
    factors = levels.view(-1, 1, 1, 1)
    result = images.clone()
    result[:, 1:-1, 1:-1] = ((inner * factors + smooth * (FACTOR - factors)) >> 10).clamp(0, 255).byte()
    return result
