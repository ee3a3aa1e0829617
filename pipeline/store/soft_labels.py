"""Soft labels: the common interface of a store, an ensemble and a re-headed store, for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codecs.base import Decoder, Derivation
from pipeline.codecs.rule import Measures
from pipeline.places.location import Location
from pipeline.samples.labels import LabelWords
from pipeline.samples.packed import Split
from pipeline.store.labels import LabelChanges
from pipeline.store.reader import LogitStore


class SoftLabels(Protocol):
    """A teacher's outputs for V views of N training samples, and for the held-out samples."""

    @property
    def location(self) -> Location:
        """The place of the store."""

    @property
    def members(self) -> Sequence[LogitStore]:
        """The stores of the outputs."""

    @property
    def derivation(self) -> Derivation | None:
        """How outputs derive from the members' rows; None if they are those of a single member."""

    @property
    def codec(self) -> Decoder:
        """The decoder of rows of `encoded_view`."""

    @property
    def measures(self) -> Measures:
        """The link of the outputs, and the names of the codec's costs."""

    @property
    def n_views(self) -> int:
        """V, the number of training views."""

    @property
    def n_samples(self) -> int:
        """N, the number of training samples."""

    @property
    def n_classes(self) -> int:
        """C, the number of classes."""

    @property
    def views(self) -> Mapping[str, Any]:
        """The views that the teacher saw, in the canonical form of their spec."""

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Name, precision and card of the teacher, or of the first one, as plain values."""

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The names of the teachers."""

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the soft labels."""

    def rows_of(self, images: Split) -> NDArray[np.int64]:
        """Return the training row of each sample of a split (N,)."""

    def blocks_of(self, images: Split) -> NDArray[np.int64]:
        """Return the block of each sample of a split (N,); views mix samples only within a block."""

    def encoded_view(self, view: int, rows: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Read one training view without decoding it, or some rows (n,) of it, in their order."""

    def view(self, view: int) -> Tensor:
        """Read one training view: (N, C) float32 outputs; of a softmax, each row's maximum is 0."""

    def held_out(self, name: str, images: Split) -> Tensor | None:
        """Return the outputs for un-augmented samples of a split, in its order, or None."""

    def label_changes(self, present: LabelWords) -> LabelChanges:
        """Compare the labels that its figures are by with those of the data, by split."""

    def summary(self) -> dict[str, Any]:
        """Return figures with the keys of `pipeline inspect --json`."""
