"""Shares of mixed samples: lambda of Mixup and CutMix in 256ths, from integer tables.

The tables are made with +, *, / and square roots only, so they are the same on every machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.core import random

Ints = NDArray[np.int64]

WHOLE = 256  # the share of an unmixed sample
_POWER_BITS = 48
_TERMS = 256


def beta_levels(alpha: float, words: random.Words) -> Ints:
    """Map 32-bit words to levels (N,), 0 to 256, distributed as Beta(alpha, alpha) in 256ths."""
    # Inverse transform sampling: a level is the number of table entries up to the word.
    return np.searchsorted(beta_table(alpha), words, side="right")


@cache
def beta_table(alpha: float) -> NDArray[np.uint64]:
    """Return the 256 thresholds between levels: P(lambda < (level + 1/2) / 256) * 2^32."""
    # E.g. alpha 1, uniform: 2^23, 3 * 2^23, ... Level 0 has half the width of level 1.
    # The series converges fast for x <= 1/2. The upper half is the mirrored lower half.
    ends = [(2 * level + 1) / (2 * WHOLE) for level in range(WHOLE // 2)]
    middle = _incomplete_beta(alpha, 0.5)
    lower = [round(_incomplete_beta(alpha, end) / middle * (1 << 31)) for end in ends]
    return np.array([*lower, *((1 << 32) - value for value in reversed(lower))], np.uint64)


def _incomplete_beta(alpha: float, x: float) -> float:
    """Integrate t^(alpha - 1) (1 - t)^(alpha - 1) from 0 to x <= 1/2 by its power series."""
    total, factor = 0.0, 1.0
    for n in range(_TERMS):
        total += factor / (alpha + n)
        factor *= (n + 1 - alpha) / (n + 1) * x
    return _power(x, alpha) * total


def _power(base: float, exponent: float) -> float:
    """Raise by square roots, one per exponent bit, because `pow` differs between machines."""
    whole = int(exponent)
    result, root, rest = 1.0, base, exponent - whole
    for _ in range(whole):
        result *= base
    # E.g. 2^1.25: a factor of 2, then bits .01 choose the second root, 2^(1/4).
    for _ in range(_POWER_BITS):
        root = float(np.sqrt(root))
        rest *= 2
        if rest >= 1:
            result, rest = result * root, rest - 1
    return result
