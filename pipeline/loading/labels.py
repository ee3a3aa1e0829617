"""Hard labels of images as they are seen: a class, or where views mix a distribution over the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.core.errors import ConfigError
from pipeline.loading.feed import Feed, Rows
from pipeline.samples.samples import UNLABELLED


class Labels:
    """The labels of a feed's images, on its device.

    Args:
        feed: the images, with views.
        n_classes: C, needed where views mix.
        told: (N,) int64 instead of the images' own, -1 for none.

    Raises:
        ConfigError: views mix and `n_classes` is missing.
    """

    def __init__(self, feed: Feed, n_classes: int | None, told: Rows | None = None) -> None:
        if feed.pairing is not None and n_classes is None:
            raise ConfigError("the views mix images and n_classes is None; expected their number")
        self._feed, self._n_classes = feed, n_classes
        self.own = torch.from_numpy(feed.images.labels if told is None else told).to(feed.device)

    @property
    def are_mixed(self) -> bool:
        """Whether a label is a distribution."""
        return self._feed.pairing is not None

    def of(self, view: int, rows: Rows, on_device: Tensor | None = None) -> Tensor:
        """Return what one view of these rows (B,) shows.

        Args:
            view: of which.
            rows: positions in the split.
            on_device: the same, where they are there already.

        Returns:
            (B,) int64, -1 for unlabelled; (B, C) float32, shares of the classes, where views mix.
        """
        own = self.own[to_device(rows, self.own.device) if on_device is None else on_device]
        mixture = self._feed.shares(view, rows)
        if mixture is None or self._n_classes is None:
            return own
        partners, shares = (to_device(values, self.own.device) for values in mixture)
        return mixed_labels(own, self.own[partners], shares.float(), self._n_classes)


def mixed_labels(own: Tensor, partners: Tensor, shares: Tensor, n_classes: int) -> Tensor:
    """Return the labels of mixed images: (B, C) float32, the two classes with the shares of their images.

    Args:
        own: (B,) int64 class indices, -1 for unlabelled, which leaves its share empty.
        partners: (B,) of the images mixed in.
        shares: (B,) float32, how much of each image is its own.
        n_classes: C.
    """
    return class_shares(own, n_classes, shares) + class_shares(partners, n_classes, 1 - shares)


def class_shares(labels: Tensor, n_classes: int, shares: Tensor | None = None) -> Tensor:
    """Return labels (B,) int64 as shares of the classes (B, C) float32; -1 has none.

    Args:
        labels: class indices, or -1.
        n_classes: C.
        shares: (B,) float32, what each class has; None for 1.
    """
    known = (labels != UNLABELLED).float()
    weights = known if shares is None else known * shares
    empty = weights.new_zeros((len(labels), n_classes))
    return empty.scatter_(1, labels.clamp(min=0)[:, None], weights[:, None])
