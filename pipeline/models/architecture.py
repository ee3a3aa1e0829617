"""A name becomes a network: the literature's nets, every torchvision classifier, timm's, one's own code.

Owns what a model is called and which source knows the name. Each source is a module of its own; weights and
preprocessing are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError, did_you_mean
from pipeline.modalities.families import IMAGENET_STEM_STRIDE, Family
from pipeline.modalities.table import families
from pipeline.models.heads import SelectedLogits
from pipeline.models.own_code import OwnCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything needed to build an untrained network.

    Args:
        name: of the literature's nets, a torchvision classifier, `timm:NAME`, or `module:callable`.
        num_classes: C, the number of logits.
        channels: of the input images.
        stem_stride: 4 as its source has it, 2 or 1 for small images: how far the stem shrinks them.
        options: keyword arguments for the network's builder, such as width_mult.
        selected: which of the C logits are kept, in this order; none for all.

    """

    name: str
    num_classes: int
    channels: int = 3
    stem_stride: int = IMAGENET_STEM_STRIDE
    options: Mapping[str, Any] = field(default_factory=dict)
    selected: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; a selection only where there is one, as it is seldom."""
        plain = {**asdict(self), "options": dict(self.options), "selected": list(self.selected)}
        return plain if self.selected else {k: v for k, v in plain.items() if k != "selected"}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Architecture:
        """Return the architecture that `to_dict` described."""
        return cls(**{**value, "selected": tuple(value.get("selected", ()))})


def source_of(name: str) -> Family:
    """Return where models of a name come from: the first family that knows it.

    Raises:
        ModelError: nowhere.
    """
    every = (*families(), OwnCode())
    for family in every:
        if family.knows(name):
            return family
    known = [known for family in every for known in family.names()]
    raise ModelError(
        f"model {name!r} is unknown; expected {', '.join(family.described for family in every)}"
        f"{did_you_mean(name, known)}"
    )


def build(architecture: Architecture) -> nn.Module:
    """Build a network with fresh weights.

    Raises:
        ModelError: unknown name, an option the builder does not take, or a stem that cannot be fitted.

    """
    network = source_of(architecture.name).build(
        architecture.name,
        num_classes=architecture.num_classes,
        channels=architecture.channels,
        stem_stride=architecture.stem_stride,
        options=architecture.options,
    )
    return SelectedLogits(network, architecture.selected) if architecture.selected else network
