"""The last layer of a network: found, replaced, narrowed to some classes, and its input as features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError

Head = nn.Linear | nn.Conv2d


def find_head(network: nn.Module) -> tuple[str, Head] | None:
    """Return the name and the layer that gives a network's logits, if there is one.

    It is the one that timm's `get_classifier` tells, or else the last linear layer, or without any the last
    convolution.
    """
    told: Any = getattr(network, "get_classifier", None)
    wanted = told() if callable(told) else None
    layers: list[tuple[str, Head]] = [
        (name, m) for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    linear = [(name, m) for name, m in layers if isinstance(m, nn.Linear)]
    found = [(name, m) for name, m in layers if m is wanted] or linear or layers
    return found[-1] if found else None


def head_of(network: nn.Module) -> tuple[str, Head]:
    """Return the name and the layer that gives a network's logits.

    Raises:
        ModelError: it has none.
    """
    found = find_head(network)
    if found is None:
        raise ModelError(
            f"{type(network).__name__} has no linear layer; expected one as its last; choose another model"
        )
    return found


def head_classes(head: Head) -> int:
    """Return how many logits a last layer gives."""
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Put a fresh last layer, for another number of classes, into a network.

    Raises:
        ModelError: it has no last layer.
    """
    reset: Any = getattr(network, "reset_classifier", None)
    if callable(reset):  # timm knows its own, also where it has none
        reset(num_classes)
        return
    name, head = head_of(network)
    network.set_submodule(name, _like(head, num_classes))


def match_head(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network's last layer as many logits as it has in a state dict, where only this differs."""
    found = find_head(network)
    weight = None if found is None else state.get(f"{found[0]}.weight")
    if found is None or weight is None or weight.shape[1:] != found[1].weight.shape[1:]:
        return
    if len(weight) != head_classes(found[1]):
        replace_head(network, len(weight))


def select_classes(network: nn.Module, chosen: Sequence[int]) -> None:
    """Keep some rows of a network's last layer, in this order."""
    name, head = head_of(network)
    narrow = _like(head, len(chosen))
    rows = torch.tensor(list(chosen))
    with torch.no_grad():
        narrow.weight.copy_(head.weight.index_select(0, rows))
        if head.bias is not None and narrow.bias is not None:
            narrow.bias.copy_(head.bias.index_select(0, rows))
    network.set_submodule(name, narrow)


class SelectedLogits(nn.Module):
    """A network of which some logits are kept: for those that have something after their last layer.

    Args:
        network: the whole.
        chosen: which of its logits, in this order.
    """

    def __init__(self, network: nn.Module, chosen: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("chosen", torch.tensor(list(chosen)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, channels, S, S) float to the chosen logits (B, C)."""
        logits: Tensor = self.network(images)
        chosen: Tensor = self.chosen  # type: ignore[assignment]
        return logits.index_select(1, chosen)


def _like(head: Head, num_classes: int) -> Head:
    """Return a fresh layer of another number of logits."""
    biased = head.bias is not None
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, num_classes, biased)
    return nn.Conv2d(
        head.in_channels,
        num_classes,
        kernel_size=head.kernel_size,  # type: ignore[arg-type]
        stride=head.stride,  # type: ignore[arg-type]
        padding=head.padding,  # type: ignore[arg-type]
        bias=biased,
    )


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
