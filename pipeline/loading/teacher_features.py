"""The teacher's penultimate features beside its logits, for losses that compare them.

Stores of the `features` codec keep them, quantised; they are read from the same bytes as the logits. What a
step is given is a pure function of (seed, epoch, samples), like the step itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.core.errors import ConfigError
from pipeline.loading.feed import consecutive
from pipeline.loading.labels import Labels, class_shares
from pipeline.loading.targets import EncodedView, Targets
from pipeline.losses import FeatureNeeds, Features

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class TeacherFeatures:
    """What the teacher made of a batch before its last layer, and what to compare it with.

    Args:
        own: (B, Dt) float32, of the batch's views.
        negatives: (K, Dt) of the same view of other samples, or None.
        negative_labels: (K,) int64 of those, or -1; None where views mix.
        centres: (C, Dt) means of the classes, or None.
    """

    own: Tensor
    negatives: Tensor | None = None
    negative_labels: Tensor | None = None
    centres: Tensor | None = None

    def beside(self, student: Tensor) -> Features:
        """Return them with the student's features (B, Ds) of the same views."""
        return Features(student, self.own, self.negatives, self.negative_labels, self.centres)


class FeatureSource:
    """The teacher's features of a split, an epoch at a time.

    Args:
        targets: of the split.
        labels: of the same images.
        n_classes: C, needed for centres.
        needs: what is asked for.

    Raises:
        ConfigError: the store keeps no features, or `n_classes` is missing.
    """

    def __init__(
        self, targets: Targets, labels: Labels, n_classes: int | None, needs: FeatureNeeds
    ) -> None:
        self.dim = targets.require_features()
        if needs.centres and n_classes is None:
            raise ConfigError("the loss needs class centres and n_classes is None; expected their number")
        self._targets, self._labels, self._needs = targets, labels, needs
        self._n_classes = n_classes or 0
        self._centres: Tensor | None = None

    def epoch(self, view: int, order: Tensor) -> EpochFeatures:
        """Return the features of an epoch.

        Args:
            view: that it shows.
            order: (M,) int64 rows in the order in which it shows them, on the device.
        """
        if self._needs.centres and self._centres is None:
            self._centres = self._class_means(self._targets.load(0))
        labels = None if self._labels.are_mixed else self._labels.own
        return EpochFeatures(
            self._targets.load(view), order, labels, self._centres, negatives=self._needs.negatives
        )

    def _class_means(self, encoded: EncodedView) -> Tensor:
        """Return each class's mean features (C, Dt) in view 0; zeros for a class without labels."""
        device = self._labels.own.device
        sums = torch.zeros(self._n_classes, self.dim, device=device)
        counts = torch.zeros(self._n_classes, 1, device=device)
        for rows in consecutive(len(self._labels.own), _ROWS_AT_ONCE):
            on_device = to_device(rows, device)
            shares = self._labels.of(0, rows, on_device)
            if not shares.is_floating_point():
                shares = class_shares(shares, self._n_classes)
            sums += shares.T @ encoded.features(on_device)
            counts += shares.sum(0)[:, None]
        return sums / torch.where(counts > 0, counts, 1)


class EpochFeatures:
    """The teacher's features of an epoch's batches.

    A batch's negatives are the samples that the epoch shows next, from the end on its first ones: as random
    as the order, never the batch's own, and the same whichever step a run goes on from.

    Args:
        encoded: the view that is shown.
        order: (M,) int64 rows in the order in which they are, on the device.
        labels: (N,) int64 of all rows; None where views mix.
        centres: (C, Dt), or None.
        negatives: how many are wanted; fewer are given where an epoch has no more.
    """

    def __init__(
        self,
        encoded: EncodedView,
        order: Tensor,
        labels: Tensor | None,
        centres: Tensor | None,
        *,
        negatives: int,
    ) -> None:
        self._encoded, self._labels, self._centres = encoded, labels, centres
        self._count, self._negatives = len(order), negatives
        self._order = torch.cat([order, order[:negatives]])

    def of(self, rows: Tensor, first: int) -> TeacherFeatures:
        """Return a batch's features.

        Args:
            rows: (B,) int64, on the device.
            first: where the batch begins in the epoch's order.
        """
        own = self._encoded.features(rows)
        count = min(self._negatives, self._count - len(rows))
        if not count:
            return TeacherFeatures(own, centres=self._centres)
        following = first + len(rows)
        others = self._order[following : following + count]
        labels = None if self._labels is None else self._labels[others]
        return TeacherFeatures(own, self._encoded.features(others), labels, self._centres)
