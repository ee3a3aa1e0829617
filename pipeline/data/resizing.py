"""Shrinking large images, once and for all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F


def shrunk_shape(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return the shape whose shorter side is at most `short_side` pixels; None leaves every image alone.

    The longer side keeps the aspect, rounded to the nearest pixel.
    """
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return height, width
    # Rounded in integers: half a pixel goes up.
    rounded = [(2 * side * short_side + shorter) // (2 * shorter) for side in (height, width)]
    return rounded[0], rounded[1]


def shrink(image_HWC: NDArray[np.uint8], short_side: int | None) -> NDArray[np.uint8]:
    """Return an image whose shorter side is at most `short_side` pixels; a smaller one as it is.

    By torch's uint8 antialiased bilinear kernel, which `torchvision.transforms.v2` uses too.
    """
    height, width, _ = image_HWC.shape
    shape = shrunk_shape(height, width, short_side)
    if shape == (height, width):
        return image_HWC
    # A copy: the image may be read-only.
    source = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None]
    shrunk = F.interpolate(source, shape, mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = shrunk[0].permute(1, 2, 0).contiguous().numpy()
    return pixels
