"""Training batches: images and, where there is a store, the teacher's logits of the very same views.

Zips a `Feed` and a `Targets`, ahead of need. What an epoch holds, and in which order, is a pure
function of (seed, epoch, samples), so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import ConfigError
from pipeline.core.random import Lane, permutation
from pipeline.loading.feed import Feed
from pipeline.loading.targets import FeatureSource, Labels, Targets, TeacherFeatures
from pipeline.loading.training_set import TrainingSet
from pipeline.losses import FeatureNeeds
from pipeline.views.pairing import require_whole_groups


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's samples, or a part of them, on the device.

    Args:
        images: (b, channels, S, S) float32, normalised, channels-last in memory: all B of them, or where
            several processes share a step this one's.
        labels: (B,) int64, -1 for unlabelled; (B, C) float32, shares of the classes, where views mix.
        teacher_logits: (B, C) float32 of these views, or None without a store.
        rows: (B,) positions in the split, on the CPU.
        own: which b of them `images` are.
        teacher_features: what the teacher made of these views before its last layer, where they are asked
            for.

    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    rows: NDArray[np.int64]
    own: slice
    teacher_features: TeacherFeatures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How the images of a step are divided.

    Args:
        parts: in how many batches they come, one after the other.
        ranks: this process among those that share each batch.
    """

    parts: int = 1
    ranks: Ranks = SINGLE

    def require_enough(self, count: int, unit: int) -> None:
        """Refuse a split of too few images.

        Args:
            count: images of the split.
            unit: images that stay together.

        Raises:
            ConfigError: some part of a step, in some process, would have none.
        """
        if count < self._least(unit):
            raise ConfigError(
                f"there are {count} images to train on, and a step in {self.parts} parts is shared by "
                f"{self.ranks.count} processes, {unit} images that stay together each; expected at least "
                f"{self._least(unit)}; add images or labels, or lower accumulate or the number of processes"
            )

    def cuts(self, batch_size: int, unit: int) -> list[tuple[slice, slice]]:
        """Return which rows of a step each part is of, and which of a part's rows are this process's.

        The parts do not depend on the number of processes.

        Args:
            batch_size: images of a step.
            unit: images that stay together.

        Raises:
            ConfigError: some part, in some process, would have none.
        """
        cuts = [Ranks(part, self.parts).share(batch_size, unit) for part in range(self.parts)]
        sizes = [part.stop - part.start for part in cuts]
        if min(sizes) < self.ranks.count * unit:
            raise ConfigError(
                f"a step of {batch_size} images in {self.parts} parts is shared by {self.ranks.count} "
                f"processes; expected at least {self._least(unit)} images; raise batch_size, or lower "
                "accumulate or the number of processes"
            )
        return [(part, self.ranks.share(size, unit)) for part, size in zip(cuts, sizes, strict=True)]

    def _least(self, unit: int) -> int:
        return self.parts * self.ranks.count * unit


WHOLE = Division()


