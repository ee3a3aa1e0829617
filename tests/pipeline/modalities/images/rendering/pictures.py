"""Small images to try operations on: noise, slopes, single values and few values."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def pictures(size: int, channels: int) -> Tensor:
    """Return images (n, S, S, C) uint8, the same for every test: not to be written to."""
    rng = np.random.default_rng(100 * size + channels)
    shape = (size, size, channels)
    y, x = np.mgrid[:size, :size] / max(1, size - 1)
    slope = np.stack([x, y, (x + y) / 2], axis=2)[..., :channels]
    images = [
        *(rng.integers(0, 256, shape) for _ in range(3)),
        slope * 255,
        90 + slope * 60,
        *(np.full(shape, value) for value in (0, 1, 128, 255)),
        np.broadcast_to([200, 100, 50][:channels], shape),
        120 + rng.integers(0, 3, shape),  # nearly grey
        255 * rng.integers(0, 2, shape),  # corners of the cube of colours
        rng.choice([3, 250, 251], shape),
    ]
    return torch.from_numpy(np.stack([np.asarray(image).astype(np.uint8) for image in images]))
