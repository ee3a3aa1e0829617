"""Operations on a model's pixels: their names, the unit of their strength, and the spaces they come from.

A strength is up to six integers: factors in 1024ths, thresholds and bits as they are, an affine map in all
six.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.views import affine

FACTOR = 1024  # a factor of 1; also one turn of the colour circle
OPERANDS = 6
Operands = NDArray[np.int32]


class Op(IntEnum):
    """What is done to a sample in one step, and what its first operand is."""

    NOTHING = 0
    BRIGHTNESS = 1  # factor
    CONTRAST = 2  # factor
    SATURATION = 3  # factor; 0 is grey
    HUE = 4  # shift
    SHARPNESS = 5  # factor
    POSTERIZE = 6  # bits that are kept
    SOLARIZE = 7  # threshold
    AUTOCONTRAST = 8
    EQUALIZE = 9
    AFFINE = 10  # a map of six


@dataclass(frozen=True, slots=True)
class Space:
    """Operations of which one is drawn, each at every magnitude and with both signs.

    Args:
        ops: (K,) uint8.
        operands: (K, magnitudes, 2, 6) int32; the second sign is the negative one.
    """

    ops: NDArray[np.uint8]
    operands: Operands


def operand(value: NDArray[np.int64] | int, count: int) -> Operands:
    """Return operands (N, 6) of one number a sample."""
    result = np.zeros((count, OPERANDS), np.int32)
    result[:, 0] = value
    return result


@cache
def rand_augment_space() -> Space:
    """Return RandAugment's operations over 31 magnitudes, in torchvision's ranges."""
    return _space(31, shear=0.3, shift=150 / 331, degrees=30, factor=0.9, lost_bits=4)


@cache
def wide_space(magnitudes: int) -> Space:
    """Return TrivialAugment's wide space; shifts are a seventh of the side, 32 pixels of 224."""
    return _space(magnitudes, shear=0.99, shift=1 / 7, degrees=135, factor=0.99, lost_bits=6)


def _space(
    magnitudes: int, *, shear: float, shift: float, degrees: int, factor: float, lost_bits: int
) -> Space:
    """Tabulate the fourteen operations; magnitude m of M is m / (M - 1) of the range."""
    part = np.arange(magnitudes) / (magnitudes - 1)
    signs = np.array([1, -1])
    signed = part[:, None] * signs
    none = np.zeros_like(signed)
    degrees_drawn = np.floor(np.abs(signed) * degrees * affine.DEGREE + 0.5).astype(np.int64) * signs
    factors = np.floor((1 + signed * factor) * FACTOR + 0.5).astype(np.int64)
    bits = 8 - np.rint(part * lost_bits).astype(np.int64)[:, None] * np.abs(signs)
    last = magnitudes - 1
    # Upwards, and in integers: a float's last bit would move some of them by one.
    thresholds = -((np.arange(magnitudes) - last) * 255 // last)[:, None] * np.abs(signs)
    table = [
        (Op.NOTHING, _first(none)),
        (Op.AFFINE, _sheared(signed * shear, horizontal=True)),
        (Op.AFFINE, _sheared(signed * shear, horizontal=False)),
        (Op.AFFINE, affine.matrix(none.astype(np.int64), signed * shift, none)),
        (Op.AFFINE, affine.matrix(none.astype(np.int64), none, signed * shift)),
        # Torchvision's `rotate` turns the other way round than its `affine`.
        (Op.AFFINE, affine.matrix(-degrees_drawn, none, none)),
        (Op.BRIGHTNESS, _first(factors)),
        (Op.SATURATION, _first(factors)),
        (Op.CONTRAST, _first(factors)),
        (Op.SHARPNESS, _first(factors)),
        (Op.POSTERIZE, _first(bits)),
        (Op.SOLARIZE, _first(thresholds)),
        (Op.AUTOCONTRAST, _first(none)),
        (Op.EQUALIZE, _first(none)),
    ]
    return Space(np.array([op for op, _ in table], np.uint8), np.stack([values for _, values in table]))


def _first(values: NDArray[np.float64] | NDArray[np.int64]) -> Operands:
    result = np.zeros((*values.shape, OPERANDS), np.int32)
    result[..., 0] = values
    return result


def _sheared(tangents: NDArray[np.float64], *, horizontal: bool) -> Operands:
    """Shear about the top left corner, as AutoAugment's operations do; the tangent is the magnitude."""
    rows = np.zeros((*tangents.shape, OPERANDS))
    rows[..., 0] = rows[..., 3] = 1
    # From the corner instead of the centre: half a side of the other axis is added.
    rows[..., 1 if horizontal else 2] = tangents
    rows[..., 4 if horizontal else 5] = tangents / 2
    return affine.encode(rows)
