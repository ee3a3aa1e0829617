"""Training batches: images and, where there is a store, the teacher's logits of the very same views.

Zips a `Feed` and a `Targets`, ahead of need. What an epoch holds, and in which order, is a pure
function of (seed, epoch, samples), so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.feed import Feed
from pipeline.labels import mixed_labels
from pipeline.rendering.transfer import to_device
from pipeline.rng import Lane, permutation
from pipeline.targets import Targets
from pipeline.views.mixing import require_whole_groups

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples, on the device.

    Args:
        images: (B, channels, S, S) float32, normalised, channels-last in memory.
        labels: (B,) int64, -1 for unlabelled; (B, C) float32, shares of the classes, where views mix.
        teacher_logits: (B, C) float32 of these views, or None without a store.
        rows: (B,) positions in the split, on the CPU.

    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    rows: NDArray[np.int64]

    def split(self, parts: int) -> list[Batch]:
        """Return the batch in so many parts of nearly equal size."""
        if parts == 1:
            return [self]
        ends = [len(self.rows) * part // parts for part in range(parts + 1)]
        return [self._part(slice(*bounds)) for bounds in pairwise(ends)]

    def _part(self, some: slice) -> Batch:
        teacher = None if self.teacher_logits is None else self.teacher_logits[some]
        return Batch(self.images[some], self.labels[some], teacher, self.rows[some])


class Loader:
    """Epochs of batches over one split.

    Epoch e shows view e mod V of a store's V views, or view e where there is no store. The last,
    smaller batch is left out, unless it is the only one. Where views mix, an epoch shuffles whole groups of
    images that are mixed with each other, so that each is rendered once.

    Args:
        feed: the images, with views.
        targets: the teacher's logits of the same views, or None.
        batch_size: images a step; a multiple of the group where views mix.
        seed: of the order, 64-bit unsigned.
        n_classes: C, needed where views mix.

    Raises:
        ConfigError: views mix, and the batch is not of whole groups or `n_classes` is missing.
    """

    def __init__(
        self,
        feed: Feed,
        targets: Targets | None,
        *,
        batch_size: int,
        seed: int,
        n_classes: int | None = None,
    ) -> None:
        if feed.pairing is not None:
            require_whole_groups(batch_size)
            if n_classes is None:
                raise ConfigError("the views mix images and n_classes is None; expected their number")
        self._feed, self._targets, self._seed, self._n_classes = feed, targets, seed, n_classes
        count = len(feed.images)
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self._labels = torch.from_numpy(feed.images.labels).to(feed.device)

    def view(self, epoch: int) -> int:
        """Return which view an epoch shows."""
        return epoch if self._targets is None else epoch % self._targets.n_views

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from a step on; the next view's logits are read meanwhile."""
        view = self.view(epoch)
        labels = None
        if self._targets is not None:
            labels = self._targets.load(view)
            self._targets.prefetch(self.view(epoch + 1))
        batches = self._order(epoch)[first_step:]
        there = to_device(np.array(batches), self._feed.device)
        for soon in (view, self.view(epoch + 1)):
            self._feed.prefetch(soon)
        images = self._feed.batches(view, batches)
        for rows, on_device, seen in zip(batches, there, images, strict=True):
            teacher = None if labels is None else labels.logits(on_device)
            yield Batch(seen, self._hard_labels(view, rows, on_device), teacher, rows)

    def _hard_labels(self, view: int, rows: Rows, on_device: Tensor) -> Tensor:
        own, mixture = self._labels[on_device], self._feed.shares(view, rows)
        if mixture is None or self._n_classes is None:
            return own
        partners, shares = (to_device(values, own.device) for values in mixture)
        return mixed_labels(own, self._labels[partners], shares.float(), self._n_classes)

    def _order(self, epoch: int) -> list[Rows]:
        order = self._shuffled(epoch)
        used = order[: self.steps_per_epoch * self.batch_size]
        return list(used.reshape(self.steps_per_epoch, self.batch_size))

    def _shuffled(self, epoch: int) -> Rows:
        """Return the samples of an epoch.

        Where views mix, whole groups come first, so that batches cut none, and behind them the odd ones,
        which are never among the samples that are left out.
        """
        keys, pairing = self._feed.images.keys, self._feed.pairing
        if pairing is None:
            return self._permutation(epoch, keys)
        groups, odd = pairing.groups(self.view(epoch))
        shuffled = groups[self._permutation(epoch, keys[groups[:, 0]])].ravel()
        first = np.array([group[0] for group in odd], np.int64)
        last = [odd[place] for place in self._permutation(epoch, keys[first]).tolist()]
        room = self.steps_per_epoch * self.batch_size - sum(map(len, odd))
        return np.concatenate([shuffled[: max(0, room)], *last])

    def _permutation(self, epoch: int, keys: NDArray[np.uint64]) -> Rows:
        return permutation(seed=self._seed, epoch=epoch, keys=keys, lane=Lane.ORDER)
