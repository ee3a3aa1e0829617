"""Residual networks for small images, as the distillation literature uses them.

Owns the architecture alone: weights come from `weights.py`, names from `literature.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _Block(nn.Module):
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
                _group(channels[i], channels[i + 1], blocks=(depth - 2) // 6, stride=1 + (i > 0))
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


def _group(channels_in: int, channels_out: int, *, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(channels_in, channels_out, stride),
        *(_Block(channels_out, channels_out, 1) for _ in range(blocks - 1)),
    )


def cifar_resnet(depth: int, *, wide: bool = False) -> Callable[[int], CifarResNet]:
    """Return the builder of a ResNet of this depth, 16-16-32-64 channels or, wide, 32-64-128-256."""
    channels = (32, 64, 128, 256) if wide else (16, 16, 32, 64)

    def build(num_classes: int) -> CifarResNet:
        return CifarResNet(depth=depth, channels=channels, num_classes=num_classes)

    return build
