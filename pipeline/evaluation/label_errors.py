"""Find suspect labels: those to which the cached teacher gives almost no probability.

A sample's score is the mean probability of its label over its stored views; validation and test samples
have one, the un-augmented view. Of a large dump only some views are read, evenly spread. This is
self-confidence of confident learning (Northcutt et al., arXiv 1911.00068; Kuan and Mueller, "Model-agnostic
label quality scoring", 2022). A teacher may have memorised wrong labels that it was trained on, so training
samples are found less reliably.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows, spread
from pipeline.core.team import Elsewhere
from pipeline.core.threads import side_by_side
from pipeline.loading.feed import consecutive
from pipeline.loading.targets import EncodedView
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import require_data_classes, views_of
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED
from pipeline.store.soft_labels import SoftLabels

# A label below this probability, or below chance (1 / C) if that is lower, contradicts the teacher.
_DOUBTED = 0.05
_DECODED_AT_ONCE = 4096
# More (view, sample) pairs are not read, but for the least number of views: 8 take most of the noise away.
MOST_PAIRS, LEAST_VIEWS = 50_000_000, 8
# Views that are read side by side hold no more than this, in encoded form.
_HELD_BYTES = 1 << 30

# Maps rows (n,) of a split to their logits (n, C) in one view.
Logits = Callable[[Tensor], Tensor]
# Opens one view for some rows (n,) of a split.
ReadView = Callable[[int, Rows], Logits]
# What another process opens again.
Reopened = tuple[SoftLabels, PreparedData]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """A sample whose label the teacher contradicts.

    Args:
        split: train, validation or test.
        row: the sample's row in its split.
        sample: its name.
        label: name of the class that the data gives.
        label_probability: the teacher's probability of the label.
        predicted: name of the teacher's likeliest class.
        probability: the teacher's probability of that class.
    """

    split: str
    row: int
    sample: str
    label: str
    label_probability: float
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelErrors:
    """Findings about the labels of a dataset.

    Args:
        checked: number of labelled samples.
        doubted: number of labels with a probability below 5 % and below chance.
        worst: the least likely of those labels, in ascending order of probability.
        views: number of views of the training samples that were read.
        stored_views: V, number of views in the store.
    """

    checked: int
    doubted: int
    worst: tuple[LabelError, ...]
    views: int
    stored_views: int


def find_label_errors(
    store: SoftLabels,
    data: PreparedData,
    count: int,
    workers: int = 1,
    elsewhere: Elsewhere[Reopened] | None = None,
) -> LabelErrors:
    """Find the labels that a store's teacher contradicts most.

    Each view is read once for all labels. Of the worst ones a few shards are read again, so that memory
    never holds a table of training samples times classes. Training images are skipped if views mix them:
    such an image shows two labels.

    Args:
        store: the teacher's logits.
        data: the store's samples, or a part of them.
        count: number of worst labels to return.
        workers: threads that read views side by side.
        elsewhere: reads the training views instead.

    Raises:
        MismatchError: the store lacks some samples, or has other classes.
    """
    require_data_classes(store, data.classes, data.task)
    limit = min(_DOUBTED, 1 / len(data.classes))
    checked = doubted = 0
    worst: list[LabelError] = []
    views = sampled_views(store.n_views, len(data.train))
    for split in _splits(store, data, views, workers):
        rows = split.labelled()
        scores = split.label_probabilities(rows, elsewhere if split.name == "train" else None)
        lowest = np.argsort(scores, kind="stable")[:count]
        checked, doubted = checked + len(rows), doubted + int((scores < limit).sum())
        worst += split.describe(rows[lowest[scores[lowest] < limit]], data.classes)
    # A stable sort keeps ties in the order of splits and rows.
    worst.sort(key=lambda error: error.label_probability)
    return LabelErrors(
        checked=checked,
        doubted=doubted,
        worst=tuple(worst[:count]),
        views=len(views),
        stored_views=store.n_views,
    )


def sampled_views(n_views: int, n_samples: int) -> Rows:
    """Return the views (n,) that are read: all of them, or evenly spread ones of a large dump.

    >>> [len(sampled_views(300, n_samples)) for n_samples in (50_000, 1_281_167, 14_200_000)]
    [300, 39, 8]
    """
    return spread(n_views, max(LEAST_VIEWS, MOST_PAIRS // max(1, n_samples)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A split with its stored logits.

    Args:
        name: the split's name.
        images: its samples.
        views: the views to read.
        read: opens one view.
        workers: number of views that are read side by side.
    """

    name: str
    images: Split
    views: Rows
    read: ReadView
    workers: int = 1

    def labelled(self) -> Rows:
        """Return the rows that have a label."""
        return np.flatnonzero(self.images.labels != UNLABELLED)

    def label_probabilities(
        self, rows: Rows, elsewhere: Elsewhere[Reopened] | None = None
    ) -> NDArray[np.float64]:
        """Return the mean probability (N,) of the labels of the labelled rows (N,)."""
        total = torch.zeros(len(rows), dtype=torch.float64)
        views = self.views.tolist() if len(rows) else []
        # Added in the order of the views, so that sums do not depend on the number of threads or processes.
        for found in (
            side_by_side(partial(self.of_labels, rows=rows), views, self.workers)
            if elsewhere is None
            else elsewhere.map(_of_labels, views)
        ):
            total += found
        mean: NDArray[np.float64] = (total / len(self.views)).numpy()
        return mean

    def of_labels(self, view: int, rows: Rows) -> Tensor:
        """Return the probability (N,) float64 of the labels of rows (N,) in one view."""
        labels = torch.from_numpy(self.images.labels[rows])
        parts = self._probabilities(view, rows)
        return torch.cat([found.gather(1, labels[part, None])[:, 0] for part, found in parts])

    def describe(self, rows: Rows, classes: tuple[str, ...]) -> Iterator[LabelError]:
        """Yield a `LabelError` for each of a few rows (M,)."""
        if not len(rows):
            return

        def of_rows(view: int) -> Tensor:
            return torch.cat([found for _, found in self._probabilities(view, rows)])

        means = torch.stack(list(side_by_side(of_rows, self.views.tolist(), self.workers))).mean(0)
        labels = self.images.labels[rows].tolist()
        for row, label, mean in zip(rows.tolist(), labels, means, strict=True):
            predicted = int(mean.argmax())
            yield LabelError(
                split=self.name,
                row=row,
                sample=self.images.names[row],
                label=classes[label],
                label_probability=float(mean[label]),
                predicted=classes[predicted],
                probability=float(mean[predicted]),
            )

    def _probabilities(self, view: int, rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
        """Yield positions (n,) in the rows (N,) and their probabilities (n, C) float64, part by part."""
        logits = self.read(view, rows)
        for part in consecutive(len(rows), _DECODED_AT_ONCE):
            yield part, torch.softmax(logits(torch.from_numpy(part)).double(), 1)


def _of_labels(reopened: Reopened, view: int) -> Tensor:
    """Return the probabilities (N,) of all labels in one training view, in another process."""
    store, data = reopened
    train = next(_splits(store, data, np.arange(store.n_views), workers=1))
    return train.of_labels(view, train.labelled())


def _splits(store: SoftLabels, data: PreparedData, views: Rows, workers: int) -> Iterator[_Split]:
    if not views_of(store).mixes:
        at_once = max(1, min(workers, _HELD_BYTES // max(1, _view_bytes(store))))
        yield _Split(
            name="train",
            images=data.train,
            views=views,
            read=_training_views(store, data.train),
            workers=at_once,
        )
    for name, images in (("validation", data.validation), ("test", data.test)):
        logits = store.held_out(name, images)
        if logits is not None:
            yield _Split(name=name, images=images, views=np.arange(1), read=_only_view(logits))


def _view_bytes(store: SoftLabels) -> int:
    """Return the size of one encoded view in memory."""
    arrays = [spec for member in store.members for spec in member.manifest.layout.arrays.values()]
    row_bytes = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in arrays)
    return store.n_samples * row_bytes


def _training_views(store: SoftLabels, images: Split) -> ReadView:
    places = store.rows_of(images)

    def read(view: int, rows: Rows) -> Logits:
        encoded = store.encoded_view(view, places[rows])
        arrays = {name: torch.from_numpy(values) for name, values in encoded.items()}
        return EncodedView(store.codec, arrays).logits

    return read


def _only_view(logits: Tensor) -> ReadView:
    return lambda _, rows: lambda some: logits[torch.from_numpy(rows)][some]
