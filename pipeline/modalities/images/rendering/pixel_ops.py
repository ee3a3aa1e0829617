"""Operations on rendered pixels: tables, colour, filters, erased and mixed regions, and a view's steps.

Images are (n, S, S, C) uint8, levels (n,) int32, factors in 1024ths; all arithmetic is in integers, so
`>> 10` divides by a factor's unit. A table operation computes a table (n, 1 or C, 256), from the image's
statistics if needed, and looks pixels up. Colour operations leave images of one channel unchanged. Boxes
are in units of the side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.modalities.images.draw import Erasure
from pipeline.modalities.images.geometry import UNIT
from pipeline.modalities.images.mixing import Mixture
from pipeline.modalities.images.operations import FACTOR, Op, Step
from pipeline.modalities.images.rendering.warp import warp
from pipeline.views.shares import WHOLE

# torchvision's weights 0.2989, 0.587 and 0.114 in 2^-23, rounded up. A weighted sum is a multiple of
# 1/10000 and the excess is smaller, so rounding down gives the integer part of the decimal sum.
_RED, _GREEN, _BLUE = 2507355, 4924113, 956302
_WEIGHT_BITS = 23

# Positions of red, green and blue on the colour circle, in sixths.
_PLACES = (5, 3, 1)
_MEAN_UNIT = 16  # a mean is in 16ths of a level
Places = NDArray[np.int64]
T = TypeVar("T", NDArray[np.int64], Tensor)
Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, S, S, C) uint8 and operands (n, 6) to (n, S, S, C)
# Number of values per call on the CPU: a chunk of this size stays in the cache.
_PIXELS_AT_ONCE = 1 << 16


def grey(images: Tensor) -> Tensor:
    """Return the luma (n, S, S) int32, rounded down."""
    wide = images.int()
    if images.shape[3] == 1:
        return wide[..., 0]
    return (wide[..., 0] * _RED + wide[..., 1] * _GREEN + wide[..., 2] * _BLUE) >> _WEIGHT_BITS


def saturation(images: Tensor, levels: Tensor) -> Tensor:
    """Blend with the grey image; factor 0 is grey."""
    if images.shape[3] == 1:
        return images
    factors = levels.view(-1, 1, 1, 1)
    blended = (images.int() * factors + grey(images)[..., None] * (FACTOR - factors)) >> 10
    return blended.clamp(0, 255).to(torch.uint8)


def hue(images: Tensor, levels: Tensor) -> Tensor:
    """Turn the colour circle, in exact fractions: a pixel's hue is a fraction of its channel range."""
    if images.shape[3] == 1:
        return images
    wide = images.int()
    red, green, blue = wide.unbind(3)
    high, low = wide.amax(3), wide.amin(3)
    span = high - low
    # Hue in sixths of the circle, times span: integers, no division. E.g. pure red: span 255, angle 0.
    angle = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, blue - red + 2 * span, red - green + 4 * span),
    )
    sixth = FACTOR * span
    # E.g. a third of the circle, level 341 of 1024, turns (255, 0, 0) into (0, 255, 0).
    turned = angle * FACTOR + 6 * levels.view(-1, 1, 1) * span
    channels = []
    for start in _PLACES:
        # A channel falls from high to low in one sixth, stays for two, rises in one, and stays for two.
        place = torch.remainder(turned + start * sixth, (6 * sixth).clamp(min=1))
        fallen = torch.minimum(torch.minimum(place, 4 * sixth - place).clamp(min=0), sixth)
        channels.append((high * FACTOR - fallen + FACTOR // 2) >> 10)
    return torch.stack(channels, 3).to(torch.uint8)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each pixel's value by its table entry."""
    count, kinds = tables.shape[:2]
    places = images.int()
    # One gather from all tables laid end to end: table k starts at 256 * k.
    if count * kinds > 1:
        offsets = torch.arange(count * kinds, dtype=torch.int32, device=images.device) * 256
        places += offsets.view(count, 1, 1, kinds)
    return tables.reshape(-1).index_select(0, places.view(-1)).view(images.shape)


def brightness(images: Tensor, levels: Tensor) -> Tensor:
    """Multiply by a factor."""
    return _to_uint8((_values(images) * levels.view(-1, 1, 1)) >> 10)


def contrast(images: Tensor, levels: Tensor) -> Tensor:
    """Blend with the mean of the grey image, in 16ths of a level."""
    greys = grey(images)
    count = greys.shape[1] * greys.shape[2]
    means = (greys.sum((1, 2), dtype=torch.int64) * _MEAN_UNIT // count).int().view(-1, 1, 1)
    factors = levels.view(-1, 1, 1)
    blended = _values(images) * factors * _MEAN_UNIT + means * (FACTOR - factors)
    # 10 bits of the factor and 4 of the mean.
    return _to_uint8(blended >> 14)


def posterize(images: Tensor, levels: Tensor) -> Tensor:
    """Keep the highest bits."""
    lost = 8 - levels.view(-1, 1, 1)
    return _to_uint8((_values(images) >> lost) << lost)


def solarize(images: Tensor, levels: Tensor) -> Tensor:
    """Invert values at or above a threshold."""
    values = _values(images)
    return _to_uint8(torch.where(values >= levels.view(-1, 1, 1), 255 - values, values))


def autocontrast(images: Tensor, levels: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a constant channel is unchanged."""
    low, high = (extreme.int()[..., None] for extreme in (images.amin((1, 2)), images.amax((1, 2))))
    values = _values(images)
    stretched = (values - low) * 255 // (high - low).clamp(min=1)
    return _to_uint8(torch.where(high > low, stretched, values))


def equalize(images: Tensor, levels: Tensor) -> Tensor:
    """Flatten each channel's histogram, as PIL does; a channel with too few pixels is unchanged."""
    histograms = _histograms(images)
    below = histograms.cumsum(2, dtype=torch.int32)
    count = images.shape[1] * images.shape[2]
    # Pixels below the brightest value in the image.
    rest = torch.where(below < count, below, 0).amax(2, keepdim=True)
    step = rest // 255
    equalized = (below - histograms + step // 2) // step.clamp(min=1)
    return _to_uint8(torch.where(step > 0, equalized, _values(images)))


TABLES: Mapping[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.BRIGHTNESS: brightness,
    Op.CONTRAST: contrast,
    Op.POSTERIZE: posterize,
    Op.SOLARIZE: solarize,
    Op.AUTOCONTRAST: autocontrast,
    Op.EQUALIZE: equalize,
}


def _values(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.int32, device=images.device).view(1, 1, 256)


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def _histograms(images: Tensor) -> Tensor:
    """Count the values of each channel: (n, C, 256) int32."""
    count, channels = images.shape[0], images.shape[3]
    values = images.flatten(1, 2).transpose(1, 2).long()
    zeros = torch.zeros((count, channels, 256), dtype=torch.int32, device=images.device)
    # A single 1, expanded without memory. bincount takes no batch and waits for a GPU.
    ones = torch.ones((1, 1, 1), dtype=torch.int32, device=images.device)
    return zeros.scatter_add_(2, values, ones.expand_as(values))


def sharpness(images: Tensor, levels: Tensor) -> Tensor:
    """Blend with a smoothed image (3x3, centre 5, sum 13); the one-pixel border is unchanged.

    Args:
        images: (n, S, S, C) uint8.
        levels: (n,) int32 factors.
    """
    if min(images.shape[1:3]) <= 2:
        return images
    wide = images.int()
    # Separable sum of the 3x3 neighbourhood; 4 more of the centre make its weight 5.
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = wide[:, 1:-1, 1:-1]
    # The nearest integer; a multiple of 1/13 never lies half-way.
    smooth = (sums + 4 * inner + 6) // 13
    factors = levels.view(-1, 1, 1, 1)
    result = images.clone()
    result[:, 1:-1, 1:-1] = ((inner * factors + smooth * (FACTOR - factors)) >> 10).clamp(0, 255).byte()
    return result


def erase(pixels: Tensor, erasure: Erasure) -> Tensor:
    """Return pixels (B, S, S, C) uint8 on the CPU with their boxes erased."""
    return paint(pixels, torch.from_numpy(erasure.boxes), erasure.value)


def paint(pixels: Tensor, boxes: Tensor, value: int) -> Tensor:
    """Fill boxes (B, 4) of pixels (B, S, S, C) uint8, on the same device, with a grey level."""
    return pixels.masked_fill(_inside(boxes, pixels), value)


def mix(pixels: Tensor, own: Places, partners: Places, mixture: Mixture) -> Tensor:
    """Mix samples with their partners: (B, S, S, C) uint8.

    Args:
        pixels: (n, S, S, C) uint8, samples and partners, unmixed.
        own, partners: (B,) positions in `pixels`.
        mixture: mixture of the B samples.
    """
    if pixels.device.type == "cpu":
        return torch.from_numpy(_mix_one_by_one(pixels.numpy(), own, partners, mixture))
    given = (own, partners, mixture.levels, mixture.boxes)
    return blend(pixels, *(to_device(values, pixels.device) for values in given))


def _mix_one_by_one(
    pixels: NDArray[np.uint8], own: Places, partners: Places, mixture: Mixture
) -> NDArray[np.uint8]:
    """Mix as `mix` does, on the CPU: only the pixels of a box are read and written.

    At 224 x 224 x 3, Mixup takes a fortieth and CutMix a four-hundredth of `blend`'s time on a CPU.
    """
    mixed, size = pixels[own], pixels.shape[1]
    boxes = mixture.boxes.astype(np.int64)
    firsts, lasts = _edges(boxes[:, :2], size), _edges(boxes[:, :2] + boxes[:, 2:], size)
    places = zip(partners.tolist(), mixture.levels.tolist(), firsts.tolist(), lasts.tolist(), strict=True)
    for target, (partner, level, (top, left), (bottom, right)) in zip(mixed, places, strict=True):
        if level < WHOLE:
            box = target[top:bottom, left:right]
            theirs = pixels[partner, top:bottom, left:right]
            box[...] = _weighted(box, theirs, level) if level else theirs
    return mixed


def _weighted(mine: NDArray[np.uint8], theirs: NDArray[np.uint8], level: int) -> NDArray[np.uint16]:
    """Return the rounded mean, weighted level : 256 - level; in 16 bits, since 255 * 256 + 128 < 2^16."""
    total = np.multiply(mine, np.uint16(level), dtype=np.uint16)
    total += np.multiply(theirs, np.uint16(WHOLE - level), dtype=np.uint16)
    total += np.uint16(WHOLE // 2)
    total >>= np.uint16(8)
    return total


def _edges(edges: T, size: int) -> T:
    """Return the nearest pixels of edges in units of the side."""
    return (edges * size + UNIT // 2) // UNIT


def blend(pixels: Tensor, own: Tensor, partners: Tensor, levels: Tensor, boxes: Tensor) -> Tensor:
    """Mix as `mix` does, with positions (B,), levels (B,) and boxes (B, 4) on the device of the pixels."""
    mine, theirs = (pixels.index_select(0, places) for places in (own, partners))
    # E.g. a group of four: own [0 1 2 3], partners [1 2 3 0]. Each sample is mixed with the next one.
    # With rows 0 and 1 alone: own [0 1], partners [1 2], and sample 2 of `pixels` is a partner only.
    levels = levels.view(-1, 1, 1, 1)
    blended = (mine.int() * levels + theirs.int() * (WHOLE - levels) + WHOLE // 2) >> 8
    return torch.where(_inside(boxes, mine), blended.to(torch.uint8), mine)


def _inside(boxes: Tensor, pixels: Tensor) -> Tensor:
    """Return whether each pixel is in its sample's box: (B, S, S, 1) bool; edges at the nearest pixel."""
    size = pixels.shape[1]
    boxes = boxes.long()
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    first, last = (_edges(edges, size) for edges in (starts, ends))
    # (B, S) per axis, then an outer product: no (B, S, S) coordinates are built.
    steps = torch.arange(size, device=pixels.device)
    rows, columns = ((steps >= first[:, axis, None]) & (steps < last[:, axis, None]) for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[..., None]


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
    """Run steps on the CPU, in place: each operation only on the samples that drew it.

    Args:
        pixels: (B, S, S, C) uint8 on the CPU.
        steps: steps of these samples.
    """
    at_once = max(1, _PIXELS_AT_ONCE // pixels[0].numel()) if len(pixels) else 1
    for step in steps:
        operands = torch.from_numpy(step.operands)
        for op in np.unique(step.ops[step.ops != Op.NOTHING]).tolist():
            # Rows (n,) with this operation, in chunks that stay in the cache.
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
