"""Crop, resize and flip on the CPU: uint8 in, uint8 out, the same for any batch or thread count.

Small images of one size, with boxes of the result's size, are copied as a whole batch. Otherwise each
sample is rendered alone. A box of the result's size is copied; any other is resized by torch's uint8
antialiased kernel on a channels-last slice, as in `torchvision.transforms.v2`.
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

# Larger images are copied box by box: copying the unused columns of a line would cost more than the loop.
_SMALL_BYTES = 16 << 10
Image = NDArray[np.uint8]  # (H, W, C)


def are_shifts(source: Uniform, boxes: NDArray[np.int32], size: int) -> bool:
    """Whether `shift` can cut these boxes (B, 4), top, left, height, width, and is faster."""
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
    """Cut boxes from small images of one size, black outside: (B, size, size, C) uint8.

    Serves pad-and-crop and whole images. Per small image, a Python loop costs more than the pixels and
    blocks all other threads, so lines are gathered for the whole batch. Sorting by (flip, left) makes
    samples with equal columns adjacent and puts flipped samples last.

    Args:
        source: images of one size, and the index of each sample among them.
        rows: (B,) samples.
        boxes: (B, 4) int32 top, left, size, size in source pixels.
        flips: (B,) whether each sample is mirrored left to right.
        size: side of the result in pixels.
    """
    pixels, places = source
    # The last key of lexsort sorts first.
    order = np.lexsort((boxes[:, 1], flips))
    lines = _lines(pixels, places[rows[order]], boxes[order, 0], size)
    # (B, size, size, C) from lines (B, size, W, C), in sorted order.
    cut = torch.from_numpy(_columns(lines, boxes[order, 1], size))
    straight = len(flips) - int(np.count_nonzero(flips))
    if straight < len(flips):
        # As one tall image: torch has a fast kernel to flip (H, W, C), but none for a batch.
        tall = cut[straight:].view(-1, *cut.shape[2:])
        tall.copy_(tall.flip(1))
    # argsort of a permutation is its inverse: back to the order of `rows`.
    return cut.index_select(0, torch.from_numpy(np.argsort(order)))


def _lines(
    pixels: NDArray[np.uint8], places: NDArray[np.int64], tops: NDArray[np.int32], size: int
) -> NDArray[np.uint8]:
    """Return `size` whole lines per sample, from its top on: (B, size, W, C), black outside."""
    _, height, width, channels = pixels.shape
    wanted = tops[:, None] + np.arange(size)
    inside = np.clip(wanted, 0, height - 1)
    # Line y of image n is row n * H + y of all lines (images * H, W, C).
    lines = pixels.reshape(-1, width, channels)
    picked: NDArray[np.uint8] = lines.take(places[:, None] * height + inside, axis=0, mode="clip")
    # Lines outside were clamped to the nearest line; overwrite them with black.
    picked[wanted != inside] = 0
    return picked


def _columns(lines: NDArray[np.uint8], lefts: NDArray[np.int32], size: int) -> NDArray[np.uint8]:
    """Return `size` columns per sample, from its left on: (B, size, size, C), black outside."""
    count, _, width, channels = lines.shape
    out = np.zeros((count, size, size, channels), np.uint8)
    # One copy per run of equal lefts, e.g. lefts [-1, -1, 2, 2, 2] need the slices 0:2 and 2:5.
    # Padding 4 gives at most 9 lefts, twice for the flips: 18 copies for a batch of any size.
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
    """Crop and resize some samples: (B, size, size, channels) uint8.

    Args:
        images: the split with the source pixels.
        rows: (B,) positions in `images`.
        parameters: parameters of these rows, in this order.
        size: height and width of the result in pixels.
        interpolation: filter of crops that are resized.
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
                f"sample {images.names[row]!r}: box {box} cannot be rendered ({error}); expected a box "
                "inside the image; run: pipeline prepare"
            ) from error
    # One by one: torch has a fast kernel to flip (H, W, C), but none for a batch.
    for place in np.flatnonzero(parameters.flips).tolist():
        out[place].copy_(out[place].flip(1))
    return out


def cut(image: Image, top: int, left: int, height: int, width: int) -> Image:
    """Return a box of an image, black outside; a view if the box lies inside."""
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
    # A copy: the slice may be of a read-only map, and the kernel would copy it anyway.
    source, out = (torch.from_numpy(a).permute(2, 0, 1)[None] for a in (image.copy(), target))
    # As in `interpolate`, but written straight into the result, which halves the time.
    KERNELS[interpolation].out(source, target.shape[:2], False, out=out)