class Loader:
    """Epochs of batches over one split.

    Lap n over the split shows view n mod V of a store's V views, or view n where there is no store. The
    last, smaller batch of a lap is left out, unless it is the only one. An epoch is a lap, or, where it is
    told to be longer, the next so many steps of all laps one after the other. Where views mix, a lap
    shuffles whole groups of images that are mixed with each other, so that each is rendered once.

    Args:
        feed: the images, with views.
        targets: the teacher's logits of the same views, or None.
        batch_size: images a step; a multiple of the group where views mix.
        seed: of the order, 64-bit unsigned.
        n_classes: C, needed where views mix.
        training_set: of the feed's images, with the labels that students are given and the length of an
            epoch; None for the images' own labels and one lap.
        features: what a loss needs of the teacher's features; None for none.
        division: how a step is divided; whole, in this process alone, unless one says otherwise.

    Raises:
        ConfigError: views mix, and the batch is not of whole groups or `n_classes` is missing; a step has
            fewer images than parts and processes; or there are no features of the teacher.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from pipeline import Feed, Loader, LogitStore, PreparedData, Targets
        >>> from pipeline.modalities.table import preprocessing_of, views_of
        >>> store = LogitStore.open("data/logits/main.zarr")
        >>> images, device = PreparedData.open(Path("data/prepared")).train, torch.device("cpu")
        >>> feed = Feed(images, views_of(store), preprocessing_of(store), device=device)
        >>> loader = Loader(feed, Targets(store, feed), batch_size=16, seed=0)
        >>> for batch in loader.epoch(0):
        ...     print(tuple(batch.images.shape), tuple(batch.teacher_logits.shape))
        (16, 1, 12, 12) (16, 3)
        (16, 1, 12, 12) (16, 3)
        (16, 1, 12, 12) (16, 3)
        (16, 1, 12, 12) (16, 3)
    """

    def __init__(
        self,
        feed: Feed,
        targets: Targets | None,
        *,
        batch_size: int,
        seed: int,
        n_classes: int | None = None,
        training_set: TrainingSet | None = None,
        features: FeatureNeeds | None = None,
        division: Division = WHOLE,
    ) -> None:
        require_whole_groups(batch_size, mixes=feed.mixes)
        self._feed, self._targets, self._seed = feed, targets, seed
        self._labels = Labels(feed, n_classes, None if training_set is None else training_set.labels)
        self._features = _feature_source(targets, self._labels, n_classes, features)
        count = len(feed.images)
        self.batch_size = min(batch_size, count)
        self._steps_per_lap = count // self.batch_size
        length = count if training_set is None else training_set.length
        self.steps_per_epoch = length // min(batch_size, length)
        self.parts = division.parts
        division.require_enough(count, feed.pairing.group)
        self._cuts = division.cuts(self.batch_size, feed.pairing.group)

    @property
    def smallest_part(self) -> int:
        """Images of the smallest part of a step, all processes' together."""
        return min(int(part.stop - part.start) for part, _ in self._cuts)

    @property
    def teacher_dim(self) -> int | None:
        """How many features of the teacher a sample has, where batches come with them."""
        return None if self._features is None else self._features.dim

    def view(self, epoch: int) -> int:
        """Return which view an epoch shows, or begins with."""
        return self._view(epoch * self.steps_per_epoch // self._steps_per_lap)

    def _view(self, lap: int) -> int:
        return lap if self._targets is None else lap % self._targets.n_views

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from a step on; the next view's logits are read meanwhile."""
        step, end = epoch * self.steps_per_epoch + first_step, (epoch + 1) * self.steps_per_epoch
        while step < end:
            lap, first = divmod(step, self._steps_per_lap)
            last = min(self._steps_per_lap, first + end - step)
            yield from self._lap(lap, slice(first, last))
            step += last - first

    def _lap(self, lap: int, which: slice) -> Iterator[Batch]:
        """Yield the batches of some steps of a lap."""
        view, following, order = self._view(lap), self._view(lap + 1), self._order(lap)
        whole = to_device(order, self._feed.device)
        features = None if self._features is None else self._features.epoch(view, whole.flatten())
        logits = None
        if self._targets is not None:
            logits = self._targets.load(view)
            self._targets.prefetch(following)
        steps, there = order[which], whole[which]
        batches = [rows[part] for rows in steps for part, _ in self._cuts]
        for soon in (view, following):
            self._feed.prefetch(soon)
        own = [own for _ in steps for _, own in self._cuts]
        seen = self._feed.batches(view, [rows[mine] for rows, mine in zip(batches, own, strict=True)])
        on_device = (rows[part] for rows in there for part, _ in self._cuts)
        first = which.start * self.batch_size
        for rows, rows_there, images, mine in zip(batches, on_device, seen, own, strict=True):
            yield Batch(
                images,
                self._labels.of(view, rows, rows_there),
                None if logits is None else logits.logits(rows_there),
                rows,
                mine,
                None if features is None else features.of(rows_there, first),
            )
            first += len(rows)

    def _order(self, lap: int) -> Rows:
        """Return a lap's rows (steps, B)."""
        order = self._shuffled(lap)
        used = order[: self._steps_per_lap * self.batch_size]
        return used.reshape(self._steps_per_lap, self.batch_size)

    def _shuffled(self, lap: int) -> Rows:
        """Return the samples of a lap.

        Whole groups come first, so that batches cut none. The odd ones behind them are never left out.
        """
        keys = self._feed.images.keys
        groups, odd = self._feed.pairing.groups(self._view(lap))
        shuffled = groups[self._permutation(lap, keys[groups[:, 0]])].ravel()
        first = np.array([group[0] for group in odd], np.int64)
        last = [odd[place] for place in self._permutation(lap, keys[first]).tolist()]
        room = self._steps_per_lap * self.batch_size - sum(map(len, odd))
        return np.concatenate([shuffled[: max(0, room)], *last])

    def _permutation(self, lap: int, keys: NDArray[np.uint64]) -> Rows:
        return permutation(seed=self._seed, epoch=lap, keys=keys, lane=Lane.ORDER)


def _feature_source(
    targets: Targets | None, labels: Labels, n_classes: int | None, needs: FeatureNeeds | None
) -> FeatureSource | None:
    if needs is None:
        return None
    if targets is None:
        raise ConfigError(
            "the loss compares features, and there is no store; expected a dump of codec features"
        )
    return FeatureSource(targets, labels, n_classes, needs)
