"""Deliver hard labels to a loss: class indices, or shares of classes where views mix samples."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.device import to_device
from pipeline.core.errors import ConfigError
from pipeline.loading.feed import Feed
from pipeline.samples.samples import UNLABELLED


class Labels:
    """Hard labels of a feed's views, on its device: class indices, or class shares for mixed views.

    Args:
        feed: the images, with views.
        n_classes: C, required for mixed views.
        told: (N, ...), overrides the images' labels.

    Raises:
        ConfigError: views are mixed and `n_classes` is missing.
    """

    def __init__(self, feed: Feed, n_classes: int | None, told: NDArray[Any] | None = None) -> None:
        if feed.mixes and n_classes is None:
            raise ConfigError("the views mix samples, but n_classes is None; pass the number of classes")
        self._feed, self._n_classes = feed, n_classes
        self.own = torch.from_numpy(feed.images.labels if told is None else told).to(feed.device)

    @property
    def are_mixed(self) -> bool:
        """Whether a label is a distribution over classes."""
        return self._feed.mixes

    def of(self, view: int, rows: Rows, on_device: Tensor | None = None) -> Tensor:
        """Return the labels of one view of these rows.

        Args:
            view: the view.
            rows: (B,) positions in the split.
            on_device: the same rows on the device, to save a copy.

        Returns:
            (B,) int64, -1 for unlabelled; for mixed views (B, C) float32 class shares. Tags and numbers are
            (B, C), for mixed views float32: see `mixed_values`.
        """
        own = self.own[to_device(rows, self.own.device) if on_device is None else on_device]
        mixture = self._feed.shares(view, rows)
        if mixture is None or self._n_classes is None:
            return own
        partners, shares = (to_device(values, self.own.device) for values in mixture)
        if own.ndim > 1:
            return mixed_values(own, self.own[partners], shares.float())
        return mixed_labels(own, self.own[partners], shares.float(), self._n_classes)


def mixed_labels(own: Tensor, partners: Tensor, shares: Tensor, n_classes: int) -> Tensor:
    """Return labels (B, C) float32 of mixed images: each class gets the share of its image.

    Args:
        own: (B,) int64 class indices; -1 for unlabelled, whose share is dropped.
        partners: (B,) int64 class indices of the images mixed in, or -1.
        shares: (B,) float32, fraction of each image that is its own.
        n_classes: C.
    """
    # Example, C = 3, share 0.75:
    #   own 0, partner 2   -> [0.75, 0, 0.25]
    #   own 0, partner -1  -> [0.75, 0, 0]     sums to less than 1: the rest is unlabelled
    #   own 1, partner 1   -> [0, 1, 0]        two terms, so equal classes add up
    return class_shares(own, n_classes, shares) + class_shares(partners, n_classes, 1 - shares)


def mixed_values(own: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return tags or numbers (B, C) float32 of mixed images: the mean of both, weighted by their shares.

    A value that is unknown in an image with a share is unknown: -1 for tags, NaN for numbers.

    Args:
        own: (B, C) int8 tags, 1, 0 or -1; or float32 numbers, NaN for unlabelled.
        partners: (B, C) of the images mixed in.
        shares: (B,) float32, fraction of each image that is its own.
    """
    # e.g. share 0.75, tags own 1, 0, 1 and partner 0, 0, -1  ->  0.75, 0, -1
    sides = ((own, shares[:, None]), (partners, 1 - shares[:, None]))
    mixed = torch.stack([torch.where(share > 0, share * side, 0.0) for side, share in sides]).sum(0)
    if own.is_floating_point():
        return mixed
    unknown = torch.stack([(side < 0) & (share > 0) for side, share in sides]).any(0)
    return mixed.masked_fill(unknown, UNLABELLED)


def class_shares(labels: Tensor, n_classes: int, shares: Tensor | None = None) -> Tensor:
    """Return labels (B,) int64 as class shares (B, C) float32; a row of -1 is all zeros.

    Args:
        labels: class indices, or -1.
        n_classes: C.
        shares: (B,) float32 share of each class; None for 1.
    """
    # Label -1 is scattered to class 0 with weight 0: one kernel, without a branch on the device's values.
    known = (labels != UNLABELLED).float()
    weights = known if shares is None else known * shares
    empty = weights.new_zeros((len(labels), n_classes))
    return empty.scatter_(1, labels.clamp(min=0)[:, None], weights[:, None])
