"""Positions of samples, a type that many modules share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Positions of samples in a split, or of rows in a store: (n,) int64.
Rows = NDArray[np.int64]


def spread(available: int, count: int) -> Rows:
    """Return up to `count` of the positions 0 to `available` - 1, evenly spaced, in order."""
    return np.linspace(0, available - 1, min(available, count)).round().astype(np.int64)


def ranges(lengths: Rows) -> Rows:
    """Return 0..n-1 for each length n, one after the other: [2, 3] gives [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - lengths, lengths)
