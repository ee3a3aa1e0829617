"""A network with what its last layer is given: the penultimate features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.models.heads import Head, head_of


def feature_dim(head: Head) -> int:
    """Return how many features a last layer is given."""
    return head.in_features if isinstance(head, nn.Linear) else head.in_channels


class WithFeatures(nn.Module):
    """Gives a network's features beside its logits; it is the network itself, not a copy.

    Features are what the last layer is given: in training those behind a dropout, where there is one.

    Args:
        network: whose last layer is a linear one or a convolution.

    Raises:
        ModelError: it has no such layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        _, head = head_of(network)
        self.network = network
        # Not in `forward`, where torch.compile could not follow it.
        self._hook = head.register_forward_pre_hook(self._take)
        self._wanted = False
        self._given: list[Tensor] = []

    def close(self) -> None:
        """Leave the network as it was."""
        self._hook.remove()

    def forward(self, images: Tensor) -> tuple[Any, Tensor]:
        """Map images (B, channels, S, S) float to what the network gives and features (B, D).

        Features of a convolution are means over the places.
        """
        self._wanted = True
        outputs = self.network(images)
        self._wanted = False
        features = self._given.pop()
        return outputs, features.mean((2, 3)) if features.ndim == 4 else features

    def _take(self, head: nn.Module, given: tuple[Tensor, ...]) -> None:
        # The network is also called alone, to be evaluated.
        if self._wanted:
            self._given.append(given[0])
