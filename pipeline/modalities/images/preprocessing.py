"""Preprocessing of images: size, channels and normalisation, stored with a model's weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, get_args

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.forms import require_form
from pipeline.modalities.images.rendering.pixel_ops import grey
from pipeline.modalities.images.rendering.resample import Interpolation
from pipeline.modalities.images.rendering.views import ImageViews
from pipeline.modalities.images.spec import ViewSpec
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles

# One rule for every image a model sees, in training and deployment: oriented according to EXIF.
ORIENTATION: Literal["exif"] = "exif"
_MOST_PIXELS = 4096
_Channel = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """From uint8 pixels to a model's input.

    Args:
        size: height and width of the input in pixels.
        mean, std: per channel of the model's input, for pixels scaled to 0..1.
        crop_fraction: share of the short side that the un-augmented centre crop shows, in (0, 1].
        interpolation: filter of the resize, with antialiasing.

    Raises:
        ModelError: an unknown interpolation.

    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in get_args(Interpolation):
            raise ModelError(
                f"the model needs {self.interpolation!r} interpolation; expected "
                f"{' or '.join(get_args(Interpolation))}; choose a different model"
            )

    @property
    def side(self) -> int:
        """Height and width of the input in pixels."""
        return self.size

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, without the default interpolation, bilinear."""
        plain = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if self.interpolation == "bilinear":
            del plain["interpolation"]
        return plain

    def identity(self) -> dict[str, Any]:
        """Return all settings."""
        return self.to_dict()

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing described by `to_dict`."""
        return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Parse a preprocessing from untrusted values.

        Raises:
            ValueError: a value is out of range; the message names the first.
        """
        require_form(_Form, value, "preprocessing")
        # Built from the original numbers, 1 or 1.0: they are part of a teacher's digest.
        return cls.from_dict(value)

    def with_size(self, size: int) -> Preprocessing:
        """Return the same preprocessing for images of a different side."""
        return replace(self, size=size)

    def seen(self, pixels: Tensor) -> Tensor:
        """Map (B, S, S, c) uint8 to the colours that the model sees: (B, S, S, channels) uint8.

        Grey images are repeated for a model of three channels. A model of one channel sees the luma of
        colour images.
        """
        fewer = pixels.shape[3] > self.channels
        seen = grey(pixels)[..., None].to(torch.uint8) if fewer else pixels
        return seen.expand(-1, -1, -1, self.channels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Map (B, S, S, c) uint8 to (B, channels, S, S) float32, channels-last in memory.

        Applied after `seen`; runs on the device of the images.
        """
        batch, height, width, _ = pixels.shape
        lines = self.seen(pixels).reshape(batch, height, width * self.channels)
        scale, shift = _lines(self.mean, self.std, width, pixels.device)
        values = lines.float()
        torch.addcmul(shift, values, scale, out=values)
        return values.view(batch, height, width, self.channels).permute(0, 3, 1, 2)

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return images (count, size, size, channels) uint8 on the CPU: black, or a generator's noise."""
        shape = count, self.size, self.size, self.channels
        if generator is None:
            return torch.zeros(shape, dtype=torch.uint8)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def with_normalisation(self, network: nn.Module) -> nn.Module:
        """Return a network that takes the output of `seen` and normalises it internally."""
        return Normalised(network, self.mean, self.std)

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return the facts that users of an exported network need, as plain values.

        Args:
            normalises: whether the network takes the output of `seen`; if not, that of `normalise`.
        """
        return {
            "input": {
                "dtype": "uint8" if normalises else "float32",
                "layout": "NHWC" if normalises else "NCHW",
                "colour": "grey" if self.channels == 1 else "RGB",
                "normalised": not normalises,
            },
            "preprocessing": {
                **self.notes(),
                "crop": "centred square of crop_fraction of the short side",
                "antialias": True,
                "normalisation": "(pixel / 255 - mean) / std",
                **self.to_dict(),
                "interpolation": self.interpolation,
            },
        }

    def attachments(self) -> dict[str, bytes]:
        """Return no files."""
        return {}

    def notes(self) -> dict[str, str]:
        """Return rules common to all models of images, for the model card."""
        return {"orientation": ORIENTATION}

    def renderer(
        self,
        samples: Split,
        views: ViewSpec | None,
        pairing: Pairing | Singles,
        *,
        device: torch.device,
        on_device: bool | None,
    ) -> ImageViews:
        """Return a renderer of a split for this preprocessing; see `modality.Preprocessing`."""
        return ImageViews(samples, views, pairing, self, device=device, on_device=on_device)


class Normalised(nn.Module):
    """A network with its normalisation in front: (B, S, S, channels) uint8 to logits (B, C).

    Args:
        network: network that takes normalised images.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", 1 / (255 * deviations))
        self.register_buffer("shift", -means / deviations)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of pixels (B, S, S, channels) uint8."""
        normalised = images.float() * self.scale + self.shift
        logits: Tensor = self.network(normalised.permute(0, 3, 1, 2))
        return logits


class _Form(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=1, le=_MOST_PIXELS)]
    mean: Annotated[list[_Channel] | tuple[_Channel, ...], Field(min_length=1, max_length=3)]
    std: list[Annotated[_Channel, Field(gt=0)]] | tuple[Annotated[_Channel, Field(gt=0)], ...]
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Interpolation = "bilinear"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> _Form:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} standard deviations; expected one of each "
                "per channel"
            )
        return self


@functools.lru_cache(maxsize=64)
def _lines(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift (width * channels,) of a line of pixels 0..255.

    Whole lines: broadcasting three numbers over the innermost dimension takes a CPU six times as long.
    Cached, because copying them waits for a device.
    """
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width)
        return scale.to(device), shift.to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPreprocessing:
    """Overrides of a model's preprocessing; None keeps the value of the weights or of the data.

    Args:
        size: height and width of the input in pixels, 8 to 1024.
        mean, std: one value per channel (1 or 3), for pixels scaled to 0..1.
        crop_fraction: share of the short side inside the un-augmented centre crop, in (0, 1].
        interpolation: resize filter, bilinear or bicubic.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_fraction: float | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        checks = {
            "size": (self.size is None or 8 <= self.size <= 1024, "8 to 1024 pixels"),
            "mean": (
                self.mean is None or (len(self.mean) in (1, 3) and all(0 <= v <= 1 for v in self.mean)),
                "one or three values between 0 and 1, for pixels scaled to 0..1",
            ),
            "std": (
                self.std is None or (len(self.std) in (1, 3) and all(0 < v <= 1 for v in self.std)),
                "one or three values above 0 and up to 1, for pixels scaled to 0..1",
            ),
            "crop_fraction": (
                self.crop_fraction is None or 0 < self.crop_fraction <= 1,
                "more than 0 and at most 1",
            ),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    def said(self) -> dict[str, Any]:
        """Return the given settings, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, known: Preprocessing) -> Preprocessing:
        """Return a known preprocessing with the given settings replaced.

        Raises:
            ModelError: mean and std have different numbers of channels.
        """
        changed = replace(known, **self.said())
        if len(changed.mean) != len(changed.std):
            raise ModelError(
                f"preprocessing has {len(changed.mean)} means and {len(changed.std)} standard deviations; "
                "expected one of each per channel; set both mean and std"
            )
        return changed

    def alone(self, origin: str) -> Preprocessing:
        """Return the preprocessing of a model without a known one.

        Raises:
            ModelError: size, mean or std is missing.
        """
        missing = [name for name in ("size", "mean", "std") if getattr(self, name) is None]
        if self.size is None or self.mean is None or self.std is None:
            raise ModelError(
                f"{origin} does not specify its preprocessing; expected preprocessing: {{size, mean, "
                f"std}} of the model in params.yaml, which lacks {', '.join(missing)}; add it"
            )
        return self.over(Preprocessing(size=self.size, mean=self.mean, std=self.std))
