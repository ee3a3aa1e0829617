"""Torch's uint8 antialiased resizes as two batched matrix products, exact on any device.

The CPU's kernels weigh pixels with 16-bit integers, rows first, round to uint8, then columns. Here each
sample's integer weights are built anew, by the same operations on doubles in the same order, and split in
a high byte, which has the sign, and a low one: every factor has at most 8 bits and every sum stays below
2^24, so products summed in float32 are exact in any order, also where factors are rounded to TF32 or half
precision.

Shapes depend on the sizes of source and result alone, and nothing waits for the device.
"""

from __future__ import annotations

import math
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
_HIGHEST_PRECISION = 22
_EXACT = 1 << 24


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


def taps(source: int, size: int, interpolation: Interpolation = "bilinear") -> int:
    """Return how many source pixels weigh at most in one pixel of the result."""
    return math.ceil(REACH[interpolation] * max(1.0, source / size)) * 2 + 1


def is_exact(source: int, size: int, interpolation: Interpolation = "bilinear") -> bool:
    """Whether sums over a source of this side, in pixels, are exact in float32."""
    return taps(source, size, interpolation) * 255 * 255 < _EXACT


def integer_weights(
    starts: Tensor, lengths: Tensor, size: int, source: int, interpolation: Interpolation = "bilinear"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the kernel's weights along one axis.

    Args:
        starts, lengths: (B,) int64 of the boxes along this axis, in source pixels.
        size: of the result in pixels.
        source: longest box, in pixels.
        interpolation: whose kernel.

    Returns:
        First source pixel (B, size) int64 of each pixel of the result, weights (B, size, T) int32 and the
        number of their fractional bits (B,) int32.
    """
    scale = (lengths.double() / size)[:, None]
    support = torch.where(scale >= 1, scale, torch.ones_like(scale)) * REACH[interpolation]
    inverse = torch.where(scale >= 1, 1 / scale, torch.ones_like(scale))
    centre = scale * (torch.arange(size, dtype=torch.float64, device=starts.device) + 0.5)
    low = (centre - support + 0.5).long().clamp(min=0)
    count = torch.minimum((centre + support + 0.5).long(), lengths[:, None]) - low
    weights, total = [], torch.zeros_like(centre)
    for tap in range(taps(source, size, interpolation)):
        distance = ((tap + low).double() - centre + 0.5) * inverse
        weight = FILTERS[interpolation](distance.abs())
        weight = torch.where(tap < count, weight, torch.zeros_like(centre))
        weights.append(weight)
        # In the order of the kernel's own loop: the last bit of a sum depends on it.
        total = total + weight
    shares = torch.stack(weights, 2) / total[..., None]
    bits = _precision(shares.amax((1, 2)))
    unit = (1 << bits.long()).double()[:, None, None]
    scaled = shares * unit
    return low + starts[:, None], torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).int(), bits


def _precision(largest: Tensor) -> Tensor:
    """Return the fractional bits (B,) with which the largest weight still fits 16 bits."""
    units = 1 << torch.arange(1, _HIGHEST_PRECISION + 1, device=largest.device)
    fits = (largest[:, None] * units.double() + 0.5).long() < 1 << 15
    return fits.sum(1).int()


def dense(first: Tensor, weights: Tensor, source: int, flips: Tensor | None = None) -> Tensor:
    """Return weights as matrices (B, size, source) int32; what lies outside the source is black."""
    if flips is not None:
        first = torch.where(flips[:, None], first.flip(1), first)
        weights = torch.where(flips[:, None, None], weights.flip(1), weights)
    places = first[..., None] + torch.arange(weights.shape[2], device=first.device)
    inside = (places >= 0) & (places < source)
    matrices = torch.zeros((*weights.shape[:2], source), dtype=torch.int32, device=first.device)
    return matrices.scatter_add_(2, places.clamp(0, source - 1), torch.where(inside, weights, 0))


def multiply(pixels: Tensor, weights: Tensor) -> Tensor:
    """Return the products (B, n, size) float32 of factors of at most 8 bits, whose sums stay below 2^24."""
    return torch.bmm(pixels, weights)


def weighted(pixels: Tensor, matrices: Tensor, bits: Tensor) -> Tensor:
    """Weigh the last axis of pixels (B, n, source), values 0..255, and round: (B, n, size) float32."""
    high, low = (matrices >> 8).float(), (matrices & 255).float()
    sums = [multiply(pixels, part.transpose(1, 2)).int() for part in (high, low)]
    shift = bits.view(-1, 1, 1)
    half = 1 << (shift - 1)
    return (((sums[0] << 8) + sums[1] + half) >> shift).clamp(0, 255).float()


def cut(sources: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Return boxes that have the result's size already, black where they reach outside.

    Args:
        sources: (B, H, W, C) uint8.
        boxes: (B, 4) int64, top, left, size, size in source pixels.
        flips: (B,) bool, mirrored left to right.
        size: of the result in pixels.
    """
    count, height, width, _ = sources.shape
    steps = torch.arange(size, device=sources.device)
    rows = boxes[:, :1] + steps
    columns = boxes[:, 1:2] + torch.where(flips[:, None], size - 1 - steps, steps)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    batch = torch.arange(count, device=sources.device)[:, None, None]
    picked = sources[batch, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return picked * inside[..., None]


def crop_and_resize(
    sources: Tensor, boxes: Tensor, flips: Tensor, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Return crops (B, size, size, C) uint8, the bytes of the CPU's kernel.

    Args:
        sources: (B, H, W, C) uint8.
        boxes: (B, 4) int64, top, left, height, width in source pixels; they may reach outside, where all
            is black, but are no longer than the source.
        flips: (B,) bool, mirrored left to right.
        size: of the result in pixels.
        interpolation: whose kernel.
    """
    count, height, width, channels = sources.shape
    top, left, tall, wide = boxes.unbind(1)
    first, weights, bits = integer_weights(left, wide, size, width, interpolation)
    across = dense(first, weights, width, flips)
    rows = weighted(
        sources.permute(0, 3, 1, 2).reshape(count, channels * height, width).float(), across, bits
    )
    first, weights, bits = integer_weights(top, tall, size, height, interpolation)
    down = dense(first, weights, height)
    columns = rows.view(count, channels, height, size).transpose(2, 3).reshape(count, -1, height)
    result = weighted(columns, down, bits).view(count, channels, size, size)
    return result.permute(0, 3, 2, 1).to(torch.uint8, memory_format=torch.contiguous_format)
