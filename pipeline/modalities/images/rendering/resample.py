"""Torch's uint8 antialiased resizes as two batched matrix products, exact on any device.

Torch's CPU kernels weigh rows with 16-bit integers, round to uint8, then do the same for columns. Here
each sample's integer weights are rebuilt by the same operations on doubles in the same order. Weights are
split into a high byte, with the sign, and a low byte. Factors then have at most 8 bits and sums stay below
2^24, so float32 products are exact in any order. TF32 and half precision hold the factors exactly, too.

Shapes depend only on the sizes of source and result, and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

# Radius of a filter, in pixels of the smaller of source and result.
REACH: Mapping[Interpolation, int] = {"bilinear": 1, "bicubic": 2}

# Torch's CPU kernels.
KERNELS: Mapping[Interpolation, Any] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}

# Parameter a of Keys' cubic convolution, as in Pillow and in torch's antialiased kernel.
_SLOPE = -0.5
_HIGHEST_PRECISION = 22
_EXACT = 1 << 24


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    near = ((_SLOPE + 2) * distance - (_SLOPE + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _SLOPE
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


# Weight of a pixel by its distance from the centre, at least 0, in float64. The order of operations is
# that of torch's kernels: the last bit of a double depends on it.
FILTERS: Mapping[Interpolation, Callable[[Tensor], Tensor]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
}


def taps(source: int, size: int, interpolation: Interpolation = "bilinear") -> int:
    """Return the largest number of source pixels that contribute to one result pixel."""
    return math.ceil(REACH[interpolation] * max(1.0, source / size)) * 2 + 1


def is_exact(source: int, size: int, interpolation: Interpolation = "bilinear") -> bool:
    """Whether float32 sums over a source of this side, in pixels, are exact."""
    # A factor has at most 8 bits: a sum of T products of 255 * 255 must stay below 2^24, so T <= 258.
    return taps(source, size, interpolation) * 255 * 255 < _EXACT


def integer_weights(
    starts: Tensor, lengths: Tensor, size: int, source: int, interpolation: Interpolation = "bilinear"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the kernel's integer weights along one axis.

    Args:
        starts, lengths: (B,) int64 start and length of the boxes along this axis, in source pixels.
        size: side of the result in pixels.
        source: side of the source in pixels, an upper bound of the lengths.
        interpolation: the filter.

    Returns:
        First source pixel (B, size) int64 of each result pixel, weights (B, size, T) int32, and the number
        of their fractional bits (B,) int32.
    """
    # E.g. 4 pixels to 2, bilinear: scale 2, centres 1 and 3, first pixels 0 and 1. Weights of the first
    # result pixel: .75 .75 .25, as shares 3/7 3/7 1/7, in 2^-16: 28087 28087 9362. The sum is 2^16.
    # Taps beyond a result pixel's own count have weight 0, so that all have T = 5 taps.
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
    # Rounded half away from zero, as in the kernel: `int` truncates towards zero.
    return low + starts[:, None], torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).int(), bits


def _precision(largest: Tensor) -> Tensor:
    """Return the fractional bits (B,) at which the largest weight still fits 16 bits with sign."""
    units = 1 << torch.arange(1, _HIGHEST_PRECISION + 1, device=largest.device)
    fits = (largest[:, None] * units.double() + 0.5).long() < 1 << 15
    return fits.sum(1).int()


def dense(first: Tensor, weights: Tensor, source: int, flips: Tensor | None = None) -> Tensor:
    """Return weights as matrices (B, size, source) int32; pixels outside the source are black."""
    # A mirrored result takes its weights in reverse order: the flip costs no pass over pixels.
    if flips is not None:
        first = torch.where(flips[:, None], first.flip(1), first)
        weights = torch.where(flips[:, None, None], weights.flip(1), weights)
    # E.g. the weights above for source 4: [28087 28087 9362 0] and [0 9362 28087 28087].
    places = first[..., None] + torch.arange(weights.shape[2], device=first.device)
    inside = (places >= 0) & (places < source)
    matrices = torch.zeros((*weights.shape[:2], source), dtype=torch.int32, device=first.device)
    return matrices.scatter_add_(2, places.clamp(0, source - 1), torch.where(inside, weights, 0))


def multiply(pixels: Tensor, weights: Tensor) -> Tensor:
    """Multiply factors of at most 8 bits: (B, n, size) float32; all sums stay below 2^24."""
    return torch.bmm(pixels, weights)


def weighted(pixels: Tensor, matrices: Tensor, bits: Tensor) -> Tensor:
    """Weigh the last axis of pixels (B, n, source), values 0..255, and round: (B, n, size) float32."""
    # Two digits of base 256, the sign in the high one: -300 = -2 * 256 + 212.
    # Times 200: sums -400 and 42400, and -400 * 256 + 42400 = -60000. The cost is two products for one.
    high, low = (matrices >> 8).float(), (matrices & 255).float()
    sums = [multiply(pixels, part.transpose(1, 2)).int() for part in (high, low)]
    shift = bits.view(-1, 1, 1)
    half = 1 << (shift - 1)
    return (((sums[0] << 8) + sums[1] + half) >> shift).clamp(0, 255).float()


def cut(sources: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut boxes of the result's size: (B, size, size, C) uint8, black outside.

    Args:
        sources: (B, H, W, C) uint8.
        boxes: (B, 4) int64, top, left, size, size in source pixels.
        flips: (B,) bool, mirrored left to right.
        size: side of the result in pixels.
    """
    count, height, width, _ = sources.shape
    steps = torch.arange(size, device=sources.device)
    # One gather of index tensors (B, size, 1) and (B, 1, size). Indices outside are clamped, then blacked.
    rows = boxes[:, :1] + steps
    columns = boxes[:, 1:2] + torch.where(flips[:, None], size - 1 - steps, steps)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    batch = torch.arange(count, device=sources.device)[:, None, None]
    picked = sources[batch, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return picked * inside[..., None]


def crop_and_resize(
    sources: Tensor, boxes: Tensor, flips: Tensor, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Crop and resize to (B, size, size, C) uint8, the same bytes as the CPU's kernel.

    Args:
        sources: (B, H, W, C) uint8.
        boxes: (B, 4) int64, top, left, height, width in source pixels. They may reach outside, which is
            black, but are no longer than the source.
        flips: (B,) bool, mirrored left to right.
        size: side of the result in pixels.
        interpolation: the filter.
    """
    count, height, width, channels = sources.shape
    top, left, tall, wide = boxes.unbind(1)
    # Rows first, as in the kernel: (B, C * H, W) times (B, W, size) gives (B, C * H, size).
    first, weights, bits = integer_weights(left, wide, size, width, interpolation)
    across = dense(first, weights, width, flips)
    rows = weighted(
        sources.permute(0, 3, 1, 2).reshape(count, channels * height, width).float(), across, bits
    )
    # Then columns: (B, C * size, H) times (B, H, size) gives (B, C, size across, size down).
    first, weights, bits = integer_weights(top, tall, size, height, interpolation)
    down = dense(first, weights, height)
    columns = rows.view(count, channels, height, size).transpose(2, 3).reshape(count, -1, height)
    result = weighted(columns, down, bits).view(count, channels, size, size)
    return result.permute(0, 3, 2, 1).to(torch.uint8, memory_format=torch.contiguous_format)
