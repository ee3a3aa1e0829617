"""Labels that may be wrong: those that the cached teacher gives almost no probability.

A sample's score is the mean probability of its label over everything that the store holds of it: its
training views, or its one un-augmented view. This is self-confidence of confident learning (Northcutt et
al., arXiv 1911.00068; Kuan and Mueller, "Model-agnostic label quality scoring", 2022). A teacher that was
trained on a wrong label may have learnt it by heart, so training samples are found less surely.
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

# A label of less than this contradicts the teacher; where there are many classes, one of less than chance.
_DOUBTED = 0.05
_DECODED_AT_ONCE = 4096

# From rows (n,) of a split to their logits (n, C) in one view.
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """A sample whose label the teacher contradicts.

    Args:
        split: train, validation or test.
        row: of the sample in its split.
        sample: its name.
        label: given, the name of a class.
        label_probability: the teacher's of it.
        predicted: the teacher's likeliest class.
        probability: the teacher's of that one.
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
    """What a store says of the data's labels.

    Args:
        checked: labelled samples.
        doubted: those whose label has less than 5 %, and less than chance: another class is likelier.
        worst: the least likely labels of these, the least likely first.
    """

    checked: int
    doubted: int
    worst: tuple[LabelError, ...]


def find_label_errors(store: SoftLabels, data: PreparedData, count: int) -> LabelErrors:
    """Find the labels that a store's teacher contradicts most.

    Every view is read twice: once for all labels, once for the few that are found, so that memory holds no
    table of training samples times classes. Where views mix, training images are passed over: they show
    two labels.

    Args:
        store: whose logits.
        data: the samples that it is of, or some of them.
        count: of the worst.

    Raises:
        MismatchError: samples are not in the store.
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
    # Stable: equals stay in the order of splits and rows.
    worst.sort(key=lambda error: error.label_probability)
    return LabelErrors(checked=checked, doubted=doubted, worst=tuple(worst[:count]))


@dataclass(frozen=True, slots=True)
class _Split:
    """A split and what a store holds of it.

    Args:
        name: of the split.
        images: its samples.
        n_views: how many views of them there are.
        read: a view, one in memory at a time.
    """

    name: str
    images: Split
    n_views: int
    read: Callable[[int], Logits]

    def label_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean probability of the label of each of these rows (N,)."""
        labels = torch.from_numpy(self.images.labels[rows])
        total = torch.zeros(len(rows), dtype=torch.float64)
        for view in range(self.n_views):
            for part, probabilities in self._probabilities(view, rows):
                total[part] += probabilities.gather(1, labels[part, None])[:, 0]
        mean: NDArray[np.float64] = (total / self.n_views).numpy()
        return mean

    def describe(self, rows: NDArray[np.int64], classes: tuple[str, ...]) -> Iterator[LabelError]:
        """Tell of a few rows (M,) what the teacher makes of them."""
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
        """Yield places (n,) in the rows (N,) and their probabilities (n, C) in float64, some at a time."""
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
