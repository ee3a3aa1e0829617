"""Training batches: images and, where there is a store, the teacher's logits of the very same views.

Zips a `Feed` and a `Targets`, ahead of need. What an epoch holds, and in which order, is a pure
function of (seed, epoch, samples), so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.feed import Feed
from pipeline.rng import permutation
from pipeline.targets import Targets
from pipeline.views.parameters import LANE_ORDER


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples, on the device.

    Args:
        images: (B, channels, S, S) float32, normalised, channels-last in memory.
        labels: (B,) int64, -1 for unlabelled.
        teacher_logits: (B, C) float32 of these views, or None without a store.
        rows: (B,) positions in the split, on the CPU.

    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    rows: NDArray[np.int64]


class Loader:
    """Epochs of batches over one split.

    Epoch e shows view e mod V of a store's V views, or view e where there is no store. The last,
    smaller batch is left out, unless it is the only one.

    Args:
        feed: the images, with views.
        targets: the teacher's logits of the same views, or None.
        batch_size: images a step.
        seed: of the order, 64-bit unsigned.

    """

    def __init__(self, feed: Feed, targets: Targets | None, *, batch_size: int, seed: int) -> None:
        self._feed, self._targets, self._seed = feed, targets, seed
        count = len(feed.images)
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self._labels = torch.from_numpy(feed.images.labels).to(feed.device)

    def view(self, epoch: int) -> int:
        """Return which view an epoch shows."""
        return epoch if self._targets is None else epoch % self._targets.n_views

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch; the next view's logits are read meanwhile."""
        view = self.view(epoch)
        labels = None
        if self._targets is not None:
            labels = self._targets.load(view)
            self._targets.prefetch(self.view(epoch + 1))
        batches = self._order(epoch)
        for rows, images in zip(batches, self._feed.batches(view, batches), strict=True):
            on_device = torch.from_numpy(rows).to(self._feed.device)
            teacher = None if labels is None else labels.logits(on_device)
            yield Batch(images, self._labels[on_device], teacher, rows)

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        keys = self._feed.images.keys
        order = permutation(seed=self._seed, epoch=epoch, keys=keys, lane=LANE_ORDER)
        used = order[: self.steps_per_epoch * self.batch_size]
        return list(used.reshape(self.steps_per_epoch, self.batch_size))
