"""Where a view looks: crop boxes and flips drawn from a spec, and affine maps in integers.

Boxes are integers, decided by integer arithmetic and by +, *, / and sqrt of IEEE doubles alone: exp and log
differ in the last bit between machines, these do not.

An affine map says which source point each pixel of an image shows. It is six integers in units of 2^-24:
the 2x2 matrix from an output point to its source point, both measured from the image's centre, and the
shift in sides of the image. The same map serves any resolution.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.random import Draws, Lane
from pipeline.modalities.images.augmentations import Bounds, PadCrop, RandomErasing
from pipeline.modalities.images.spec import ViewSpec

Ints = NDArray[np.int64]

# Boxes on a model's own image are in these parts of its side, whatever its resolution.
UNIT = 1 << 16

_ATTEMPTS = 10
_RATIO_BITS = 16
_WORD = float(1 << 32)
UNIT_BITS = 24
DEGREE = 16  # angles are in sixteenths of a degree
_TABLE_UNIT = 1 << 30
_QUARTER = 90 * DEGREE
SINES: Ints = np.array(
    [round(math.sin(math.radians(step / DEGREE)) * _TABLE_UNIT) for step in range(_QUARTER + 1)], np.int64
)
Reals = NDArray[np.float64]


def crop_boxes(spec: ViewSpec, draws: Draws, shapes: NDArray[np.int32]) -> Ints:
    """Return the crop of each sample: (N, 4) top, left, height, width in source pixels.

    Args:
        spec: what may be drawn.
        draws: of the samples.
        shapes: (N, 2) heights and widths of the source images.
    """
    heights, widths = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    if spec.random_resized_crop is not None:
        crop = spec.random_resized_crop
        boxes, found = _random_boxes(draws, Lane.CROP, (heights, widths), crop.scale, crop.ratio)
        boxes[~found] = _fallback_boxes(crop.ratio, heights[~found], widths[~found])
        return boxes
    boxes = centre_boxes(heights, widths, 1.0)
    if spec.pad_crop is not None:
        boxes[:, :2] += _shifts(spec.pad_crop, draws)
    return boxes


def centre_boxes(heights: Ints, widths: Ints, fraction: float) -> Ints:
    """Return the centred squares (N, 4) of a share of the short side."""
    side = np.maximum(1, rounded(np.minimum(heights, widths) * fraction))
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def erased_boxes(erasing: RandomErasing, draws: Draws) -> Ints:
    """Return what is painted over of each sample: (N, 4) in units of the side; empty for nothing."""
    sides = np.full(len(draws), UNIT)
    low, high = erasing.ratio
    # Given as height / width; a box is drawn by width / height.
    ratio = 1 / high, 1 / low
    boxes, found = _random_boxes(draws, Lane.RANDOM_ERASING + 1, (sides, sides), erasing.scale, ratio)
    chosen = random.chance(draws.words(Lane.RANDOM_ERASING)[0], erasing.probability)
    boxes[~(found & chosen)] = 0
    return boxes


def flips(spec: ViewSpec, draws: Draws) -> NDArray[np.bool_]:
    """Return which samples (N,) are mirrored."""
    if spec.flip == "none":
        return np.zeros(len(draws), np.bool_)
    drawn = draws if spec.flip == "random" else Draws(draws.seed, 0, draws.keys)
    parity = draws.view & 1 if spec.flip == "alternating" else 0
    mirrored: NDArray[np.bool_] = (drawn.words(Lane.FLIP)[0] >> np.uint64(31)) != parity
    return mirrored


def rounded(values: NDArray[np.floating[Any]]) -> Ints:
    """Return the nearest integers; halves go up."""
    result: Ints = np.floor(values + 0.5).astype(np.int64)
    return result


def _shifts(crop: PadCrop, draws: Draws) -> Ints:
    words = draws.words(Lane.CROP)
    return random.between(words[:2], -crop.padding, crop.padding).T


def _random_boxes(
    draws: Draws, lane: int, sides: tuple[Ints, Ints], scale: Bounds, ratio: Bounds
) -> tuple[Ints, NDArray[np.bool_]]:
    """Return boxes (N, 4) of random area and width / height, and for which samples (N,) one was found."""
    heights, widths = sides
    boxes = np.zeros((len(draws), 4), np.int64)
    found = np.zeros(len(draws), np.bool_)
    low, high = scale
    for attempt in range(_ATTEMPTS):
        rows = np.flatnonzero(~found)
        if not len(rows):
            break
        words = Draws(draws.seed, draws.view, draws.keys[rows]).words(lane + attempt)
        tall, wide = heights[rows], widths[rows]
        area = (tall * wide) * (low + (high - low) * (words[0] / _WORD))
        aspect = _log_uniform(ratio, words[1])
        box_h, box_w = rounded(np.sqrt(area / aspect)), rounded(np.sqrt(area * aspect))
        fits = (box_h > 0) & (box_h <= tall) & (box_w > 0) & (box_w <= wide)
        box_h, box_w = box_h[fits], box_w[fits]
        top = random.below(words[2, fits], (tall[fits] - box_h + 1).astype(np.uint64))
        left = random.below(words[3, fits], (wide[fits] - box_w + 1).astype(np.uint64))
        boxes[rows[fits]] = np.stack([top.astype(np.int64), left.astype(np.int64), box_h, box_w], axis=1)
        found[rows[fits]] = True
    return boxes, found


def _fallback_boxes(ratio: Bounds, heights: Ints, widths: Ints) -> Ints:
    """The centred box of the nearest allowed aspect ratio, for images where no attempt fits."""
    low, high = ratio
    box_h = np.clip(rounded(widths / low), 1, heights)
    box_w = np.clip(rounded(heights * high), 1, widths)
    return np.stack([(heights - box_h) // 2, (widths - box_w) // 2, box_h, box_w], axis=1)


def _log_uniform(bounds: Bounds, words: random.Words) -> NDArray[np.float64]:
    """Low * (high / low)^u for u on a grid of 2^-16, by repeated square roots instead of exp."""
    low, high = bounds
    result = np.full(words.shape, low)
    factor = np.float64(high / low)
    for bit in range(_RATIO_BITS):
        factor = np.sqrt(factor)
        chosen = (words >> np.uint64(31 - bit)) & np.uint64(1)
        result = np.where(chosen == 1, result * factor, result)
    return result


def sine(angles: NDArray[Any]) -> Reals:
    """Return the sine of angles in sixteenths of a degree, the same on any machine.

    From a table of integers, since the last bit of the function differs between machines; no entry is
    nearer to a rounding boundary than a hundred times that difference (a test looks).
    """
    around = np.mod(angles, 4 * _QUARTER)
    half, rest = np.divmod(around, 2 * _QUARTER)
    values = SINES[np.where(rest > _QUARTER, 2 * _QUARTER - rest, rest)]
    signed: Reals = np.where(half == 1, -values, values) / _TABLE_UNIT
    return signed


def cosine(angles: NDArray[Any]) -> Reals:
    """Return the cosine of angles in sixteenths of a degree, the same on any machine."""
    return sine(np.asarray(angles) + _QUARTER)


def matrix(
    angle: Ints,
    shift_x: Reals,
    shift_y: Reals,
    scale: Reals | float = 1.0,
    shear_x: Ints | int = 0,
    shear_y: Ints | int = 0,
) -> NDArray[np.int32]:
    """Return maps (N, 6) that rotate, scale, shear and then shift an image, about its centre.

    Args:
        angle: (N,) clockwise, in sixteenths of a degree.
        shift_x, shift_y: (N,) to the right and down, in sides.
        scale: (N,) factor.
        shear_x, shear_y: (N,) in sixteenths of a degree.

    Torchvision's `affine`: rotation times scale times shear of y times shear of x, inverted.
    """
    tan_x = sine(np.asarray(shear_x)) / cosine(np.asarray(shear_x))
    cos_y = cosine(np.asarray(shear_y))
    a, c = cosine(angle - shear_y) / cos_y, sine(angle - shear_y) / cos_y
    b, d = -(a * tan_x + sine(angle)), cosine(angle) - c * tan_x
    rows = np.stack([d / scale, -b / scale, -c / scale, a / scale], axis=-1)
    back_x = -(rows[..., 0] * shift_x + rows[..., 1] * shift_y)
    back_y = -(rows[..., 2] * shift_x + rows[..., 3] * shift_y)
    return encode(np.concatenate([rows, back_x[..., None], back_y[..., None]], axis=-1))


def encode(values: Reals) -> NDArray[np.int32]:
    """Return maps (..., 6) in integers."""
    return rounded(values * (1 << UNIT_BITS)).astype(np.int32)
