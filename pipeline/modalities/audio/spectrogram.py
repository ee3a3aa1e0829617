"""Waveforms to a model's floats, on their device: resampling, framing, log-mel spectrograms.

Two forms of one transform. Training uses torch.stft, which is fast. Exported networks use a matrix of sines
and cosines: ONNX has no complex numbers, and a product is the same to rounding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.modalities.audio.resampling import make_resampler

FULL_SCALE = 32_768.0
# Added to each power before the logarithm: 60 dB below a sine at full scale in one band, about 1.
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Settings of a log-mel spectrogram, named as in torchaudio's MelSpectrogram.

    Args:
        sample_rate: samples per second.
        n_fft: length of the Fourier transform in samples.
        win_length: length of Hann's window in samples, at most n_fft.
        hop_length: samples from one frame to the next.
        n_mels: number of mel bands.
        f_min, f_max: lowest and highest frequency in Hz.
    """

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    f_min: float
    f_max: float

    def count(self, samples: int) -> int:
        """Return the number of frames of this many samples."""
        return 1 + samples // self.hop_length


def resampled(waves: Tensor, rate: int, target: int) -> Tensor:
    """Resample waveforms (B, T) float32; see `resampling.py` for the filter."""
    if rate == target:
        return waves
    resampler = make_resampler(target, rate)
    length, kernel = resampler.length(waves.shape[1]), resampler.matrix.shape[0]
    # A block makes `up` outputs, and its inputs begin `reach` - 1 samples before it: silence there. E.g.
    # up 2, down 3, reach 27, 9 samples: 6 outputs in 3 blocks; 26 zeros before, and after them
    # 2 * 3 + 55 - 26 - 9 = 26.
    blocks = -(-length // resampler.up)
    before = resampler.reach - 1
    after = (blocks - 1) * resampler.down + kernel - before - waves.shape[1]
    padded = F.pad(waves, (before, max(after, 0)))
    # (B, up, blocks) -> (B, blocks, up) -> (B, blocks * up)
    phases = F.conv1d(padded[:, None], _kernels(target, rate, waves.device), stride=resampler.down)
    return phases[:, :, :blocks].transpose(1, 2).flatten(1)[:, :length]


def log_mels(waves: Tensor, frames: Frames) -> Tensor:
    """Map waveforms (B, T) float32 to natural logarithms of mel powers (B, n_mels, frames)."""
    window, bands = _window(frames, waves.device), _bands(frames, waves.device)
    spectra = torch.stft(
        waves,
        frames.n_fft,
        frames.hop_length,
        frames.win_length,
        window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return _logarithm(bands @ (spectra.real.square() + spectra.imag.square()))


def _logarithm(powers: Tensor) -> Tensor:
    return (powers + _FLOOR).log()


class LogMels(nn.Module):
    """`log_mels` as a module of real numbers, for export.

    Args:
        frames: settings of the spectrogram.
    """

    waves: Tensor
    bands: Tensor

    def __init__(self, frames: Frames) -> None:
        super().__init__()
        self._frames = frames
        self.register_buffer("waves", _transform(frames))
        self.register_buffer("bands", _bands(frames, torch.device("cpu")))

    def forward(self, waves: Tensor) -> Tensor:
        """Return log-mel powers (B, n_mels, frames) of waveforms (B, T)."""
        half = self._frames.n_fft // 2
        padded = F.pad(waves, (half, half))[:, None]
        # (B, 2 * bins, frames): cosines, then sines.
        parts = F.conv1d(padded, self.waves, stride=self._frames.hop_length)
        cosines, sines = parts.square().chunk(2, 1)
        return _logarithm(self.bands @ (cosines + sines))


def _transform(frames: Frames) -> Tensor:
    """Return windowed cosines and sines (2 * bins, 1, n_fft) of a Fourier transform."""
    places = torch.arange(frames.n_fft, dtype=torch.float64)
    bins = torch.arange(frames.n_fft // 2 + 1, dtype=torch.float64)
    angles = 2 * math.pi * bins[:, None] * places / frames.n_fft
    spare = frames.n_fft - frames.win_length
    hann = torch.hann_window(frames.win_length, dtype=torch.float64)
    window = F.pad(hann, (spare // 2, spare - spare // 2))
    return (torch.cat([angles.cos(), angles.sin()]) * window).float()[:, None]


@functools.lru_cache(maxsize=16)
def _kernels(target: int, rate: int, device: torch.device) -> Tensor:
    """Return the filters (up, 1, inputs of a block) of a resampler."""
    with torch.inference_mode(False):
        matrix = make_resampler(target, rate).matrix
        # Each column sums to 2^20 exactly.
        filters = torch.from_numpy(matrix.T / matrix[:, 0].sum()).float()
        return filters[:, None].contiguous().to(device)


@functools.lru_cache(maxsize=16)
def _window(frames: Frames, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(frames.win_length, dtype=torch.float64).float().to(device)


@functools.lru_cache(maxsize=16)
def _bands(frames: Frames, device: torch.device) -> Tensor:
    """Return triangular mel filters (n_mels, bins), of height 1, as in torchaudio with mel_scale htk."""
    with torch.inference_mode(False):
        low, high = (2595 * math.log10(1 + f / 700) for f in (frames.f_min, frames.f_max))
        mels = torch.linspace(low, high, frames.n_mels + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        bins = torch.linspace(0, frames.sample_rate / 2, frames.n_fft // 2 + 1, dtype=torch.float64)
        left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
        return torch.minimum(rising, falling).clamp(min=0).float().to(device)
