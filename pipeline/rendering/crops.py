"""Crop, resize and flip on the CPU: uint8 in, uint8 out, the same for any batch or thread count.

Small images of one size, of which boxes of the result's size are wanted, are copied a batch at once: see
`shifts`. Else each sample goes alone: a box of the result's size is copied, any other goes through torch's
uint8 antialiased kernel, the one that `torchvision.transforms.v2` uses, on its channels-last slice.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import DataError
from pipeline.rendering import shifts
from pipeline.rendering.interpolation import KERNELS, Interpolation
from pipeline.samples.packed import Images
from pipeline.views.parameters import ViewParameters

Image = NDArray[np.uint8]  # (H, W, C)


def crop_and_resize(
    images: Images,
    rows: NDArray[np.int64],
    parameters: ViewParameters,
    size: int,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Return the crops of some samples: (B, size, size, channels) uint8.

    Args:
        images: where the source pixels are.
        rows: (B,) positions in `images`.
        parameters: of these rows, in this order.
        size: height and width of the result in pixels.
        interpolation: of crops that have another size.
    """
    source = images.uniform
    if source is not None and shifts.are_shifts(source, parameters.boxes, size):
        return shifts.shift(source, rows, parameters.boxes, parameters.flips, size)
    out = torch.empty((len(rows), size, size, images.channels), dtype=torch.uint8)
    for target, row, box in zip(out.numpy(), rows.tolist(), parameters.boxes.tolist(), strict=True):
        try:
            crop = cut(images.image(row), *box)
            if crop.shape == target.shape:
                target[...] = crop
            else:
                _resize(crop, target, interpolation)
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"sample {images.names[row]!r}: box {box} cannot be rendered ({error}); expected a part of "
                "the image; run: pipeline prepare"
            ) from error
    # One by one: torch has a fast kernel for (H, W, C), and none for a batch of them.
    for place in np.flatnonzero(parameters.flips).tolist():
        out[place].copy_(out[place].flip(1))
    return out


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


def _resize(image: Image, target: Image, interpolation: Interpolation) -> None:
    """Resize (h, w, C) into (S, S, C): antialiased, by torch's fixed-point kernel."""
    # A copy: the slice is of a read-only map, and the kernel would make one of it.
    source, out = (torch.from_numpy(a).permute(2, 0, 1)[None] for a in (image.copy(), target))
    # As `interpolate` does, but straight to where the result is wanted, which halves the time.
    KERNELS[interpolation].out(source, target.shape[:2], False, out=out)
