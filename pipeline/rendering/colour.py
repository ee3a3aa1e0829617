"""Operations across the channels of a pixel: grey, saturation, hue. All in integers.

Images are (n, S, S, C) uint8, levels (n,) int32. Images of one channel have no colour and stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.views.operations import FACTOR

# 0.2989, 0.587 and 0.114, torchvision's weights, in 2^-23 and rounded up. A weighted sum is a multiple of
# 1/10000 and what is added to it is less, so rounding down gives the whole part of the decimal fraction.
_RED, _GREEN, _BLUE = 2507355, 4924113, 956302
_WEIGHT_BITS = 23

# Where red, green and blue stand on the colour circle, in sixths.
_PLACES = (5, 3, 1)


def grey(images: Tensor) -> Tensor:
    """Return the luma (n, S, S) int32, rounded down."""
    wide = images.int()
    if images.shape[3] == 1:
        return wide[..., 0]
    return (wide[..., 0] * _RED + wide[..., 1] * _GREEN + wide[..., 2] * _BLUE) >> _WEIGHT_BITS


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
    # In sixths of the circle times span.
    angle = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, blue - red + 2 * span, red - green + 4 * span),
    )
    sixth = FACTOR * span
    turned = angle * FACTOR + 6 * levels.view(-1, 1, 1) * span
    channels = []
    for start in _PLACES:
        # A channel falls from high to low in one sixth, stays for two, rises in one, and stays for two.
        place = torch.remainder(turned + start * sixth, (6 * sixth).clamp(min=1))
        fallen = torch.minimum(torch.minimum(place, 4 * sixth - place).clamp(min=0), sixth)
        channels.append((high * FACTOR - fallen + FACTOR // 2) >> 10)
    return torch.stack(channels, 3).to(torch.uint8)
