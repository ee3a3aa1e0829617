"""Auxiliary heads: classifiers half-way up a deep network that help it train, and do nothing else.

Inception v3 and GoogLeNet have them. In training the loss applies to the network's logits and, weighed, to
those of each auxiliary head; in evaluation there are none. Checkpoints leave them out: nothing that comes
after training uses them, and they are half of GoogLeNet's parameters. A checkpoint is trained on without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from pipeline.core.errors import ModelError
from pipeline.models.architecture import Architecture

# Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, section 5.
_GOOGLENET_WEIGHT = 0.3
# Of the authors' own training of Inception v3 (TensorFlow's models/research/inception); the paper,
# arXiv 1512.00567, gives none.
_INCEPTION_WEIGHT = 0.4
_INCEPTION_SIZE = 299
_MODULES: Mapping[str, tuple[str, ...]] = {
    "inception_v3": ("AuxLogits",),
    "googlenet": ("aux1", "aux2"),
}


def weighted_logits(outputs: object) -> list[tuple[float, Tensor]]:
    """Return all logits (B, C) that a network gave, each with the weight of its loss.

    Args:
        outputs: of a network in training or evaluation mode.

    Raises:
        ModelError: neither logits nor a tuple that is known.
    """
    if isinstance(outputs, Tensor):
        return [(1.0, outputs)]
    if isinstance(outputs, InceptionOutputs):
        return [(1.0, outputs.logits), (_INCEPTION_WEIGHT, outputs.aux_logits)]
    if isinstance(outputs, GoogLeNetOutputs):
        auxiliary = (outputs.aux_logits1, outputs.aux_logits2)
        return [(1.0, outputs.logits), *((_GOOGLENET_WEIGHT, logits) for logits in auxiliary)]
    raise ModelError(
        f"the network gives a {type(outputs).__name__} in training; expected logits (B, C), a tensor; let "
        "it return them alone"
    )


def plain(architecture: Architecture) -> Architecture:
    """Return how a network is built without its auxiliary heads."""
    if architecture.name not in _MODULES:
        return architecture
    return replace(architecture, options={**architecture.options, "aux_logits": False})


def without_auxiliary(state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return a network's tensors without those of its auxiliary heads."""
    heads = auxiliary_prefixes(architecture)
    return {name: tensor for name, tensor in state.items() if not name.startswith(heads)}


def require_room(architecture: Architecture, image_size: int) -> None:
    """Refuse images in which Inception's auxiliary head finds nothing, though the others might.

    Raises:
        ModelError: they are smaller than 299 pixels.
    """
    present = architecture.name == "inception_v3" and architecture.options.get("aux_logits", True)
    if present and image_size < _INCEPTION_SIZE:
        raise ModelError(
            f"model inception_v3 sees images of {image_size} pixels; expected at least {_INCEPTION_SIZE}, "
            "or 75 without its auxiliary head; enlarge data.image_size, or set options: {aux_logits: false}"
        )


def count_parameters(network: nn.Module, architecture: Architecture) -> int:
    """Return how many parameters a network has, without its auxiliary heads."""
    heads = auxiliary_prefixes(architecture)
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(heads))


def auxiliary_prefixes(architecture: Architecture) -> tuple[str, ...]:
    """Return with what names of auxiliary heads' tensors begin."""
    return tuple(f"{module}." for module in _MODULES.get(architecture.name, ()))
