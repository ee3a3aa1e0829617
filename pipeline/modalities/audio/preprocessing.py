"""Preprocessing of clips: from (B, T) int16 to a model's waveforms or log-mel spectrograms.

It belongs to the model: teacher and student may have different rates, windows and bands on the same view.
All floating-point arithmetic is here, and runs on the device of the clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.core.arrays import spread
from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.forms import require_form
from pipeline.modalities.audio.form import HIGHEST_RATE, LOWEST_RATE, MOST_SAMPLES, AudioForm
from pipeline.modalities.audio.rendering import AudioViews
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.modalities.audio.spectrogram import FULL_SCALE, Frames, LogMels, log_mels, resampled
from pipeline.modalities.preprocessing import UsualPreprocessing
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles

Features = Literal["waveform", "log_mel"]
# Speech is quasi-stationary for about 25 ms; frames every 10 ms are usual since the 1980s.
_WINDOW_SECONDS, _HOP_SECONDS = 0.025, 0.01
_MELS, _LOWEST_HZ = 40, 20.0
_MEASURED, _AT_ONCE = 512, 64
_LEAST_STD = 1e-4
_SPECTRAL = ("features", "sample_rate", "n_fft", "win_length", "hop_length", "n_mels", "f_min", "f_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPreprocessing(UsualPreprocessing):
    """From int16 clips to a model's input: (B, 1, T) waveforms, or (B, 1, n_mels, frames).

    Args:
        size: T, samples of a rendered clip.
        rendered_rate: samples per second of rendered clips, those of the prepared data.
        sample_rate: samples per second that the model hears; clips are resampled if it differs.
        features: waveform, or log_mel, whose settings follow; named as in torchaudio's MelSpectrogram.
        n_fft, win_length, hop_length: lengths in samples of the Fourier transform, its window, its step.
        n_mels: number of mel bands.
        f_min, f_max: ends of the mel bands in Hz.
        mean, std: of the values before normalisation, over the training clips; None before they are
            measured, then 0 and 1 are used.
    """

    size: int
    rendered_rate: int
    sample_rate: int
    features: Features
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    f_min: float
    f_max: float
    mean: float | None = None
    std: float | None = None

    @classmethod
    def usual(cls, size: int, rendered_rate: int, sample_rate: int | None = None) -> AudioPreprocessing:
        """Return the usual log-mel spectrogram: windows of 25 ms, every 10 ms, 40 bands."""
        rate = sample_rate or rendered_rate
        window = round(_WINDOW_SECONDS * rate)
        return cls(
            size=size,
            rendered_rate=rendered_rate,
            sample_rate=rate,
            features="log_mel",
            n_fft=1 << math.ceil(math.log2(window)),
            win_length=window,
            hop_length=max(1, round(_HOP_SECONDS * rate)),
            n_mels=_MELS,
            f_min=_LOWEST_HZ,
            f_max=rate / 2,
        )

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> AudioPreprocessing:
        """Parse a preprocessing from untrusted values.

        Raises:
            ValueError: a value is out of range; the message names the first.
        """
        require_form(_Form, value, "preprocessing")
        return cls(**value)

    @property
    def channels(self) -> int:
        """One: clips are mono, and a spectrogram is a picture of one channel."""
        return 1

    @property
    def side(self) -> int:
        """Shorter side of the spectrogram, or the samples of the waveform."""
        return min(self.n_mels, self.frame_count) if self.features == "log_mel" else self._heard

    @property
    def frame_count(self) -> int:
        """Frames of the spectrogram."""
        return self._frames.count(self._heard)

    @property
    def _heard(self) -> int:
        """Samples of the waveform at the model's rate."""
        return -(-self.size * self.sample_rate // self.rendered_rate)

    @property
    def _frames(self) -> Frames:
        return Frames(
            sample_rate=self.sample_rate,
            n_fft=self.n_fft,
            win_length=self.win_length,
            hop_length=self.hop_length,
            n_mels=self.n_mels,
            f_min=self.f_min,
            f_max=self.f_max,
        )

    def _values(self, clips: Tensor) -> Tensor:
        """Map clips (B, T) int16 to values before normalisation, (B, T) or (B, n_mels, frames)."""
        waves = resampled(clips.float() / FULL_SCALE, self.rendered_rate, self.sample_rate)
        return waves if self.features == "waveform" else log_mels(waves, self._frames)

    def normalise(self, rendered: Tensor) -> Tensor:
        """Map clips (B, T) int16 to (B, 1, T) or (B, 1, n_mels, frames) float32, on their device."""
        return (self._values(rendered)[:, None] - (self.mean or 0.0)) / (self.std or 1.0)

    def measured(self, clips: Split) -> AudioPreprocessing:
        """Return the same preprocessing with mean and std over at most 512 clips of a training split.

        A value that is known already stays.
        """
        rows = spread(len(clips), _MEASURED)
        renderer, sums = AudioViews(clips, None, Singles(len(clips)), self), np.zeros(3)
        for part in np.array_split(rows, -(-len(rows) // _AT_ONCE)):
            values = self._values(renderer.render(0, part)).double()
            sums += values.numel(), float(values.sum()), float(values.square().sum())
        mean = 0.0 if self.features == "waveform" else sums[1] / sums[0]
        deviation = math.sqrt(max(sums[2] / sums[0] - mean**2, 0))
        return replace(
            self,
            mean=round(mean, 4) if self.mean is None else self.mean,
            std=max(round(deviation, 4), _LEAST_STD) if self.std is None else self.std,
        )

    def example(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return clips (count, T) int16 on the CPU: silence, or a generator's noise."""
        shape = count, self.size
        if generator is None:
            return torch.zeros(shape, dtype=torch.int16)
        return torch.randint(-9000, 9000, shape, generator=generator, dtype=torch.int16)

    def with_normalisation(self, network: nn.Module) -> nn.Module:
        """Return a network that takes clips (B, T) int16."""
        return _Listening(network, self)

    def deployed(self, *, normalises: bool) -> dict[str, Any]:
        """Return the facts that users of an exported network need, as plain values."""
        layouts = {"waveform": "(batch, 1, time)", "log_mel": "(batch, 1, mel band, frame)"}
        return {
            "input": {
                "dtype": "int16" if normalises else "float32",
                "layout": "(batch, time)" if normalises else layouts[self.features],
                "normalised": not normalises,
            },
            "preprocessing": {
                "crop": "the middle of longer clips, silence on both sides of shorter ones",
                "scale": "samples / 32768",
                "spectrogram": "power, Hann window, centred frames, padded with zeros, HTK mels, "
                "log(power + 1e-6)",
                "normalisation": "(value - mean) / std",
                **self.to_dict(),
            },
        }

    def renderer(
        self,
        samples: Split,
        views: AudioViewSpec | None,
        pairing: Pairing | Singles,
        *,
        device: torch.device,
        on_device: bool | None,
    ) -> AudioViews:
        """Return a renderer of a split for this preprocessing, on the CPU.

        Raises:
            ConfigError: rendering on a device was asked for.
            ModelError: the clips have another rate than the model's preprocessing expects.
        """
        if on_device:
            raise ConfigError("--render device, and clips are rendered on the CPU alone; use --render cpu")
        form = samples.form
        if isinstance(form, AudioForm) and form.sample_rate != self.rendered_rate:
            raise ModelError(
                f"the model's clips have {self.rendered_rate:,} samples per second, and the data's "
                f"{form.sample_rate:,}; expected the same; set data.sample_rate, or rendered_rate and size "
                "of the model's preprocessing"
            )
        return AudioViews(samples, views, pairing, self)


class _Listening(nn.Module):
    """A network with its preprocessing in front: (B, T) int16 to logits (B, C)."""

    def __init__(self, network: nn.Module, preprocessing: AudioPreprocessing) -> None:
        super().__init__()
        self.network, self._own = network, preprocessing
        is_spectral = preprocessing.features == "log_mel"
        self.features = LogMels(preprocessing._frames) if is_spectral else nn.Identity()

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits (B, C) of clips (B, T) int16."""
        own = self._own
        waves = resampled(clips.float() / FULL_SCALE, own.rendered_rate, own.sample_rate)
        values = (self.features(waves)[:, None] - (own.mean or 0.0)) / (own.std or 1.0)
        logits: Tensor = self.network(values)
        return logits


_Length = Annotated[int, Field(ge=1, le=1 << 16)]
_Rate = Annotated[int, Field(ge=LOWEST_RATE, le=HIGHEST_RATE)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Form(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    rendered_rate: _Rate
    sample_rate: _Rate
    features: Features
    n_fft: _Length
    win_length: _Length
    hop_length: _Length
    n_mels: Annotated[int, Field(ge=1, le=1024)]
    f_min: Annotated[_Number, Field(ge=0)]
    f_max: Annotated[_Number, Field(gt=0)]
    mean: _Number
    std: Annotated[_Number, Field(gt=0)]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        problem = contradiction(self)
        if problem:
            raise ValueError(problem)
        return self


def contradiction(settings: Any) -> str:
    """Return the first contradiction between settings of a spectrogram, in words; "" for none."""
    if settings.win_length > settings.n_fft:
        return f"win_length is {settings.win_length}; expected at most n_fft, {settings.n_fft}"
    if not settings.f_min < settings.f_max <= settings.sample_rate / 2:
        return (
            f"mel bands from {settings.f_min:g} to {settings.f_max:g} Hz; expected f_min below f_max, and "
            f"f_max at most half of sample_rate, {settings.sample_rate / 2:g}"
        )
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAudio:
    """Overrides of a model's preprocessing; None keeps the value of the weights or of the data.

    Args:
        size: samples of a rendered clip, at the data's sample rate.
        rendered_rate: samples per second of rendered clips.
        sample_rate: samples per second that the model hears, e.g. 8000 on data of 16000.
        features: waveform, or log_mel with the settings below.
        n_fft, win_length, hop_length: in samples at the model's rate.
        n_mels: number of mel bands.
        f_min, f_max: ends of the mel bands in Hz.
        mean, std: of the values before normalisation; measured on the training clips by default.
    """

    size: int | None = None
    rendered_rate: int | None = None
    sample_rate: int | None = None
    features: Features | None = None
    n_fft: int | None = None
    win_length: int | None = None
    hop_length: int | None = None
    n_mels: int | None = None
    f_min: float | None = None
    f_max: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        highest = {
            **dict.fromkeys(("size",), MOST_SAMPLES),
            **dict.fromkeys(("n_fft", "win_length", "hop_length"), 1 << 16),
            "n_mels": 1024,
        }
        for name, most in highest.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}; expected 1 to {most:,}")
        for name in ("sample_rate", "rendered_rate"):
            value = getattr(self, name)
            if value is not None and not LOWEST_RATE <= value <= HIGHEST_RATE:
                raise ConfigError(f"{name} is {value}; expected {LOWEST_RATE:,} to {HIGHEST_RATE:,}")
        if self.std is not None and not self.std > 0:
            raise ConfigError(f"std is {self.std}; expected more than 0")

    def said(self) -> dict[str, Any]:
        """Return the given settings, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, known: AudioPreprocessing) -> AudioPreprocessing:
        """Return a known preprocessing with the given settings replaced.

        A new sample rate brings the usual window of that rate. Mean and std are measured anew where a
        setting changes that they depend on.

        Raises:
            ModelError: the settings contradict each other.
        """
        base = known
        if self.sample_rate not in (None, known.sample_rate):
            usual = AudioPreprocessing.usual(known.size, known.rendered_rate, self.sample_rate)
            base = replace(usual, features=known.features, n_mels=known.n_mels)
        changed = replace(base, **self.said())
        if any(getattr(changed, name) != getattr(known, name) for name in _SPECTRAL):
            changed = replace(changed, mean=self.mean, std=self.std)
        problem = contradiction(changed)
        if problem:
            raise ModelError(f"preprocessing has {problem}; correct it")
        return changed

    def alone(self, origin: str) -> AudioPreprocessing:
        """Return the preprocessing of a model without a known one.

        Raises:
            ModelError: size, rendered_rate, features, mean or std is missing.
        """
        needed = ("size", "rendered_rate", "features", "mean", "std")
        missing = ", ".join(name for name in needed if getattr(self, name) is None)
        if self.size is None or self.rendered_rate is None or missing:
            raise ModelError(
                f"{origin} does not say how it wants its clips; expected preprocessing: "
                f"{{{', '.join(needed)}}} of the model in params.yaml, which lacks {missing}; add it"
            )
        return self.over(AudioPreprocessing.usual(self.size, self.rendered_rate))
