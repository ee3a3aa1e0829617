"""How a model wants its images: size, channels, normalisation. It travels with the weights."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.rendering.colour import grey


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """From uint8 pixels to a model's input.

    Args:
        size: height and width of the input in pixels.
        mean, std: per channel of the model's input, for pixels scaled to 0..1.
        crop_fraction: share of the short side that the un-augmented centre crop shows, in (0, 1].

    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_dict` described."""
        return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})

    def normalise(self, pixels: Tensor) -> Tensor:
        """Map (B, S, S, c) uint8 to (B, channels, S, S) float32, channels-last in memory.

        Grey images are repeated for a model of three channels; of colour images a model of one sees the
        luma. On the images' own device.
        """
        if pixels.shape[3] > self.channels:
            pixels = grey(pixels)[..., None]
        batch, height, width, _ = pixels.shape
        lines = pixels.expand(-1, -1, -1, self.channels).reshape(batch, height, width * self.channels)
        scale, shift = _lines(self.mean, self.std, width, pixels.device)
        values = lines.float()
        torch.addcmul(shift, values, scale, out=values)
        return values.view(batch, height, width, self.channels).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _lines(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift (width * channels,) of a line of pixels 0..255.

    Whole lines, since broadcasting three numbers over the innermost dimension costs a CPU six times as
    much. Made once, as making it waits for a device.
    """
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width)
        return scale.to(device), shift.to(device)
