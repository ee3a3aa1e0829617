"""Crop, resize and flip on the CPU: uint8 in, uint8 out, the same for any batch or thread count.

Where every box already has the output's size (pad-and-crop, whole small images) a batch is one gather.
Otherwise each sample goes alone through torch's uint8 antialiased kernel, the one that
`torchvision.transforms.v2` uses, on its channels-last slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.packed import PackedImages
from pipeline.views.parameters import ViewParameters


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
    if images.uniform is not None and (parameters.boxes[:, 2:] == size).all():
        pixels, places = images.uniform
        return _gather(pixels, places[rows], parameters, size)
    out = torch.empty((len(rows), size, size, images.channels), dtype=torch.uint8)
    for target, row, box, flip in zip(
        out, rows.tolist(), parameters.boxes.tolist(), parameters.flips.tolist(), strict=True
    ):
        resized = _resize(cut(images.image(row), *box), size)
        target.copy_(resized.flip(1) if flip else resized)
    return out


def cut(image_HWC: NDArray[np.uint8], top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a box of an image, black where it reaches outside."""
    rows, columns = image_HWC.shape[:2]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return image_HWC[top : top + height, left : left + width]
    out = np.zeros((height, width, image_HWC.shape[2]), np.uint8)
    y0, y1 = max(0, -top), min(height, rows - top)
    x0, x1 = max(0, -left), min(width, columns - left)
    if y0 < y1 and x0 < x1:
        out[y0:y1, x0:x1] = image_HWC[top + y0 : top + y1, left + x0 : left + x1]
    return out


def _gather(
    pixels_NHWC: NDArray[np.uint8],
    rows: NDArray[np.int64],
    parameters: ViewParameters,
    size: int,
) -> Tensor:
    """Crops of the output's size: two index vectors a sample, black outside the image."""
    height, width = pixels_NHWC.shape[1:3]
    steps = np.arange(size)
    ys = parameters.boxes[:, :1] + steps
    xs = parameters.boxes[:, 1:2] + np.where(parameters.flips[:, None], steps[::-1], steps)
    inside_y, inside_x = (ys >= 0) & (ys < height), (xs >= 0) & (xs < width)
    ys, xs = np.clip(ys, 0, height - 1), np.clip(xs, 0, width - 1)
    out = pixels_NHWC[rows[:, None, None], ys[:, :, None], xs[:, None, :]]
    if not (inside_y.all() and inside_x.all()):
        out *= (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
    return torch.from_numpy(out)


def _resize(image_HWC: NDArray[Any], size: int) -> Tensor:
    """(h, w, C) uint8 to (size, size, C): bilinear, antialiased, torch's fixed-point kernel."""
    # A copy: the slice is of a read-only map.
    image = torch.from_numpy(image_HWC.copy())
    if image.shape[:2] == (size, size):
        return image
    resized: Tensor = torch.nn.functional.interpolate(
        image.permute(2, 0, 1)[None], (size, size), mode="bilinear", antialias=True
    )
    return resized[0].permute(1, 2, 0)
