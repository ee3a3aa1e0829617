"""Operations that map each of the 256 values of a pixel to another: one table a sample or channel.

Tables are made from an image's statistics where the operation needs some, in integers; applying one is a
lookup. Images are (n, S, S, C) uint8, levels (n,) int32; a table is (n, 1 or C, 256).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipeline.rendering.colour import grey
from pipeline.views.operations import FACTOR, Op

_MEAN_UNIT = 16  # a mean is in 16ths of a level


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Return the images with each pixel's value replaced by its table's."""
    count, kinds = tables.shape[:2]
    places = images.int()
    if count * kinds > 1:
        offsets = torch.arange(count * kinds, dtype=torch.int32, device=images.device) * 256
        places += offsets.view(count, 1, 1, kinds)
    return tables.reshape(-1).index_select(0, places.view(-1)).view(images.shape)


def brightness(images: Tensor, levels: Tensor) -> Tensor:
    """Multiply by a factor."""
    return _to_uint8((_values(images) * levels.view(-1, 1, 1)) >> 10)


def contrast(images: Tensor, levels: Tensor) -> Tensor:
    """Blend with the mean of the grey image."""
    greys = grey(images)
    count = greys.shape[1] * greys.shape[2]
    means = (greys.sum((1, 2), dtype=torch.int64) * _MEAN_UNIT // count).int().view(-1, 1, 1)
    factors = levels.view(-1, 1, 1)
    blended = _values(images) * factors * _MEAN_UNIT + means * (FACTOR - factors)
    return _to_uint8(blended >> 14)


def posterize(images: Tensor, levels: Tensor) -> Tensor:
    """Keep the highest bits."""
    lost = 8 - levels.view(-1, 1, 1)
    return _to_uint8((_values(images) >> lost) << lost)


def solarize(images: Tensor, levels: Tensor) -> Tensor:
    """Invert from a threshold on."""
    values = _values(images)
    return _to_uint8(torch.where(values >= levels.view(-1, 1, 1), 255 - values, values))


def autocontrast(images: Tensor, levels: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one value stays."""
    low, high = (extreme.int()[..., None] for extreme in (images.amin((1, 2)), images.amax((1, 2))))
    values = _values(images)
    stretched = (values - low) * 255 // (high - low).clamp(min=1)
    return _to_uint8(torch.where(high > low, stretched, values))


def equalize(images: Tensor, levels: Tensor) -> Tensor:
    """Flatten each channel's histogram, as PIL does; a channel of too few pixels stays."""
    histograms = _histograms(images)
    below = histograms.cumsum(2, dtype=torch.int32)
    count = images.shape[1] * images.shape[2]
    # Pixels below the brightest value that occurs.
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
    """Count each value of each channel: (n, C, 256) int32."""
    count, channels = images.shape[0], images.shape[3]
    values = images.flatten(1, 2).transpose(1, 2).long()
    zeros = torch.zeros((count, channels, 256), dtype=torch.int32, device=images.device)
    ones = torch.ones((1, 1, 1), dtype=torch.int32, device=images.device)
    return zeros.scatter_add_(2, values, ones.expand_as(values))
