"""Training batches: images and, with a store, the teacher's logits of exactly the same views.

Zips a `Feed` and a `Targets`, ahead of need. The batches of an epoch and their order are a pure function of
(seed, epoch, samples). So a resumed run sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import ConfigError
from pipeline.loading.feed import Feed
from pipeline.loading.labels import Labels
from pipeline.loading.order import GLOBAL, Order, OrderSpec
from pipeline.loading.targets import EncodedView, FeatureSource, Part, Targets, TeacherFeatures
from pipeline.loading.training_set import TrainingSet
from pipeline.losses import FeatureNeeds
from pipeline.views.pairing import require_whole_groups


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of a step, or of one part of a step, on the device.

    Args:
        images: (b, channels, S, S) float32, normalised, channels-last in memory; b = B, or this process's
            rows if several processes share a step.
        labels: (B,) int64, -1 for unlabelled; for mixed views (B, C) float32 class shares. Tags and numbers
            are (B, C): see `label_forms.py`, and `labels.mixed_values` for mixed views. With `own_rows` b
            instead of B.
        teacher_logits: (B, C) float32 outputs for these views, or None without a store. With `own_rows` b
            instead of B. For loss `codes` (B, M) int64 codewords.
        rows: (B,) positions in the split, on the CPU.
        own: slice of the B rows that `images` holds.
        teacher_features: the teacher's features of these views if the loss needs them, else None.

    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    rows: NDArray[np.int64]
    own: slice
    teacher_features: TeacherFeatures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The division of a step into parts and processes.

    Args:
        parts: number of consecutive batches per step (gradient accumulation).
        ranks: this process among the processes that share each batch.
    """

    parts: int = 1
    ranks: Ranks = SINGLE

    def require_enough(self, count: int, unit: int) -> None:
        """Refuse a split with too few images.

        Args:
            count: number of images in the split.
            unit: number of images that stay together, e.g. 4 for mixed views.

        Raises:
            ConfigError: a part of a step would have no images in some process.
        """
        if count < self._least(unit):
            raise ConfigError(
                f"{count} training samples are too few for a step of {self.parts} parts on "
                f"{self.ranks.count} processes, in groups of {unit} samples; expected at least "
                f"{self._least(unit)}; add samples or labels, or lower accumulate or the number of "
                "processes"
            )

    def cuts(self, batch_size: int, unit: int) -> list[tuple[slice, slice]]:
        """Return for each part its slice of a step's rows, and this process's slice of the part's rows.

        The parts do not depend on the number of processes.

        Args:
            batch_size: number of images in a step.
            unit: number of images that stay together.

        Raises:
            ConfigError: a part would have no images in some process.
        """
        # Example: batch_size 16, 2 parts, 2 processes, unit 4 (mixed views).
        #   rows of the step   0..7 | 8..15    parts, the same for any number of processes
        #   rows of a part     0..3 | 4..7     process 0 | process 1
        # Process 1 gets [(0:8, 4:8), (8:16, 4:8)]: no group of four is split between processes.
        cuts = [Ranks(part, self.parts).share(batch_size, unit) for part in range(self.parts)]
        sizes = [part.stop - part.start for part in cuts]
        if min(sizes) < self.ranks.count * unit:
            raise ConfigError(
                f"batch_size {batch_size} is too small for {self.parts} parts on {self.ranks.count} "
                f"processes; expected at least {self._least(unit)} samples; raise batch_size, or lower "
                "accumulate or the number of processes"
            )
        return [(part, self.ranks.share(size, unit)) for part, size in zip(cuts, sizes, strict=True)]

    def _least(self, unit: int) -> int:
        return self.parts * self.ranks.count * unit


WHOLE = Division()


