"""Crop, resize and flip on the CPU: uint8 in, uint8 out, the same for any batch or thread count.

Small images of one size, of which boxes of the result's size are wanted, are copied a batch at once.
Else each sample goes alone: a box of the result's size is copied, any other goes through torch's
uint8 antialiased kernel, the one that `torchvision.transforms.v2` uses, on its channels-last slice.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import DataError
from pipeline.modalities.images.draw import ViewParameters
from pipeline.modalities.images.rendering.resample import KERNELS, Interpolation
from pipeline.samples.packed import Split, Uniform

# Larger ones are copied box by box: the lines' other columns would cost more than the loop.
_SMALL_BYTES = 16 << 10
Image = NDArray[np.uint8]  # (H, W, C)


def are_shifts(source: Uniform, boxes: NDArray[np.int32], size: int) -> bool:
    """Whether `shift` can, and should, make these boxes (B, 4) of top, left, height and width."""
    if not len(boxes):
        return False
    _, height, width, channels = source[0].shape
    small = max(height * width, size * size) * channels <= _SMALL_BYTES
    return small and bool((boxes[:, 2:] == size).all())


def shift(
    source: Uniform,
    rows: NDArray[np.int64],
    boxes: NDArray[np.int32],
    flips: NDArray[np.bool_],
    size: int,
) -> Tensor:
    """Return boxes of some samples, black where they reach outside: (B, size, size, C) uint8.

    Pad-and-crop, and whole images. For a small image a turn of Python's loop costs more than its pixels
    do, and holds all other threads up. So lines are picked for the whole batch, in the order of (mirrored,
    left): then samples with the same columns lie together, and those that are mirrored at the end.

    Args:
        source: images of one size, and where each sample is among them.
        rows: (B,) samples.
        boxes: (B, 4) int32 top, left, size, size in source pixels.
        flips: (B,) whether it is mirrored left to right.
        size: of the result in pixels.
    """
    pixels, places = source
    order = np.lexsort((boxes[:, 1], flips))
    lines = _lines(pixels, places[rows[order]], boxes[order, 0], size)
    cut = torch.from_numpy(_columns(lines, boxes[order, 1], size))
    straight = len(flips) - int(np.count_nonzero(flips))
    if straight < len(flips):
        # As one tall image: torch has a fast kernel for (H, W, C), and none for a batch of them.
        tall = cut[straight:].view(-1, *cut.shape[2:])
        tall.copy_(tall.flip(1))
    return cut.index_select(0, torch.from_numpy(np.argsort(order)))


def _lines(
    pixels: NDArray[np.uint8], places: NDArray[np.int64], tops: NDArray[np.int32], size: int
) -> NDArray[np.uint8]:
    """Return whole lines from each top on (B, size, W, C), black where there are none."""
    _, height, width, channels = pixels.shape
    wanted = tops[:, None] + np.arange(size)
    inside = np.clip(wanted, 0, height - 1)
    lines = pixels.reshape(-1, width, channels)
    picked: NDArray[np.uint8] = lines.take(places[:, None] * height + inside, axis=0, mode="clip")
    picked[wanted != inside] = 0
    return picked


def _columns(lines: NDArray[np.uint8], lefts: NDArray[np.int32], size: int) -> NDArray[np.uint8]:
    """Return columns from each left on (B, size, size, C), black where there are none."""
    count, _, width, channels = lines.shape
    out = np.zeros((count, size, size, channels), np.uint8)
    changes = (np.flatnonzero(np.diff(lefts)) + 1).tolist()
    for start, stop in pairwise([0, *changes, count]):
        left = int(lefts[start])
        first, last = max(0, left), min(width, left + size)
        if first < last:
            out[start:stop, :, first - left : last - left] = lines[start:stop, :, first:last]
    return out


def crop_and_resize(
    images: Split,
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
    if source is not None and are_shifts(source, parameters.boxes, size):
        return shift(source, rows, parameters.boxes, parameters.flips, size)
    out = torch.empty((len(rows), size, size, images.form.unit[-1]), dtype=torch.uint8)
    for target, row, box in zip(out.numpy(), rows.tolist(), parameters.boxes.tolist(), strict=True):
        try:
            crop = cut(images.array(row), *box)
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
