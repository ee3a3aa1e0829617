"""Wide residual networks for small images, as the distillation literature uses them.

Owns the architecture alone: weights come from `weights.py`, names from `literature.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