class Loader:
    """Epochs of batches over one split.

    Lap n over the split shows view n mod V of a store's V views, or view n without a store. The last,
    smaller batch of a lap is dropped, unless it is the only one. An epoch is one lap, or a fixed number of
    consecutive steps if `training_set.length` differs. Padded samples share batches with samples of similar
    length. For mixed views, a lap shuffles whole groups of mixed images, so that each image is rendered
    once.

    Args:
        feed: the images, with views.
        targets: the teacher's logits of the same views, or None.
        batch_size: images per step; for mixed views a multiple of the group size 4.
        seed: seed of the order, 64-bit unsigned.
        n_classes: C, required for mixed views.
        training_set: the feed's images with student labels and the length of an epoch; None for the
            images' labels and one lap per epoch.
        features: the loss's needs for teacher features; None for a loss without features.
        division: the division of a step; by default one part in one process.
        own_rows: labels and teacher logits of this process's rows alone, for losses that compare no
            samples with each other; by default those of all processes' rows.
        order: the kind of order. With `blocks` and `own_rows`, each of several processes reads only the
            images and teacher logits of its own blocks.
        epochs: number of epochs of the run, after which nothing is read ahead; None if it is not known.

    Raises:
        ConfigError: a batch of mixed views splits groups, or `n_classes` is missing; a step has fewer
            images than parts times processes; or the store has no teacher features.

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
        own_rows: bool = False,
        order: OrderSpec = GLOBAL,
        epochs: int | None = None,
    ) -> None:
        require_whole_groups(batch_size, mixes=feed.mixes)
        self._feed, self._targets = feed, targets
        self._labels = Labels(feed, n_classes, None if training_set is None else training_set.labels)
        self._features = _feature_source(targets, self._labels, n_classes, features)
        count = len(feed.images)
        self.batch_size = min(batch_size, count)
        # Example: 10 images, batch_size 4, length 20: 2 steps per lap (2 images dropped), 5 per epoch.
        # Epoch 0 is lap 0, lap 1 and the first step of lap 2; epoch 1 begins with the second step of lap 2.
        blocks = None if targets is None or order.kind == "global" else targets.blocks()
        self._order = Order(feed, batch_size=self.batch_size, seed=seed, spec=order, blocks=blocks)
        length = count if training_set is None else training_set.length
        self.steps_per_epoch = length // min(batch_size, length)
        # The last step of the run is in lap ceil(steps / steps per lap) - 1: no lap follows it.
        self._laps = None if epochs is None else -(-epochs * self.steps_per_epoch // self._order.steps)
        self.parts = division.parts
        self._sorter = ThreadPoolExecutor(1, thread_name_prefix="epoch-order")
        self._ready: dict[int, Future[Rows]] = {}
        division.require_enough(count, feed.pairing.group)
        self._cuts = division.cuts(self.batch_size, feed.pairing.group)
        self._own_rows = own_rows
        # Negatives and class centres of a feature loss come from all samples.
        self._holds_part = own_rows and order.kind == "blocks" and division.ranks.count > 1
        self._holds_part &= targets is not None and self._features is None

    @property
    def smallest_part(self) -> int:
        """Number of images in the smallest part of a step, over all processes."""
        return min(int(part.stop - part.start) for part, _ in self._cuts)

    @property
    def teacher_dim(self) -> int | None:
        """Teacher features per sample (Dt), or None if batches have none."""
        return None if self._features is None else self._features.dim

    def view(self, epoch: int) -> int:
        """Return the first view of an epoch."""
        return self._view(epoch * self.steps_per_epoch // self._order.steps)

    def _view(self, lap: int) -> int:
        return lap if self._targets is None else lap % self._targets.n_views

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from a step on; the next view's logits load in the background."""
        # Counted over the whole run, so that a resumed epoch finds its lap without stored state.
        step, end = epoch * self.steps_per_epoch + first_step, (epoch + 1) * self.steps_per_epoch
        while step < end:
            lap, first = divmod(step, self._order.steps)
            last = min(self._order.steps, first + end - step)
            yield from self._lap(lap, slice(first, last))
            step += last - first

    def _is_last(self, lap: int) -> bool:
        return self._laps is not None and lap + 1 >= self._laps

    def _lap(self, lap: int, which: slice) -> Iterator[Batch]:
        """Yield the batches of the given steps of a lap."""
        view, order = self._view(lap), self._ready_order(lap)
        # (steps, B) int64, copied once per lap: a copy per batch would add a transfer to every step.
        whole = to_device(order, self._feed.device)
        features = None if self._features is None else self._features.epoch(view, whole.flatten())
        logits = self._read_logits(lap, order)
        # `steps` on the CPU is for rendering, `there` on the device for labels and logits.
        steps, there = order[which], whole[which]
        batches = [rows[part] for rows in steps for part, _ in self._cuts]
        self._feed.prefetch(view)
        if not self._is_last(lap):
            self._feed.prefetch(self._view(lap + 1))
        own = [own for _ in steps for _, own in self._cuts]
        # Only this process's rows (b,) are rendered.
        seen = self._feed.batches(view, [rows[mine] for rows, mine in zip(batches, own, strict=True)])
        # The rows with labels and logits: this process's, or all, since some losses compare samples.
        taught = [mine if self._own_rows else slice(None) for mine in own]
        on_device = [rows[part] for rows in there for part, _ in self._cuts]
        on_device = [rows[some] for rows, some in zip(on_device, taught, strict=True)]
        places = self._held_places(which) if self._holds_part else on_device
        # Position of the batch in the lap's flat order (M,), from which features take their negatives.
        first = which.start * self.batch_size
        for rows, rows_there, images, mine, some, held in zip(
            batches, on_device, seen, own, taught, places, strict=True
        ):
            yield Batch(
                images,
                self._labels.of(view, rows[some], rows_there),
                None if logits is None else logits.logits(held),
                rows,
                mine,
                None if features is None else features.of(rows_there, first),
            )
            first += len(rows)

    def _ready_order(self, lap: int) -> Rows:
        """Return the rows (steps, B) of a lap, and compute those of the next one in the background."""
        # Sorting 14 million samples takes seconds, in which the device would wait at each lap's start.
        ready = self._ready.pop(lap, None)
        self._ready = {}
        if not self._is_last(lap):
            self._ready[lap + 1] = self._sorter.submit(self._order.lap, lap + 1, self._view(lap + 1))
        return self._order.lap(lap, self._view(lap)) if ready is None else ready.result()

    def _read_logits(self, lap: int, order: Rows) -> EncodedView | None:
        """Return the logits of a lap, and read those of the next one in the background."""
        if self._targets is None:
            return None
        logits = self._targets.load(self._view(lap), self._part(lap, lambda: order))
        if not self._is_last(lap):
            # Read beside this lap's training; the cost is a second encoded view on the device.
            self._targets.prefetch(self._view(lap + 1), self._part(lap + 1, self._ready[lap + 1].result))
        return logits

    def _part(self, lap: int, order: Callable[[], Rows]) -> Part | None:
        """Return the rows of a lap whose logits this process reads; None for all."""
        return Part(lap, lambda: self._own_of(order())) if self._holds_part else None

    def _own_of(self, order: Rows) -> Rows:
        """Return this process's rows (n,) of an order (steps, B), step by step."""
        return np.concatenate([order[:, part][:, mine] for part, mine in self._cuts], 1).ravel()

    def _held_places(self, which: slice) -> list[Tensor]:
        """Return the place of each part's rows (b,) among the lap's own rows, on the device."""
        # Example, 2 steps of parts of 3 and 2 own rows: places 0 1 2 | 3 4, then 5 6 7 | 8 9.
        sizes = [mine.stop - mine.start for _, mine in self._cuts]
        first, last = which.start * sum(sizes), which.stop * sum(sizes)
        held = torch.arange(first, last, device=self._feed.device)
        return list(torch.split_with_sizes(held, sizes * (which.stop - which.start)))


def _feature_source(
    targets: Targets | None, labels: Labels, n_classes: int | None, needs: FeatureNeeds | None
) -> FeatureSource | None:
    if needs is None:
        return None
    if targets is None:
        raise ConfigError(
            "the loss needs teacher features, but there is no store; use a dump with codec: features"
        )
    return FeatureSource(targets, labels, n_classes, needs)
