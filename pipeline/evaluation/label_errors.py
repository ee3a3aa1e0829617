"""Find suspect labels: those to which the cached teacher gives almost no probability.

A sample's score is the mean probability of its label over all its stored views; validation and test samples
have one, the un-augmented view. This is self-confidence of confident learning (Northcutt et al.,
arXiv 1911.00068; Kuan and Mueller, "Model-agnostic label quality scoring", 2022). A teacher may have
memorised wrong labels that it was trained on, so training samples are found less reliably.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.loading.feed import consecutive
from pipeline.loading.targets import EncodedView
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.samples.packed import Split
from pipeline.samples.samples import UNLABELLED
from pipeline.store.soft_labels import SoftLabels

# A label below this probability, or below chance (1 / C) if that is lower, contradicts the teacher.
_DOUBTED = 0.05
_DECODED_AT_ONCE = 4096

# Maps rows (n,) of a split to their logits (n, C) in one view.
Logits = Callable[[Tensor], Tensor]


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
    """

    checked: int
    doubted: int
    worst: tuple[LabelError, ...]


def find_label_errors(store: SoftLabels, data: PreparedData, count: int) -> LabelErrors:
    """Find the labels that a store's teacher contradicts most.

    Every view is read twice, once for all labels and once for the worst ones, so that memory never holds a
    table of training samples times classes. Training images are skipped if views mix them: such an image
    shows two labels.

    Args:
        store: the teacher's logits.
        data: the store's samples, or a part of them.
        count: number of worst labels to return.

    Raises:
        MismatchError: the store lacks some samples.
    """
    limit = min(_DOUBTED, 1 / len(data.classes))
    checked = doubted = 0
    worst: list[LabelError] = []
    for split in _splits(store, data):
        rows = np.flatnonzero(split.images.labels != UNLABELLED)
        scores = split.label_probabilities(rows)
        lowest = np.argsort(scores, kind="stable")[:count]
        checked, doubted = checked + len(rows), doubted + int((scores < limit).sum())
        worst += split.describe(rows[lowest[scores[lowest] < limit]], data.classes)
    # A stable sort keeps ties in the order of splits and rows.
    worst.sort(key=lambda error: error.label_probability)
    return LabelErrors(checked=checked, doubted=doubted, worst=tuple(worst[:count]))


@dataclass(frozen=True, slots=True)
class _Split:
    """A split with its stored logits.

    Args:
        name: the split's name.
        images: its samples.
        n_views: number of stored views.
        read: loads one view; only one is in memory at a time.
    """

    name: str
    images: Split
    n_views: int
    read: Callable[[int], Logits]

    def label_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean probability (N,) of the labels of rows (N,)."""
        labels = torch.from_numpy(self.images.labels[rows])
        total = torch.zeros(len(rows), dtype=torch.float64)
        for view in range(self.n_views):
            for part, probabilities in self._probabilities(view, rows):
                total[part] += probabilities.gather(1, labels[part, None])[:, 0]
        mean: NDArray[np.float64] = (total / self.n_views).numpy()
        return mean

    def describe(self, rows: NDArray[np.int64], classes: tuple[str, ...]) -> Iterator[LabelError]:
        """Yield a `LabelError` for each of a few rows (M,)."""
        if not len(rows):
            return
        views = [
            torch.cat([probabilities for _, probabilities in self._probabilities(view, rows)])
            for view in range(self.n_views)
        ]
        labels = self.images.labels[rows].tolist()
        for row, label, mean in zip(rows.tolist(), labels, torch.stack(views).mean(0), strict=True):
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

    def _probabilities(
        self, view: int, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield positions (n,) in the rows (N,) and their probabilities (n, C) float64, part by part."""
        logits = self.read(view)
        for part in consecutive(len(rows), _DECODED_AT_ONCE):
            yield part, torch.softmax(logits(torch.from_numpy(rows[part])).double(), 1)


def _splits(store: SoftLabels, data: PreparedData) -> Iterator[_Split]:
    if not views_of(store).mixes:
        yield _Split("train", data.train, store.n_views, _training_views(store, data.train))
    for name, images in (("validation", data.validation), ("test", data.test)):
        logits = store.held_out(name, images)
        if logits is not None:
            yield _Split(name, images, 1, _only_view(logits))


def _training_views(store: SoftLabels, images: Split) -> Callable[[int], Logits]:
    places = torch.from_numpy(store.rows_of(images))

    def read(view: int) -> Logits:
        arrays = {name: torch.from_numpy(values) for name, values in store.encoded_view(view).items()}
        encoded = EncodedView(store.codec, arrays)
        return lambda rows: encoded.logits(places[rows])

    return read


def _only_view(logits: Tensor) -> Callable[[int], Logits]:
    return lambda view: lambda rows: logits[rows]
