"""Affine maps of images: bilinear, black outside, in fixed point."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.views.affine import UNIT_BITS

_WEIGHT_BITS = 11
_ONE = 1 << _WEIGHT_BITS
# Coordinates are in parts of half a pixel.
_FRACTION_BITS = UNIT_BITS + 1


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Return the images seen through affine maps.

    Args:
        images: (n, S, S, C) uint8.
        maps: (n, 6) int32, as `pipeline.views.affine` makes them.
    """
    count, size, _, channels = images.shape
    flat = images.reshape(count * size * size, channels)
    maps = maps.long().view(count, 6, 1, 1)
    (x, x_weight), (y, y_weight) = (
        _axis(maps[:, 0:2], maps[:, 4], size),
        _axis(maps[:, 2:4], maps[:, 5], size),
    )
    first = torch.arange(count, device=images.device).view(-1, 1, 1) * (size * size)
    total = torch.zeros((count * size * size, channels), dtype=torch.int32, device=images.device)
    for down in (0, 1):
        for right in (0, 1):
            row, column = y + down, x + right
            weight = (y_weight if down else _ONE - y_weight) * (x_weight if right else _ONE - x_weight)
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            place = first + row.clamp(0, size - 1) * size + column.clamp(0, size - 1)
            corner = flat.index_select(0, place.view(-1)).int()
            total += corner * torch.where(inside, weight, 0).int().view(-1, 1)
    half = 1 << (2 * _WEIGHT_BITS - 1)
    return ((total + half) >> (2 * _WEIGHT_BITS)).to(torch.uint8).view(images.shape)


def _axis(row: Tensor, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the lower neighbour (n, S, S) along one axis, and the weight of the upper one in 2048ths."""
    # Twice the distance from the centre: a whole number.
    steps = 2 * torch.arange(size, device=row.device) - (size - 1)
    place = row[:, 0] * steps.view(1, 1, -1) + row[:, 1] * steps.view(1, -1, 1) + 2 * size * shift
    place = place + ((size - 1) << UNIT_BITS) + (1 << (_FRACTION_BITS - _WEIGHT_BITS - 1))
    weight = (place >> (_FRACTION_BITS - _WEIGHT_BITS)) & (_ONE - 1)
    return place >> _FRACTION_BITS, weight
