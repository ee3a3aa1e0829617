"""The last layer of a network: find it, replace it, select classes, and take its input as features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError

Head = nn.Linear | nn.Conv2d


def find_head(network: nn.Module) -> tuple[str, Head] | None:
    """Return the name and the layer that produces a network's logits, or None.

    The first match counts: the layer from timm's `get_classifier`, the last linear layer, the last
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
    """Return the name and the layer that produces a network's logits.

    Raises:
        ModelError: the network has no such layer.
    """
    found = find_head(network)
    if found is None:
        raise ModelError(
            f"{type(network).__name__} has no linear layer; expected one as the last layer; choose a "
            "different model"
        )
    return found


def head_classes(head: Head) -> int:
    """Return the number of logits of a last layer."""
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Replace a network's last layer by a fresh one with `num_classes` logits.

    Raises:
        ModelError: the network has no last layer.
    """
    reset: Any = getattr(network, "reset_classifier", None)
    if callable(reset):  # timm knows its last layer, even if the model was built without one
        reset(num_classes)
        return
    name, head = head_of(network)
    network.set_submodule(name, _like(head, num_classes))


def match_head(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize a network's last layer to a state dict's number of logits, if only that number differs."""
    found = find_head(network)
    weight = None if found is None else state.get(f"{found[0]}.weight")
    if found is None or weight is None or weight.shape[1:] != found[1].weight.shape[1:]:
        return
    if len(weight) != head_classes(found[1]):
        replace_head(network, len(weight))


def select_classes(network: nn.Module, chosen: Sequence[int]) -> None:
    """Keep the chosen rows of a network's last layer, in this order."""
    name, head = head_of(network)
    narrow = _like(head, len(chosen))
    rows = torch.tensor(list(chosen))
    with torch.no_grad():
        narrow.weight.copy_(head.weight.index_select(0, rows))
        if head.bias is not None and narrow.bias is not None:
            narrow.bias.copy_(head.bias.index_select(0, rows))
    network.set_submodule(name, narrow)


class SelectedLogits(nn.Module):
    """A network reduced to some of its logits, e.g. for networks with an operation after the last layer.

    Args:
        network: the full network.
        chosen: indices of the logits to keep, in this order.
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
    """Return a fresh layer of the same kind with `num_classes` logits."""
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
    """Return D, the number of input features of a last layer."""
    return head.in_features if isinstance(head, nn.Linear) else head.in_channels


class WithFeatures(nn.Module):
    """Return features beside a network's output; wraps the network itself, not a copy.

    Features are the input of the last layer. In training, a dropout before that layer has been applied.

    Args:
        network: a network whose last layer is linear or a convolution.

    Raises:
        ModelError: the network has no such layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        _, head = head_of(network)
        self.network = network
        # Registered once: torch.compile cannot trace a registration inside `forward`.
        self._hook = head.register_forward_pre_hook(self._take)
        self._wanted = False
        self._given: list[Tensor] = []

    def close(self) -> None:
        """Restore the network."""
        self._hook.remove()

    def forward(self, images: Tensor) -> tuple[Any, Tensor]:
        """Map images (B, channels, S, S) float to the network's output and features (B, D).

        Features of a convolution are averaged over positions.
        """
        self._wanted = True
        outputs = self.network(images)
        self._wanted = False
        features = self._given.pop()
        return outputs, features.mean((2, 3)) if features.ndim == 4 else features

    def _take(self, head: nn.Module, given: tuple[Tensor, ...]) -> None:
        # The hook also fires during evaluation, which calls the bare network and wants no features.
        if self._wanted:
            self._given.append(given[0])
