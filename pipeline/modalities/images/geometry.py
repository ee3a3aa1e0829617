"""Crop boxes, flips and affine maps: the geometry of a view, in integers.

Boxes use only integer arithmetic and +, *, / and sqrt of IEEE doubles. These agree between machines; exp
and log differ in the last bit.

An affine map gives the source point of each output pixel. It has six integers in units of 2^-24: a 2x2
matrix and a shift. Points are measured from the image's centre, the shift in sides of the image, so a map
serves any resolution. E.g. a shift to the right by a quarter of the side is (2^24, 0, 0, 2^24, -2^22, 0).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random
from pipeline.core.random import Draws, Lane
from pipeline.modalities.images.augmentations import PadCrop, RandomErasing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.views.operations import Bounds

Ints = NDArray[np.int64]

# Units per side for boxes on the model's image: independent of its resolution.
UNIT = 1 << 16

_ATTEMPTS = 10
_RATIO_BITS = 16
_WORD = float(1 << 32)
UNIT_BITS = 24
DEGREE = 16  # angles are in sixteenths of a degree
# E.g. SINES[480], the sine of 30 degrees, is 2^29.
_TABLE_UNIT = 1 << 30
_QUARTER = 90 * DEGREE
SINES: Ints = np.array(
    [round(math.sin(math.radians(step / DEGREE)) * _TABLE_UNIT) for step in range(_QUARTER + 1)], np.int64
)
Reals = NDArray[np.float64]


def crop_boxes(spec: ViewSpec, draws: Draws, shapes: NDArray[np.int32]) -> Ints:
    """Return the crop of each sample: (N, 4) top, left, height, width in source pixels.

    Args:
        spec: the operations and their ranges.
        draws: random draws of the N samples.
        shapes: (N, 2) heights and widths of the source images.
    """
    heights, widths = shapes[:, 0].astype(np.int64), shapes[:, 1].astype(np.int64)
    if spec.random_resized_crop is not None:
        crop = spec.random_resized_crop
        # Some ratios fit no image, e.g. a wide crop of a tall image: these rows get a fixed box.
        boxes, found = _random_boxes(draws, Lane.CROP, (heights, widths), crop.scale, crop.ratio)
        boxes[~found] = _fallback_boxes(crop.ratio, heights[~found], widths[~found])
        return boxes
    boxes = centre_boxes(heights, widths, 1.0)
    if spec.pad_crop is not None:
        boxes[:, :2] += _shifts(spec.pad_crop, draws)
    return boxes


def centre_boxes(heights: Ints, widths: Ints, fraction: float) -> Ints:
    """Return centred squares (N, 4) whose side is a fraction of the short side."""
    side = np.maximum(1, rounded(np.minimum(heights, widths) * fraction))
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def erased_boxes(erasing: RandomErasing, draws: Draws) -> Ints:
    """Return the erased box of each sample: (N, 4) in units of the side; all 0 for none."""
    sides = np.full(len(draws), UNIT)
    low, high = erasing.ratio
    # The setting is height / width; `_random_boxes` takes width / height.
    ratio = 1 / high, 1 / low
    boxes, found = _random_boxes(draws, Lane.RANDOM_ERASING + 1, (sides, sides), erasing.scale, ratio)
    chosen = random.chance(draws.words(Lane.RANDOM_ERASING)[0], erasing.probability)
    boxes[~(found & chosen)] = 0
    return boxes


def flips(spec: ViewSpec, draws: Draws) -> NDArray[np.bool_]:
    """Return whether each sample (N,) is mirrored."""
    if spec.flip == "none":
        return np.zeros(len(draws), np.bool_)
    # alternating: view 0's random bit for all views, inverted in odd views.
    drawn = draws if spec.flip == "random" else Draws(draws.seed, 0, draws.keys)
    parity = draws.view & 1 if spec.flip == "alternating" else 0
    mirrored: NDArray[np.bool_] = (drawn.words(Lane.FLIP)[0] >> np.uint64(31)) != parity
    return mirrored


def rounded(values: NDArray[np.floating[Any]]) -> Ints:
    """Round to the nearest integer, halves upwards."""
    result: Ints = np.floor(values + 0.5).astype(np.int64)
    return result


def _shifts(crop: PadCrop, draws: Draws) -> Ints:
    words = draws.words(Lane.CROP)
    return random.between(words[:2], -crop.padding, crop.padding).T


def _random_boxes(
    draws: Draws, lane: int, sides: tuple[Ints, Ints], scale: Bounds, ratio: Bounds
) -> tuple[Ints, NDArray[np.bool_]]:
    """Return random boxes (N, 4), and whether a box was found for each sample (N,)."""
    heights, widths = sides
    boxes = np.zeros((len(draws), 4), np.int64)
    found = np.zeros(len(draws), np.bool_)
    low, high = scale
    # Rejection sampling for all rows at once. Attempt k reads lane + k of a row's own key, so a row's box
    # is the same in any batch.
    for attempt in range(_ATTEMPTS):
        rows = np.flatnonzero(~found)
        if not len(rows):
            break
        # (4, n): area, aspect ratio, top, left.
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
    """Return centred boxes of the nearest allowed aspect ratio, for rows without a random box."""
    low, high = ratio
    box_h = np.clip(rounded(widths / low), 1, heights)
    box_w = np.clip(rounded(heights * high), 1, widths)
    return np.stack([(heights - box_h) // 2, (widths - box_w) // 2, box_h, box_w], axis=1)


def _log_uniform(bounds: Bounds, words: random.Words) -> NDArray[np.float64]:
    """Return low * (high / low)^u for u on a grid of 2^-16, with square roots instead of exp."""
    low, high = bounds
    result = np.full(words.shape, low)
    factor = np.float64(high / low)
    # Bit k of u, from the top, multiplies by (high / low)^(2^-k).
    # E.g. bounds (0.5, 2): u = 0.1 binary takes the first root, 2, which gives 0.5 * 2 = 1.
    for bit in range(_RATIO_BITS):
        factor = np.sqrt(factor)
        chosen = (words >> np.uint64(31 - bit)) & np.uint64(1)
        result = np.where(chosen == 1, result * factor, result)
    return result


def sine(angles: NDArray[Any]) -> Reals:
    """Return the sine of angles in sixteenths of a degree, the same on any machine.

    The table is in integers because `sin` differs in the last bit between machines. No entry is closer to a
    rounding boundary than a hundred times that difference (tested).
    """
    # A quarter circle suffices: mirror at 90 degrees, change the sign above 180.
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
        shift_x, shift_y: (N,) to the right and down, as a share of the side.
        scale: (N,) factor.
        shear_x, shear_y: (N,) in sixteenths of a degree.

    Source: torchvision's `affine`, the inverse of rotation * scale * shear of y * shear of x.
    """
    # (a b; c d) is the forward matrix at scale 1, of determinant 1. Its inverse is (d -b; -c a).
    tan_x = sine(np.asarray(shear_x)) / cosine(np.asarray(shear_x))
    cos_y = cosine(np.asarray(shear_y))
    a, c = cosine(angle - shear_y) / cos_y, sine(angle - shear_y) / cos_y
    b, d = -(a * tan_x + sine(angle)), cosine(angle) - c * tan_x
    rows = np.stack([d / scale, -b / scale, -c / scale, a / scale], axis=-1)
    # The source point of an output point p is inverse * (p - shift).
    back_x = -(rows[..., 0] * shift_x + rows[..., 1] * shift_y)
    back_y = -(rows[..., 2] * shift_x + rows[..., 3] * shift_y)
    return encode(np.concatenate([rows, back_x[..., None], back_y[..., None]], axis=-1))


def encode(values: Reals) -> NDArray[np.int32]:
    """Round maps (..., 6) to units of 2^-24."""
    return rounded(values * (1 << UNIT_BITS)).astype(np.int32)
