"""Comparing distributions: 4000 samples, and limits that chance exceeds once in a thousand times."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT = 4000
KEYS = np.random.default_rng(0).integers(0, 2**64, COUNT, np.uint64)

_NORMAL = 3.09  # 99.9 %


def differ(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two samples' distributions differ: Kolmogorov and Smirnov's two-sample test."""
    a, b = np.sort(a), np.sort(b)
    grid = np.concatenate([a, b])
    distance = np.abs(
        np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)
    )
    return bool(distance.max() > 1.95 * np.sqrt(1 / len(a) + 1 / len(b)))


def uneven(values: NDArray[Any], shares: NDArray[Any] | list[float]) -> bool:
    """Whether integers 0..K-1 do not occur in these shares (K,): the chi-square test."""
    counts = np.bincount(values.astype(np.int64), minlength=len(shares))
    expected = len(values) * np.asarray(shares)
    if len(counts) > len(expected) or counts[expected == 0].any():
        return True
    some = expected > 0
    statistic = ((counts[some] - expected[some]) ** 2 / expected[some]).sum()
    # Wilson and Hilferty's approximation of the quantile.
    spread = 2 / (9 * max(1, some.sum() - 1))
    return bool(statistic > 2 / 9 / spread * (1 - spread + _NORMAL * np.sqrt(spread)) ** 3)


def far_from(happens: NDArray[np.bool_], probability: float) -> bool:
    """Whether something does not happen as often as it should."""
    return uneven(happens, [1 - probability, probability])


def correlated(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two figures of the same samples go together."""
    return bool(abs(np.corrcoef(a, b)[0, 1]) > 3.3 / np.sqrt(len(a)))
