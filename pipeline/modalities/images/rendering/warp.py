"""Affine maps of images: bilinear, black outside, in fixed point.

The channels of a pixel share one 64-bit integer, 21 bits each, so one multiplication blends all three.
Rows are blended first and kept in 8ths of a level, then columns. Weights are in 1024ths. The error is at
most 0.83 levels: 0.5 by rounding, an eighth per weight, a sixteenth between the two passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.modalities.images.geometry import UNIT_BITS

# Lane of a channel, e.g. the pixel (1, 2, 3) is 1 + 2 * 2^21 + 3 * 2^42.
_LANE_BITS = 21
_WEIGHT_BITS = 10
# Fractional bits of a level between the passes: 8 + 3 bits, plus 10 of a weight, fill a lane of 21.
_KEPT_BITS = 3
_FIRST_SHIFT, _SECOND_SHIFT = _WEIGHT_BITS - _KEPT_BITS, _WEIGHT_BITS + _KEPT_BITS
# Coordinates are summed in units of 2^-15 pixels, to fit 32 bits.
_PLACE_BITS = 15
# Black pixels on each side: a lower neighbour clamped to the border has its upper neighbour there, too.
_BORDER = 2


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images through affine maps: (n, S, S, C) uint8.

    Args:
        images: (n, S, S, C) uint8.
        maps: (n, 6) int32, from `pipeline.modalities.images.geometry`.
    """
    count, size, _, channels = images.shape
    maps = maps.long().view(count, 6, 1, 1)
    x, x_weight = _axis(maps[:, 0:2], maps[:, 4], size)
    y, y_weight = _axis(maps[:, 2:4], maps[:, 5], size)
    pixels = _packed(images)
    side = size + 2 * _BORDER
    # Index of the top left neighbour in the flat packed pixels: (n * S * S,) int32, image by image.
    first = torch.arange(count, dtype=torch.int32, device=images.device).view(-1, 1, 1) * (side * side)
    place = (y.mul_(side).add_(x).add_(first)).view(-1)
    rows, kept = [], (1 << (8 + _KEPT_BITS)) - 1
    # The lines above and below the point; in each, the left and the right neighbour: four gathers.
    for corner in (0, side):
        left, right = (pixels.index_select(0, place + (corner + n)).view_as(x_weight) for n in (0, 1))
        blended = _blend(left, right, x_weight)
        # A right shift moves bits of the higher lane down; the mask removes them.
        rows.append(_rounded(blended, _FIRST_SHIFT, channels).bitwise_and_(_lanes(kept, channels)))
    result = _rounded(_blend(rows[0], rows[1], y_weight), _SECOND_SHIFT, channels)
    out = torch.empty_like(images)
    for channel in range(channels):
        # Conversion to uint8 keeps the lowest 8 bits: the lane of this channel.
        out[..., channel] = result >> (channel * _LANE_BITS)
    return out


def _axis(row: Tensor, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the lower neighbour (n, S, S) on one axis of the bordered image, and the upper's weight."""
    # Twice the distance from the centre: a whole number for odd and even sides.
    steps = 2 * torch.arange(size, device=row.device) - (size - 1)
    origin = 2 * size * shift + ((size - 1) << UNIT_BITS)
    along_x, along_y = row[:, 0] * steps.view(1, 1, -1), row[:, 1] * steps.view(1, -1, 1) + origin
    lost = UNIT_BITS + 1 - _PLACE_BITS
    half_weight = 1 << (_PLACE_BITS - _WEIGHT_BITS - 1)
    # E.g. S = 4: steps -3 -1 1 3. A coordinate is a sum of (n, 1, S) and (n, S, 1).
    across, down = (((part + (1 << (lost - 1))) >> lost).int() for part in (along_x, along_y))
    place = across + (down + half_weight)
    weight = (place >> (_PLACE_BITS - _WEIGHT_BITS)) & ((1 << _WEIGHT_BITS) - 1)
    # Points further out see only the border.
    return (place >> _PLACE_BITS).clamp_(-_BORDER, size).add_(_BORDER), weight.long()


def _packed(images: Tensor) -> Tensor:
    """Return pixels with their channels in lanes and a black border: (n * (S + 4) * (S + 4),) int64."""
    count, size, _, channels = images.shape
    side = size + 2 * _BORDER
    packed = torch.zeros((count, side, side), dtype=torch.int64, device=images.device)
    inner = packed[:, _BORDER : _BORDER + size, _BORDER : _BORDER + size]
    for channel in range(channels):
        inner += images[..., channel].long() << (channel * _LANE_BITS)
    return packed.view(-1)


def _blend(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Return low * (1 - weight) + high * weight in units of the weight, lane by lane."""
    # Negative differences borrow from higher lanes; adding `low` gives the borrow back.
    return (high - low).mul_(weight).add_(low, alpha=1 << _WEIGHT_BITS)


def _rounded(values: Tensor, bits: int, channels: int) -> Tensor:
    """Divide each lane by 2^bits, to the nearest; lost bits end above the next lower lane's value."""
    rounded: Tensor = values.add_(_lanes(1 << (bits - 1), channels))
    rounded >>= bits
    return rounded


def _lanes(value: int, channels: int) -> int:
    """Return an integer with the value in every lane."""
    return sum(value << (channel * _LANE_BITS) for channel in range(channels))
