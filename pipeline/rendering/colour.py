"""Operations across the channels of a pixel: grey, saturation, hue. All in integers.

Images are (n, S, S, C) uint8, levels (n,) int32. Images of one channel have no colour and stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.views.operations import FACTOR

# 0.2989, 0.587 and 0.114 in 65536ths: torchvision's weights.
_RED, _GREEN, _BLUE = 19589, 38470, 7471

# Which of value, low, falling and rising each channel is, in each sixth of the colour circle.
_SIXTHS = ((0, 2, 1, 1, 3, 0), (3, 0, 0, 2, 1, 1), (1, 1, 3, 0, 0, 2))


def grey(images: Tensor) -> Tensor:
    """Return the luma (n, S, S) int32, rounded down."""
    wide = images.int()
    if images.shape[3] == 1:
        return wide[..., 0]
    return (wide[..., 0] * _RED + wide[..., 1] * _GREEN + wide[..., 2] * _BLUE) >> 16


def saturation(images: Tensor, levels: Tensor) -> Tensor:
    """Blend with the grey image."""
    if images.shape[3] == 1:
        return images
    factors = levels.view(-1, 1, 1, 1)
    blended = (images.int() * factors + grey(images)[..., None] * (FACTOR - factors)) >> 10
    return blended.clamp(0, 255).to(torch.uint8)


def hue(images: Tensor, levels: Tensor) -> Tensor:
    """Turn the colour circle, by exact fractions: a pixel's hue is a fraction of its range of channels."""
    if images.shape[3] == 1:
        return images
    wide = images.int()
    red, green, blue = wide.unbind(3)
    high, low = wide.amax(3), wide.amin(3)
    span = high - low
    some = span.clamp(min=1)
    # In sixths of the circle times span.
    angle = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, blue - red + 2 * span, red - green + 4 * span),
    )
    turned = angle * FACTOR + 6 * levels.view(-1, 1, 1) * span
    turned = torch.remainder(turned, 6 * FACTOR * some)
    sixth = turned // (FACTOR * some)
    part = turned - sixth * FACTOR * some
    half = FACTOR // 2
    falling, rising = (high * FACTOR - part + half) >> 10, (low * FACTOR + part + half) >> 10
    choices = torch.stack([high, low, falling, rising], 3)
    sixths = torch.tensor(_SIXTHS, device=images.device).T
    return choices.gather(3, sixths[sixth]).to(torch.uint8)
