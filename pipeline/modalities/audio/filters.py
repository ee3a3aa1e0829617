"""Fixed-point low-pass filters, the same integers on every machine.

Made with +, -, *, / alone, each rounded as IEEE 754 says. A C library's `sin` may differ in the last bit
between machines, and a coefficient could then round to a different integer.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TAYLOR_TERMS, _BESSEL_TERMS = 13, 40
_BETA = 8.0  # of Kaiser's window: the stop band is 80 dB down


def sine(half_turns: Floats) -> Floats:
    """Return sin(pi x) by Taylor's series.

    >>> sine(np.array([0.0, 0.5, 1.5])).round(9).tolist()
    [0.0, 1.0, -1.0]
    """
    # Folded to a quarter turn either way, for which 13 terms leave no error above the last bit:
    #   x = 1.5: turned -0.5, folded -0.5; x = 0.9: turned 0.9, folded 0.1, as sin(0.9 pi) = sin(0.1 pi).
    turned = half_turns - 2 * np.rint(half_turns / 2)  # -1 to 1
    folded = np.where(np.abs(turned) > 0.5, np.copysign(1, turned) - turned, turned)
    angle = folded * np.pi
    square, total = angle * angle, np.ones_like(angle)
    for term in range(_TAYLOR_TERMS, 0, -1):
        total = 1 - square * total / (2 * term * (2 * term + 1))
    result: Floats = angle * total
    return result


def kaiser(places: Floats) -> Floats:
    """Return Kaiser's window of beta 8 at places from -1 to 1, and 0 outside of them.

    Source: Kaiser, "Nonrecursive digital filter design using the I0-sinh window function", ISCAS 1974.
    """
    inside = np.clip(1 - places * places, 0, None)
    window: Floats = _bessel(inside * (_BETA / 2) ** 2) / _bessel(np.array((_BETA / 2) ** 2))
    return np.where(np.abs(places) < 1, window, 0.0)


def _bessel(quarter_squares: Floats) -> Floats:
    """Return I0 of x by its power series, given (x / 2)^2."""
    total, term = np.ones_like(quarter_squares), np.ones_like(quarter_squares)
    for k in range(1, _BESSEL_TERMS):
        term = term * quarter_squares / (k * k)
        total = total + term
    return total


def lowpass(places: Floats, cutoff: float, half_width: float) -> Floats:
    """Return a windowed sinc.

    Args:
        places: distances from the centre in samples.
        cutoff: end of the pass band as a share of Nyquist's frequency, in (0, 1].
        half_width: distance in samples at which the window ends.
    """
    half_turns = places * cutoff
    safe = np.where(half_turns == 0, 1.0, half_turns)
    sinc = np.where(half_turns == 0, 1.0, sine(safe) / (np.pi * safe))
    return cutoff * sinc * kaiser(places / half_width)


def in_fixed_point(filters: Floats, bits: int) -> Ints:
    """Round filters (..., taps) to multiples of 2^-bits; each sums to exactly 2^bits.

    The largest tap takes up what rounding leaves over, so silence and a constant stay what they are.
    """
    # E.g. [0.3, 0.4, 0.3] and 3 bits: scaled [2.4, 3.2, 2.4], rounded [2, 3, 2]. The sum is 7, so the
    # largest tap becomes 4.
    scaled = filters / filters.sum(-1, keepdims=True) * (1 << bits)
    whole: Ints = np.rint(scaled).astype(np.int64)
    largest = np.abs(filters).argmax(-1)[..., None]
    missing = (1 << bits) - whole.sum(-1, keepdims=True)
    np.put_along_axis(whole, largest, np.take_along_axis(whole, largest, -1) + missing, -1)
    return whole


# Decibels and mels, which need powers of ten: by `decimal`, whose results do not depend on the machine.


@cache
def power_of_ten(numerator: int, denominator: int, scale: int) -> int:
    """Return 10^(numerator / denominator) * scale, rounded to an integer.

    >>> power_of_ten(-3, 10, 1000)
    501
    """
    with localcontext() as context:
        context.prec = 40
        return int((Decimal(10) ** (Decimal(numerator) / denominator) * scale).to_integral_value())


@cache
def mel_edges(rate: int, bands: int) -> tuple[float, ...]:
    """Return the ends of bands of equal width in mels, from 0 to 1, as shares of Nyquist's frequency.

    Args:
        rate: samples per second.
        bands: number of bands.

    Source: O'Shaughnessy, "Speech communication", 1987: m = 2595 log10(1 + f / 700).
    """
    with localcontext() as context:
        context.prec = 40
        nyquist = Decimal(rate) / 2
        highest = (1 + nyquist / 700).log10()
        edges = (700 * (Decimal(10) ** (highest * e / bands) - 1) / nyquist for e in range(bands + 1))
        return tuple(float(round(edge, 9)) for edge in edges)
