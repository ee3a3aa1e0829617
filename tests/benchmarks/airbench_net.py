"""Fast networks for CIFAR-10, a wide and a narrow one, after the description of airbench.

From the paper: a frozen first layer that whitens 2 x 2 patches, convolutions that begin as partial
identities, norms without a scale whose biases learn 64 times as fast, GELU, and logits divided by 9.

Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Widths = tuple[int, int, int]
WIDE: Widths = (96, 320, 320)
NARROW: Widths = (32, 128, 128)
_PATCH = 2
# Added to the patches' variances, so that directions of little variance are not blown up.
_LEAST_VARIANCE = 5e-4
# An effective rate of 64 with one rate for all parameters: bias = 8 b changes by 8 * 8 times b's own step.
_BIAS_SCALE = 8.0
_LOGIT_SCALE = 1 / 9


def teacher(num_classes: int) -> nn.Module:
    """Return the wide network, 3.1 M parameters."""
    return FastNet(WIDE, num_classes)


def student(num_classes: int) -> nn.Module:
    """Return the narrow network, 0.5 M parameters."""
    return FastNet(NARROW, num_classes)


class FastNet(nn.Module):
    """Whitening, three groups of two convolutions, each at half the size, and a linear layer.

    Args:
        widths: channels of the groups.
        num_classes: C, the number of logits.
    """

    def __init__(self, widths: Widths, num_classes: int) -> None:
        super().__init__()
        whiten = Whitening()
        inputs = (whiten.channels, *widths[:-1])
        groups = [_group(narrow, wide) for narrow, wide in zip(inputs, widths, strict=True)]
        self.body = nn.Sequential(whiten, nn.GELU(), *groups, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) float to logits (B, C)."""
        logits: Tensor = self.head(self.body(x) * _LOGIT_SCALE)
        return logits


class Whitening(nn.Module):
    """A frozen 2 x 2 convolution whose outputs are uncorrelated on the first batch, with a trained bias.

    Its filters are the eigenvectors of the covariance of patches, each divided by the square root of its
    eigenvalue, and their negatives. They are found in the first training batch, and then kept.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        values = 3 * _PATCH**2
        self.channels = 2 * values
        self.register_buffer("weight", torch.zeros(self.channels, 3, _PATCH, _PATCH))
        self.bias = nn.Parameter(torch.zeros(self.channels))
        self._is_found = False
        self.register_load_state_dict_post_hook(_note_filters)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, 24, H - 1, W - 1)."""
        if self.training and not self._is_found:
            self.weight.copy_(whitening_filters(x))
            self._is_found = True
        return F.conv2d(x, self.weight, self.bias)


def _note_filters(module: nn.Module, _: Any) -> None:
    """Note that loaded weights have filters; zeros are those of a network that was never trained."""
    assert isinstance(module, Whitening)
    module._is_found = bool(module.weight.any())


@torch.no_grad()
def whitening_filters(images: Tensor) -> Tensor:
    """Return filters (24, 3, 2, 2) that whiten the patches of images (B, 3, H, W)."""
    with torch.autocast(images.device.type, enabled=False):
        patches = F.unfold(images.float(), _PATCH).transpose(1, 2).flatten(0, 1)  # (B * positions, 12)
        variances, directions = torch.linalg.eigh(patches.T.cov())
        filters = directions.T / (variances + _LEAST_VARIANCE).sqrt()[:, None]
    return torch.cat([filters, -filters]).reshape(-1, 3, _PATCH, _PATCH)


def _group(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(channels_in, channels_out),
        nn.MaxPool2d(2),
        Norm(channels_out),
        nn.GELU(),
        _convolution(channels_out, channels_out),
        Norm(channels_out),
        nn.GELU(),
    )


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution whose first outputs are its inputs."""
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:channels_in])
    return layer


class Norm(nn.Module):
    """Batch norm without a scale, whose bias learns 64 times as fast as other parameters.

    Args:
        channels: of its input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4, affine=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, channels, H, W)."""
        out: Tensor = self.norm(x) + _BIAS_SCALE * self.bias[:, None, None]
        return out
