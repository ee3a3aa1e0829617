"""Mean and deviation of pixels, from exact integer counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.hashing import bytes_glance

_LEVELS = 256
# Of a constant channel, so that it can be divided by.
_LEAST_STD = 1e-3


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """How often each level occurs in some images, channel by channel; they can be added and taken away.

    Args:
        counts: (C, 256) int64.
    """

    counts: NDArray[np.int64]

    @classmethod
    def none(cls, channels: int) -> Moments:
        """Return the counts of no image."""
        return cls(np.zeros((channels, _LEVELS), np.int64))

    @classmethod
    def of(cls, image_HWC: NDArray[np.uint8]) -> Moments:
        """Count the levels of one image."""
        # torch's bincount runs beside other threads, numpy's does not. A copy: images may be read-only.
        channels = (torch.from_numpy(image_HWC[..., c].flatten()) for c in range(image_HWC.shape[2]))
        return cls(np.stack([torch.bincount(c, minlength=_LEVELS).numpy() for c in channels]))

    def glance(self) -> int:
        """Return a 64-bit digest of the counts; equal images have equal ones, others hardly ever."""
        return bytes_glance(self.counts.view(np.uint8))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.counts - other.counts)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return both of pixels scaled to 0..1, rounded to six digits."""
        values = np.arange(_LEVELS) / (_LEVELS - 1)
        total = self.counts.sum(1)
        mean = self.counts @ values / total
        variance = self.counts @ values**2 / total - mean**2
        std = np.sqrt(np.maximum(variance, 0))
        return [round(float(m), 6) for m in mean], [max(round(float(s), 6), _LEAST_STD) for s in std]
