"""Affine maps in integers: which source point each pixel of an image shows.

A map is six integers in units of 2^-24: the 2x2 matrix from an output point to its source point, both
measured from the image's centre, and the shift in sides of the image. The same map serves any resolution.

Sine comes from a table of integers, since the last bit of the function differs between machines; no entry
is nearer to a rounding boundary than a hundred times that difference (a test looks).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.views.boxes import Ints, rounded

UNIT_BITS = 24
DEGREE = 16  # angles are in sixteenths of a degree

_TABLE_UNIT = 1 << 30
_QUARTER = 90 * DEGREE
SINES: Ints = np.array(
    [round(math.sin(math.radians(step / DEGREE)) * _TABLE_UNIT) for step in range(_QUARTER + 1)], np.int64
)

Reals = NDArray[np.float64]


def sine(angles: NDArray[Any]) -> Reals:
    """Return the sine of angles in sixteenths of a degree, the same on any machine."""
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
