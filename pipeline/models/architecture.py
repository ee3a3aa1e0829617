"""Build networks by name: nets of the literature, torchvision and timm classifiers, the user's own code.

Owns model names and the choice of a family for each name. Every family has a separate module. Weights and
preprocessing live in other modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError, did_you_mean, quoted
from pipeline.modalities.families import IMAGENET_STEM_STRIDE, Family
from pipeline.modalities.table import families
from pipeline.models.embedder import Embedder, Normalise
from pipeline.models.heads import SelectedLogits
from pipeline.models.own_code import OwnCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything needed to build an untrained network.

    Args:
        name: a net of the literature, a torchvision classifier, `timm:NAME`, or `module:callable`.
        num_classes: C, the number of logits.
        channels: number of input channels.
        stem_stride: factor by which the stem shrinks images: 4 is the original, 2 or 1 suit small images.
        options: keyword arguments of the network's builder, e.g. `{width_mult: 0.5}`.
        selected: indices of the logits to keep, in this order; empty keeps all.
        output: the embedding that is the network's output, see `embedder.py`; "" for the network's own.
        normalise: of embeddings: none, length or features.
        width: D, the length of normalised embeddings; 0 without.

    """

    name: str
    num_classes: int
    channels: int = 3
    stem_stride: int = IMAGENET_STEM_STRIDE
    options: Mapping[str, Any] = field(default_factory=dict)
    selected: tuple[int, ...] = ()
    output: str = ""
    normalise: Normalise = "none"
    width: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, without `selected` and the embedding if they are not set."""
        plain = {**asdict(self), "options": dict(self.options), "selected": list(self.selected)}
        unset = {"selected": [], "output": "", "normalise": "none", "width": 0}
        return {k: v for k, v in plain.items() if k not in unset or v != unset[k]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Architecture:
        """Return the architecture from the values of `to_dict`."""
        return cls(**{**value, "selected": tuple(value.get("selected", ()))})


def source_of(name: str, listed: Sequence[Family] = ()) -> Family:
    """Return the first family that knows a model name.

    Args:
        name: of the model.
        listed: the families that the error lists; if empty, those of all modalities.

    Raises:
        ModelError: no family knows the name.
    """
    for family in chain(families(), [OwnCode()]):
        if family.knows(name):
            return family
    expected = (*(listed or families()), OwnCode())
    hint = did_you_mean(name, [known for family in expected for known in family.names()])
    raise ModelError(
        f"model {quoted(name)} is unknown{f'{hint} Expected' if hint else '; expected'} "
        f"{', '.join(family.described for family in expected)}"
    )


def build(architecture: Architecture) -> nn.Module:
    """Build a network with fresh weights.

    Raises:
        ModelError: the name or an option is unknown, or the stem does not allow this stride.

    """
    network = source_of(architecture.name).build(
        architecture.name,
        num_classes=architecture.num_classes,
        channels=architecture.channels,
        stem_stride=architecture.stem_stride,
        options=architecture.options,
    )
    if architecture.output or architecture.normalise != "none":
        return Embedder(network, architecture.output, architecture.normalise, architecture.width)
    return SelectedLogits(network, architecture.selected) if architecture.selected else network
