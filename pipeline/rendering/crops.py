"""Crop, resize and flip on the CPU: uint8 in, uint8 out, the same for any batch or thread count.

Each sample goes alone: a box of the result's size (pad-and-crop, whole small images) is copied, any other
goes through torch's uint8 antialiased kernel, the one that `torchvision.transforms.v2` uses, on its
channels-last slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.packed import PackedImages
from pipeline.views.parameters import ViewParameters

Image = NDArray[np.uint8]  # (H, W, C)


def crop_and_resize(
    images: PackedImages, rows: NDArray[np.int64], parameters: ViewParameters, size: int
) -> Tensor:
    """Return the crops of some samples: (B, size, size, channels) uint8.

    Args:
        images: where the source pixels are.
        rows: (B,) positions in `images`.
        parameters: of these rows, in this order.
        size: height and width of the result in pixels.
    """
    out = np.empty((len(rows), size, size, images.channels), np.uint8)
    for target, row, box, flip in zip(
        out, rows.tolist(), parameters.boxes.tolist(), parameters.flips.tolist(), strict=True
    ):
        crop = cut(images.image(row), *box)
        pixels = crop if crop.shape == target.shape else _resize(crop, size)
        target[...] = pixels[:, ::-1] if flip else pixels
    return torch.from_numpy(out)


def cut(image: Image, top: int, left: int, height: int, width: int) -> Image:
    """Return a box of an image, black where it reaches outside."""
    rows, columns = image.shape[:2]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return image[top : top + height, left : left + width]
    out = np.zeros((height, width, image.shape[2]), np.uint8)
    y0, y1 = max(0, -top), min(height, rows - top)
    x0, x1 = max(0, -left), min(width, columns - left)
    if y0 < y1 and x0 < x1:
        out[y0:y1, x0:x1] = image[top + y0 : top + y1, left + x0 : left + x1]
    return out


def _resize(image: Image, size: int) -> NDArray[Any]:
    """(h, w, C) uint8 to (size, size, C): bilinear, antialiased, torch's fixed-point kernel."""
    # A copy: the slice is of a read-only map, and the kernel would make one of it.
    source = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(source, (size, size), mode="bilinear", antialias=True)
    pixels: NDArray[Any] = resized[0].permute(1, 2, 0).numpy()
    return pixels
