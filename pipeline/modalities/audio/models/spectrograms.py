"""Networks that see log-mel spectrograms (B, 1, n_mels, frames): DS-CNN and BC-ResNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DsCnn(nn.Module):
    """A convolution of 4 bands by 10 frames, then depthwise separable ones of 3 x 3.

    Args:
        num_classes: C, the number of logits.
        width: channels; the paper's S, M and L have 64, 172 and 276.
        blocks: number of separable convolutions; the paper's S, M and L have 4, 4 and 5.

    Source: Zhang et al., "Hello Edge: keyword spotting on microcontrollers", arXiv 1711.07128.
    """

    def __init__(self, *, num_classes: int, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        stem = nn.Conv2d(1, width, (4, 10), 2, (1, 4), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        self.layers = nn.Sequential(*stem, *(layer for _ in range(blocks) for layer in _separable(width)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map spectrograms (B, 1, n_mels, frames) to logits (B, C)."""
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits


def _separable(width: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    pointwise = nn.Conv2d(width, width, 1, bias=False)
    return [depthwise, nn.BatchNorm2d(width), nn.ReLU(), pointwise, nn.BatchNorm2d(width), nn.ReLU()]


class BcResNet(nn.Module):
    """Broadcasted residuals: two-dimensional features of frequency, plus what time alone adds to them.

    Args:
        num_classes: C, the number of logits.
        scale: factor on the channels, the paper's tau: 1, 1.5, 2, 3, 6 or 8.
        dropout: share of the temporal features that training leaves out.

    Source: Kim et al., "Broadcasted residual learning for efficient keyword spotting", arXiv 2106.04140,
    table 1.
    """

    bands = 5  # of the sub-spectral norms; 40 mel bands become 20, 10 and 5

    def __init__(self, *, num_classes: int, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        stem, *widths, last = (round(scale * channels) for channels in (16, 8, 12, 16, 20, 32))
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        # (blocks, stride along frequency, dilation along time) of each stage.
        stages = ((2, 1, 1), (2, 2, 2), (4, 2, 4), (4, 1, 8))
        blocks, before = [], stem
        for width, (count, stride, dilation) in zip(widths, stages, strict=True):
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(_Broadcast(before, width, step, dilation, dropout, self.bands))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.after = nn.Sequential(
            nn.Conv2d(before, before, 5, padding=(0, 2), groups=before, bias=False),
            nn.Conv2d(before, last, 1, bias=False),
            nn.BatchNorm2d(last),
            nn.ReLU(),
        )
        self.head = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map spectrograms (B, 1, n_mels, frames) to logits (B, C); n_mels is a multiple of 40."""
        if x.shape[2] % (8 * self.bands):
            raise ValueError(f"{x.shape[2]} mel bands; expected a multiple of 40; set n_mels")
        logits: Tensor = self.head(self.after(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


class _Broadcast(nn.Module):
    """A block: f2 along frequency, f1 along time on its mean, added to every frequency."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, dilation: int, dropout: float, bands: int
    ) -> None:
        super().__init__()
        self._keeps = channels_in == channels_out and stride == 1
        widen = nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
        width = channels_out
        self.widen = nn.Identity() if channels_in == channels_out else nn.Sequential(*widen)
        self.along_frequency = nn.Sequential(
            nn.Conv2d(width, width, (3, 1), (stride, 1), (1, 0), groups=width, bias=False),
            _SubSpectralNorm(width, bands),
        )
        self.along_time = nn.Sequential(
            nn.Conv2d(width, width, (1, 3), 1, (0, dilation), (1, dilation), width, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        detailed = self.along_frequency(self.widen(x))
        summed = detailed + self.along_time(detailed.mean(2, keepdim=True))
        return torch.relu(summed + x if self._keeps else summed)


class _SubSpectralNorm(nn.Module):
    """A batch norm for each band of neighbouring frequencies.

    Source: Chang et al., "Subspectral normalization for neural audio data processing", arXiv 2103.13620.
    """

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        self._bands = bands
        self.norm = nn.BatchNorm2d(channels * bands)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        banded = x.reshape(count, channels * self._bands, height // self._bands, width)
        normed: Tensor = self.norm(banded).reshape(count, channels, height, width)
        return normed
