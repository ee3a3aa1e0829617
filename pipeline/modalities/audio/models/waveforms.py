"""Networks that hear waveforms (B, 1, T): WaveNet and M5."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _GatedLayer(nn.Module):
    """A dilated causal convolution with gated activations, a residual and a skip connection."""

    def __init__(self, channels: int, skips: int, dilation: int, *, is_last: bool) -> None:
        super().__init__()
        self._before = dilation
        self.dilated = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(2 * channels)
        # Nothing would read the last layer's.
        self.residual = None if is_last else nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, skips, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, channels, T) to the next layer's input and to the skip connection (B, skips, T)."""
        filtered, gate = self.norm(self.dilated(F.pad(x, (self._before, 0)))).chunk(2, 1)
        gated = torch.tanh(filtered) * torch.sigmoid(gate)
        return x if self.residual is None else x + self.residual(gated), self.skip(gated)


class WaveNet(nn.Module):
    """Dilated causal convolutions on a waveform, pooled to one answer per clip.

    Three things differ from the paper. The stem has a stride, since a classifier need not predict every
    sample. The input is the waveform itself, not one of 256 levels. Each convolution has a batch norm.

    Args:
        num_classes: C, the number of logits.
        channels: of the residual connections.
        skips: channels of the skip connections.
        layers: per stack; dilations are 1, 2, 4, ... up to 2^(layers - 1).
        stacks: number of stacks.
        stride: of the stem, in samples.
        frame: steps of the stem that are averaged into one frame, 10 ms at 16 kHz by default.

    Source: van den Oord et al., arXiv 1609.03499; section 3.4 for the pooling and the layers after it.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int = 32,
        skips: int = 64,
        layers: int = 8,
        stacks: int = 3,
        stride: int = 8,
        frame: int = 20,
    ) -> None:
        super().__init__()
        self._before, self._frame = stride, frame
        self.stem = nn.Conv1d(1, channels, 2 * stride, stride)
        dilations = [1 << layer for _ in range(stacks) for layer in range(layers)]
        self.layers = nn.ModuleList(
            _GatedLayer(channels, skips, dilation, is_last=number == len(dilations))
            for number, dilation in enumerate(dilations, 1)
        )
        self.after = nn.Sequential(
            nn.BatchNorm1d(skips),
            nn.ReLU(),
            nn.Conv1d(skips, skips, 3, padding=1),
            nn.BatchNorm1d(skips),
            nn.ReLU(),
        )
        self.head = nn.Linear(skips, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms (B, 1, T) to logits (B, C)."""
        x = self.stem(F.pad(x, (self._before, 0)))
        skipped: list[Tensor] = []
        for layer in self.layers:
            x, skip = layer(x)
            skipped.append(skip)
        total = torch.stack(skipped).sum(0)
        frames = F.avg_pool1d(total, self._frame, ceil_mode=True)
        logits: Tensor = self.head(self.after(frames).mean(2))
        return logits


class M5(nn.Module):
    """Five layers on a waveform: one wide convolution, then four of three taps, each pooled by four.

    Args:
        num_classes: C, the number of logits.
        width: channels of the first two layers; the next ones have two and four times as many.

    Source: Dai et al., "Very deep convolutional neural networks for raw waveforms", arXiv 1610.00087,
    table 1.
    """

    def __init__(self, *, num_classes: int, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = _layer(1, width, 80, 4)
        for before, after in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += _layer(before, after, 3, 1)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms (B, 1, T) to logits (B, C)."""
        logits: Tensor = self.head(self.layers(x).mean(2))
        return logits


def _layer(channels_in: int, channels_out: int, taps: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv1d(channels_in, channels_out, taps, stride, padding=taps // 2, bias=False)
    return [convolution, nn.BatchNorm1d(channels_out), nn.ReLU(), nn.MaxPool1d(4)]
