"""Networks for small images from the literature, under the names of their papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError
from pipeline.modalities.families import Family, Pretrained, call_builder, unknown_weights
from pipeline.modalities.images.models.torchvision import fit_channels

# (architecture, weights) -> a file in ../builtin, with its card beside it.
BUILTIN: Mapping[tuple[str, str], str] = {
    ("wrn_16_2", "FASHION_MNIST_V1"): "wrn_16_2-fashion_mnist_v1.safetensors",
}


class _ResidualBlock(nn.Module):
    """Post-activation residual block: 3x3 convolution, BN, ReLU, 3x3 convolution, BN."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )
            if stride != 1 or channels_in != channels_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.conv2(torch.relu_(self.norm1(self.conv1(x)))))
        return torch.relu_(out.add_(self.shortcut(x)))


class CifarResNet(nn.Module):
    """ResNet-depth: three groups of (depth - 2) / 6 post-activation blocks, projected shortcuts.

    Args:
        depth: number of convolutions on the longest path and the last layer, 6 k + 2.
        channels: of the stem and of the three groups.
        num_classes: C, the number of logits.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2, with
    the projected shortcuts (option B) and the wider variants of Tian et al., "Contrastive Representation
    Distillation", arXiv 1910.10699.

    """

    def __init__(self, *, depth: int, channels: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        self.groups = nn.Sequential(
            *(
                _residual_group(channels[i], channels[i + 1], blocks=(depth - 2) // 6, stride=1 + (i > 0))
                for i in range(3)
            )
        )
        self.head = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float to logits (B, C)."""
        x = self.groups(torch.relu_(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _residual_group(channels_in: int, channels_out: int, *, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _ResidualBlock(channels_in, channels_out, stride),
        *(_ResidualBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)),
    )


def cifar_resnet(depth: int, *, wide: bool = False) -> Callable[[int], CifarResNet]:
    """Return the builder of a ResNet of this depth, 16-16-32-64 channels or, wide, 32-64-128-256."""
    channels = (32, 64, 128, 256) if wide else (16, 16, 32, 64)

    def build(num_classes: int) -> CifarResNet:
        return CifarResNet(depth=depth, channels=channels, num_classes=num_classes)

    return build


class _Block(nn.Module):
    """Pre-activation residual block: BN, ReLU, 3x3 convolution, twice."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            if stride != 1 or channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu_(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(torch.relu_(self.norm2(self.conv1(activated))))
        return out.add_(shortcut)


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of (depth - 4) / 6 pre-activation blocks.

    Args:
        depth: number of convolutions, 6 k + 4.
        width: factor on the channel counts 16, 32, 64.
        num_classes: C, the number of logits.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146.

    """

    def __init__(self, *, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.groups = nn.Sequential(
            *(
                _group(channels[i], channels[i + 1], blocks=(depth - 4) // 6, stride=1 + (i > 0))
                for i in range(3)
            )
        )
        self.norm = nn.BatchNorm2d(channels[3])
        self.head = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float to logits (B, C)."""
        x = torch.relu_(self.norm(self.groups(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _group(channels_in: int, channels_out: int, *, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(channels_in, channels_out, stride),
        *(_Block(channels_out, channels_out, 1) for _ in range(blocks - 1)),
    )


def wide_resnet(depth: int, width: int) -> Callable[[int], WideResNet]:
    """Return the builder of WRN-depth-width."""

    def build(num_classes: int) -> WideResNet:
        return WideResNet(depth=depth, width=width, num_classes=num_classes)

    return build


NETS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet8": cifar_resnet(8),
    "resnet14": cifar_resnet(14),
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


class Literature(Family):
    """The networks of the table above; they have one stem and take images of any side."""

    described = ", ".join(NETS)

    def knows(self, name: str) -> bool:
        """Whether a name is in the table."""
        return name in NETS

    def names(self) -> list[str]:
        """Return all names."""
        return list(NETS)

    def stem_stride(self, name: str, image_size: int) -> int:
        """Return 1: these networks are for small images."""
        return 1

    def build(
        self, name: str, *, num_classes: int, channels: int, stem_stride: int, options: Mapping[str, Any]
    ) -> nn.Module:
        """Build a network with fresh weights.

        Raises:
            ModelError: an option or a stem stride is given; these networks have neither.
        """
        if stem_stride != 1:
            raise ModelError(f"model {name} has stem_stride {stem_stride}; it supports only 1")
        network = call_builder(name, NETS[name], options, num_classes=num_classes)
        fit_channels(network, channels)
        return network

    def packaged(self, name: str, weights: str) -> tuple[Traversable, str] | None:
        """Return the folder in this package and the name of a weights file in it, or None."""
        file = BUILTIN.get((name, weights))
        return None if file is None else (files("pipeline.modalities.images") / "builtin", file)

    def pretrained(self, name: str, weights: str, options: Mapping[str, Any]) -> Pretrained:
        """Refuse: weights of these networks are checkpoints, from `BUILTIN` or by path."""
        raise unknown_weights(name, weights, [known for model, known in BUILTIN if model == name])
