"""The watch over a shard: picks its witnesses from its batches, as the teacher is given them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.store.records import Witness

Rows = NDArray[np.int64]


class Watch:
    """Picks on the device, and keeps on the host.

    Args:
        places: (W,) where each witness is among the shard's rendered rows.
        device: where batches are.
    """

    def __init__(self, places: Rows, device: torch.device) -> None:
        self._order = np.argsort(places)
        self._places = places[self._order]
        self._there = to_device(self._places, device)
        self._first = 0
        self._kept: list[NDArray[np.uint8]] = []

    def pick(self, pixels: Tensor) -> Tensor:
        """Return the witnesses (w, S, S, channels) among the next batch (B, S, S, channels) uint8."""
        ends = self._first, self._first + len(pixels)
        start, stop = np.searchsorted(self._places, ends).tolist()
        chosen = pixels.index_select(0, self._there[start:stop] - self._first)
        self._first += len(pixels)
        return chosen

    def keep(self, chosen: NDArray[Any]) -> None:
        """Take what was picked, in the same order."""
        self._kept.append(chosen.copy())

    def witness(self) -> Witness:
        """Return what was seen, in the order of the shard's rows."""
        return Witness.of(np.concatenate(self._kept)[np.argsort(self._order)])
