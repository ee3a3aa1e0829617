"""Auxiliary heads: classifiers half-way up a deep network, used during training only.

Inception v3 and GoogLeNet have them. The training loss is applied to the network's logits and, with a
weight, to the logits of each auxiliary head. Evaluation skips the heads. Checkpoints drop them, because
nothing uses them after training and they are half of GoogLeNet's parameters. Training that starts from a
checkpoint runs without auxiliary heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from pipeline.core.errors import ModelError
from pipeline.models.architecture import Architecture

# Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, section 5.
_GOOGLENET_WEIGHT = 0.3
# From the authors' training code for Inception v3 (TensorFlow's models/research/inception); the paper,
# arXiv 1512.00567, gives no value.
_INCEPTION_WEIGHT = 0.4
_INCEPTION_SIZE = 299
# Fields of torchvision's InceptionOutputs and GoogLeNetOutputs -> weight of each one's loss.
_WEIGHTS: Mapping[frozenset[str], Mapping[str, float]] = {
    frozenset(weights): weights
    for weights in (
        {"logits": 1.0, "aux_logits": _INCEPTION_WEIGHT},
        {"logits": 1.0, "aux_logits1": _GOOGLENET_WEIGHT, "aux_logits2": _GOOGLENET_WEIGHT},
    )
}
_MODULES: Mapping[str, tuple[str, ...]] = {
    "inception_v3": ("AuxLogits",),
    "googlenet": ("aux1", "aux2"),
}


def weighted_logits(outputs: object) -> list[tuple[float, Tensor]]:
    """Return (loss weight, logits (B, C)) for each head of a network.

    Args:
        outputs: output of a network in training or evaluation mode.

    Raises:
        ModelError: the output is neither a tensor nor a known tuple.
    """
    if isinstance(outputs, Tensor):
        return [(1.0, outputs)]
    # By the fields of torchvision's tuples, since models of other modalities do without torchvision.
    weights = _WEIGHTS.get(frozenset(getattr(outputs, "_fields", ())))
    if weights is not None:
        return [(weight, getattr(outputs, name)) for name, weight in weights.items()]
    raise ModelError(
        f"the network returns a {type(outputs).__name__} in training; expected a tensor of logits (B, C); "
        "make it return only that"
    )


def plain(architecture: Architecture) -> Architecture:
    """Return the same architecture without auxiliary heads."""
    if architecture.name not in _MODULES:
        return architecture
    return replace(architecture, options={**architecture.options, "aux_logits": False})


def without_auxiliary(state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return a network's tensors without its auxiliary heads."""
    heads = auxiliary_prefixes(architecture)
    return {name: tensor for name, tensor in state.items() if not name.startswith(heads)}


def require_room(architecture: Architecture, image_size: int) -> None:
    """Refuse images that are too small for Inception's auxiliary head.

    The main head alone would take smaller images.

    Raises:
        ModelError: the images are smaller than 299 pixels.
    """
    present = architecture.name == "inception_v3" and architecture.options.get("aux_logits", True)
    if present and image_size < _INCEPTION_SIZE:
        raise ModelError(
            f"model inception_v3 gets images of {image_size} pixels; expected at least {_INCEPTION_SIZE}, "
            "or 75 without its auxiliary head; raise data.image_size, or set options: {aux_logits: false}"
        )


def count_parameters(network: nn.Module, architecture: Architecture) -> int:
    """Return the number of parameters of a network without its auxiliary heads."""
    heads = auxiliary_prefixes(architecture)
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(heads))


def auxiliary_prefixes(architecture: Architecture) -> tuple[str, ...]:
    """Return the name prefixes of auxiliary heads' tensors, e.g. `aux1.`."""
    return tuple(f"{module}." for module in _MODULES.get(architecture.name, ()))
