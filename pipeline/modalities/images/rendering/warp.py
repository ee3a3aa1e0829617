"""Affine maps of images: bilinear, black outside, in fixed point.

The channels of a pixel lie side by side in one 64-bit integer, 21 bits each, and are blended together:
first along rows, kept in 8ths of a level, then along columns. Weights are in 1024ths. A result is within
0.83 levels of the exact one: half by rounding, an eighth a weight, a sixteenth between the two passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.modalities.images.geometry import UNIT_BITS

_LANE_BITS = 21
_WEIGHT_BITS = 10
# Of a level, kept between the two passes: three bits, so that a lane holds 8 + 3 + 10 bits.
_KEPT_BITS = 3
_FIRST_SHIFT, _SECOND_SHIFT = _WEIGHT_BITS - _KEPT_BITS, _WEIGHT_BITS + _KEPT_BITS
# Coordinates are in 2^-15 pixels while they are added up, so that they fit 32 bits.
_PLACE_BITS = 15
_BORDER = 2


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Return the images seen through affine maps.

    Args:
        images: (n, S, S, C) uint8.
        maps: (n, 6) int32, as `pipeline.modalities.images.geometry` makes them.
    """
    count, size, _, channels = images.shape
    maps = maps.long().view(count, 6, 1, 1)
    x, x_weight = _axis(maps[:, 0:2], maps[:, 4], size)
    y, y_weight = _axis(maps[:, 2:4], maps[:, 5], size)
    pixels = _packed(images)
    side = size + 2 * _BORDER
    first = torch.arange(count, dtype=torch.int32, device=images.device).view(-1, 1, 1) * (side * side)
    place = (y.mul_(side).add_(x).add_(first)).view(-1)
    rows, kept = [], (1 << (8 + _KEPT_BITS)) - 1
    for corner in (0, side):
        left, right = (pixels.index_select(0, place + (corner + n)).view_as(x_weight) for n in (0, 1))
        blended = _blend(left, right, x_weight)
        rows.append(_rounded(blended, _FIRST_SHIFT, channels).bitwise_and_(_lanes(kept, channels)))
    result = _rounded(_blend(rows[0], rows[1], y_weight), _SECOND_SHIFT, channels)
    out = torch.empty_like(images)
    for channel in range(channels):
        # A conversion to uint8 keeps the lowest bits.
        out[..., channel] = result >> (channel * _LANE_BITS)
    return out


def _axis(row: Tensor, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the lower neighbour (n, S, S) along one axis of the bordered image, and the upper's weight."""
    # Twice the distance from the centre: a whole number.
    steps = 2 * torch.arange(size, device=row.device) - (size - 1)
    origin = 2 * size * shift + ((size - 1) << UNIT_BITS)
    along_x, along_y = row[:, 0] * steps.view(1, 1, -1), row[:, 1] * steps.view(1, -1, 1) + origin
    lost = UNIT_BITS + 1 - _PLACE_BITS
    half_weight = 1 << (_PLACE_BITS - _WEIGHT_BITS - 1)
    across, down = (((part + (1 << (lost - 1))) >> lost).int() for part in (along_x, along_y))
    place = across + (down + half_weight)
    weight = (place >> (_PLACE_BITS - _WEIGHT_BITS)) & ((1 << _WEIGHT_BITS) - 1)
    # What lies further out sees the border alone.
    return (place >> _PLACE_BITS).clamp_(-_BORDER, size).add_(_BORDER), weight.long()


def _packed(images: Tensor) -> Tensor:
    """Return the pixels with their channels in lanes and a black border, flat, int64."""
    count, size, _, channels = images.shape
    side = size + 2 * _BORDER
    packed = torch.zeros((count, side, side), dtype=torch.int64, device=images.device)
    inner = packed[:, _BORDER : _BORDER + size, _BORDER : _BORDER + size]
    for channel in range(channels):
        inner += images[..., channel].long() << (channel * _LANE_BITS)
    return packed.view(-1)


def _blend(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Return low * (1 - weight) + high * weight in units of the weight, lane by lane."""
    # Differences borrow from the lanes above, and sums give it back.
    return (high - low).mul_(weight).add_(low, alpha=1 << _WEIGHT_BITS)


def _rounded(values: Tensor, bits: int, channels: int) -> Tensor:
    """Divide each lane by 2^bits, to the nearest; what falls out lies above the next lane down."""
    rounded: Tensor = values.add_(_lanes(1 << (bits - 1), channels))
    rounded >>= bits
    return rounded


def _lanes(value: int, channels: int) -> int:
    """Return a number that has a value in every lane."""
    return sum(value << (channel * _LANE_BITS) for channel in range(channels))
