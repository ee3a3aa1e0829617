"""Labels of mixed images: a distribution over the classes instead of one of them."""

from __future__ import annotations

from torch import Tensor

from pipeline.data.sample import UNLABELLED


def mixed_labels(own: Tensor, partners: Tensor, shares: Tensor, n_classes: int) -> Tensor:
    """Return the labels of mixed images: (B, C) float32, the two classes with the shares of their images.

    Args:
        own: (B,) int64 class indices, -1 for unlabelled, which leaves its share empty.
        partners: (B,) of the images mixed in.
        shares: (B,) float32, how much of each image is its own.
        n_classes: C.
    """
    labels = shares.new_zeros((len(own), n_classes))
    for classes, weights in ((own, shares), (partners, 1 - shares)):
        known = (classes != UNLABELLED).to(weights.dtype)
        labels.scatter_add_(1, classes.clamp(min=0)[:, None], (weights * known)[:, None])
    return labels
