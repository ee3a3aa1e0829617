"""The literature's nets for small images, by the names that its papers give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pipeline.core.errors import ModelError
from pipeline.models.cifar_resnet import cifar_resnet
from pipeline.models.source import Pretrained, Source, call_builder, unknown_weights
from pipeline.models.stems import fit_channels
from pipeline.models.wide_resnet import wide_resnet

NETS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet20": cifar_resnet(20),
    "resnet32": cifar_resnet(32),
    "resnet56": cifar_resnet(56),
    "resnet110": cifar_resnet(110),
    "resnet8x4": cifar_resnet(8, wide=True),
    "resnet32x4": cifar_resnet(32, wide=True),
    "wrn_16_2": wide_resnet(16, 2),
    "wrn_40_1": wide_resnet(40, 1),
    "wrn_40_2": wide_resnet(40, 2),
}
# (architecture, weights) -> the file in pipeline/models/builtin, with its card beside it.
BUILTIN: Mapping[tuple[str, str], str] = {
    ("wrn_16_2", "FASHION_MNIST_V1"): "wrn_16_2-fashion_mnist_v1.safetensors",
}


class Literature(Source):
    """The table above; these nets have one stem and take images of any side."""

    def knows(self, name: str) -> bool:
        """Whether a name is in the table."""
        return name in NETS

    def names(self) -> list[str]:
        """Return all names."""
        return list(NETS)

    def stem_stride(self, name: str, image_size: int) -> int:
        """Return 1: these nets are for small images."""
        return 1

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a net with fresh weights.

        Raises:
            ModelError: an option or a stem, of which these nets have none.
        """
        if stem_stride != 1:
            raise ModelError(f"model {name} has stem_stride {stem_stride}; expected 1: it has no other")
        network = call_builder(name, NETS[name], options, num_classes=num_classes)
        fit_channels(network, channels)
        return network

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Refuse: the weights that these nets have are checkpoints, of `BUILTIN` or by path."""
        raise unknown_weights(name, weights, [known for model, known in BUILTIN if model == name])
