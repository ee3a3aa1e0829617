"""Render the views of a split of clips: (B, T) int16, the same for every model of one clip length.

Everything is exact: integers, or float64 that holds them exactly. So a clip's samples depend on neither the
batch, the order, the thread nor the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import cache, lru_cache
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Rows
from pipeline.core.random import Draws
from pipeline.modalities.audio.draw import (
    DB_STEPS,
    ClipParameters,
    Ints,
    NoiseDraws,
    clip_parameters,
    draw_levels,
    plain_parameters,
)
from pipeline.modalities.audio.filters import in_fixed_point, lowpass, mel_edges, power_of_ten
from pipeline.modalities.audio.form import AudioForm
from pipeline.modalities.audio.noise import Noises, open_noises
from pipeline.modalities.audio.operations import BANDS, SPEED_STEPS
from pipeline.modalities.audio.resampling import LOUDEST, Span, make_resampler, rounded, window
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.modalities.preprocessing import UsualRenderer
from pipeline.samples.packed import Split
from pipeline.views.pairing import Pairing, Singles
from pipeline.views.shares import WHOLE

Clips = NDArray[np.int16]  # (B, T)

_SCALE_BITS = 20
_FILTER_BITS = 16
# Taps on each side of a band-stop filter. At 16 kHz its edges are 160 Hz wide.
_FILTER_REACH = 255
_AT_ONCE = 8
# Zero crossings of the filter that changes the speed; torchaudio's default is 6.
_SPEED_ZEROS = 8


class Seen(Protocol):
    """The part of a model's preprocessing that decides rendering."""

    @property
    def size(self) -> int:
        """T, samples of the rendered clip."""


class AudioViews(UsualRenderer):
    """Renders the views of a split for one clip length.

    Args:
        clips: the split.
        spec: the views; None for un-augmented clips.
        pairing: mixing partners.
        seen: the model's preprocessing.

    Raises:
        DataError: background noise is missing or unreadable.
        MismatchError: the noise is not the one that the views were made with.
    """

    dtype = torch.int16

    def __init__(
        self, clips: Split, spec: AudioViewSpec | None, pairing: Pairing | Singles, seen: Seen
    ) -> None:
        self._clips, self._spec, self._pairing, self._seen = clips, spec, pairing, seen
        self._rate = cast(AudioForm, clips.form).sample_rate
        noise = None if spec is None else spec.noise
        self._noises = None if noise is None else open_noises(noise.folder, noise.digest, self._rate)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a rendered clip: (T,)."""
        return (self._seen.size,)

    def for_model(self, preprocessing: Seen) -> AudioViews:
        """Return a renderer of the same views for a different model."""
        other = copy(self)
        other._seen = preprocessing
        return other

    def parameters(self, view: int, rows: Rows) -> ClipParameters:
        """Return the parameters of these rows (B,) in one view."""
        lengths, size = self._clips.shapes[rows, 0].astype(np.int64), self._seen.size
        if self._spec is None:
            return plain_parameters(lengths, size)
        return clip_parameters(
            self._spec, view=view, keys=self._clips.keys[rows], lengths=lengths, size=size, rate=self._rate
        )

    def render(self, view: int, rows: Rows) -> Tensor:
        """Render rows (B,) of one view: (B, T) int16."""
        if not self._pairing.mixes:
            return torch.from_numpy(self._rendered(rows, self.parameters(view, rows)))
        both = np.concatenate([rows, self._pairing.partners(view, rows)])
        # Rows [4, 9] with partners [9, 2] need clips 2, 4 and 9 once each: own [1, 2], partners [2, 0].
        needed, places = np.unique(both, return_inverse=True)
        parameters = self.parameters(view, needed)
        plain = self._rendered(needed, parameters)
        own, partners = np.split(places, 2)
        levels = parameters.levels
        mixed = plain[own] if levels is None else mix(plain[own], plain[partners], levels[own])
        return torch.from_numpy(mixed)

    def shares(self, view: int, rows: Rows) -> NDArray[np.float64] | None:
        """Return each row's share (B,) in its own mixture, or None without mixing."""
        if self._spec is None:
            return None
        levels = draw_levels(self._spec, Draws(self._spec.seed, view, self._clips.keys[rows]))
        return None if levels is None else levels / WHOLE

    def _rendered(self, rows: Rows, drawn: ClipParameters) -> Clips:
        """Return unmixed clips (B, T)."""
        clips = np.empty((len(rows), self._seen.size), np.int16)
        # A few clips at a time stay in the processor's cache.
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._render_into(clips[part], rows[part], drawn[part])
        return clips

    def _render_into(self, clips: Clips, rows: Rows, drawn: ClipParameters) -> None:
        play(clips, [self._clips.array(row) for row in rows.tolist()], drawn.starts, drawn.speeds)
        amplify(clips, drawn.gain_steps, drawn.flips)
        if drawn.noise is not None and self._noises is not None:
            add_noise(clips, drawn.noise, self._noises)
        silence(clips, drawn.time_masks)
        remove_bands(clips, drawn.band_masks, self._rate)


def play(clips: Clips, arrays: Sequence[Clips], starts: Ints, speeds: Ints) -> None:
    """Fill clips (n, T) with windows of recordings at speeds in twentieths (n,), silence around them."""
    played = zip(arrays, starts.tolist(), speeds.tolist(), strict=True)
    for row, (array, start, speed) in enumerate(played):
        span = Span(start, clips.shape[1])
        if speed == SPEED_STEPS:
            clips[row] = window(array, span)
        else:
            # Faster by speed / 20: `speed` samples become 20.
            resampler = make_resampler(SPEED_STEPS, speed, _SPEED_ZEROS)
            clips[row] = resampler.apply(window(array, resampler.needed(span)), span)


# Products of samples and factors are exact in float32, whose numbers have 24 bits: a sample has 15 and a
# sign, a factor 9. Float32 arithmetic is several times as fast as that of 64-bit integers.


def nine_bits(value: int, scale_bits: int) -> float:
    """Return value / 2^scale_bits, rounded to nine significant bits: 0.2 %, or 0.017 dB.

    >>> nine_bits(4096, 12), nine_bits(12345, 12)
    (1.0, 3.015625)
    """
    shift = max(value.bit_length() - 9, 0)
    rounded_up = value + (1 << shift >> 1)
    return math.ldexp(rounded_up >> shift, shift - scale_bits)


def amplify(clips: Clips, gain_steps: Ints, flips: NDArray[np.bool_]) -> None:
    """Multiply clips (B, T) by gains in eighths of a decibel, upside down where `flips`, in place."""
    if not gain_steps.any() and not flips.any():
        return
    factors = np.array([_gain(step) for step in gain_steps.tolist()], np.float32)
    signed = np.where(flips, -factors, factors)
    clips[:] = _whole(np.multiply(clips, signed[:, None], dtype=np.float32))


@cache
def _gain(step: int) -> float:
    return nine_bits(power_of_ten(step, 20 * DB_STEPS, 1 << _SCALE_BITS), _SCALE_BITS)


def add_noise(clips: Clips, drawn: NoiseDraws, noises: Noises) -> None:
    """Add noise to clips (B, T), in place; a silent clip stays silent."""
    for row in np.flatnonzero(drawn.happens).tolist():
        first, second = (int(word) for word in drawn.words[row])
        # A 32-bit word w is scaled to 0..n-1 by w n / 2^32, rounded down: integers alone, as in `below`.
        number = first * len(noises.clips) >> 32
        start = second * len(noises.clips[number]) >> 32
        noise = noises.stretch(number, start, clips.shape[1])
        factor = noise_factor(energy(clips[row]), energy(noise), int(drawn.snr_steps[row]))
        scaled = np.rint(np.multiply(noise, np.float32(factor), dtype=np.float32))
        clips[row] = _whole(scaled + clips[row])


def energy(samples: NDArray[np.int16]) -> int:
    """Return the sum of the squares of samples, exactly."""
    wide = samples.astype(np.float64)  # squares below 2^30, at most 2^22 of them: below 2^53
    return int(wide @ wide)


def noise_factor(clip: int, noise: int, snr_steps: int) -> float:
    """Return f for which clip / (f^2 noise) is a ratio in eighths of a decibel: a root of integers.

    Args:
        clip, noise: their energies.
        snr_steps: the ratio.
    """
    if not noise:
        return 0.0
    ratio = power_of_ten(snr_steps, 10 * DB_STEPS, 1 << 32)
    root = math.isqrt((clip << (32 + 2 * _SCALE_BITS)) // (noise * ratio))
    # At most full scale: noise that is nearly silent would otherwise be raised beyond all bounds.
    return min(nine_bits(root, _SCALE_BITS), float(LOUDEST))


def silence(clips: Clips, time_masks: Ints) -> None:
    """Silence stretches (B, masks, 2) of clips (B, T), in place."""
    for row, number in zip(*np.nonzero(time_masks[..., 0] < time_masks[..., 1]), strict=True):
        first, end = time_masks[row, number]
        clips[row, first:end] = 0


def remove_bands(clips: Clips, band_masks: Ints, rate: int) -> None:
    """Remove bands (B, masks, 2) from clips (B, T), in place."""
    for number in range(band_masks.shape[1]):
        firsts, ends = band_masks[:, number].T
        here = np.flatnonzero(firsts < ends)
        if len(here):
            clips[here] = _filtered(clips[here], firsts[here], ends[here], rate)


def _filtered(clips: Clips, firsts: Ints, ends: Ints, rate: int) -> Clips:
    """Convolve clips (n, T) with their band-stop filters, exactly.

    By Fourier transforms in float64. Their error is below 2^-4 for 2^22 samples of full scale, the longest
    clip, and the convolution of integers is an integer. So adding half of a unit before rounding down gives
    the exact result, on every machine.
    """
    size = clips.shape[1]
    length = _smooth(size + 2 * _FILTER_REACH)
    filters = _bank(rate, length)
    # A delay, less the band between two edges: 1 + band is the low-pass filter of a band's lower edge.
    # Edge 0 passes nothing and the last one everything, so a band may touch either end.
    stops = filters[0] - (filters[1 + ends] - filters[1 + firsts])
    spectra = np.fft.rfft(clips.astype(np.float64), length)
    spectra *= stops
    sums = np.fft.irfft(spectra, length)[:, _FILTER_REACH : _FILTER_REACH + size]
    sums += 0.5
    return rounded(sums, _FILTER_BITS)


@lru_cache(maxsize=8)
def _bank(rate: int, length: int) -> NDArray[np.complex128]:
    """Return the transforms (1 + edges, length / 2 + 1) of a delay and of each edge's low-pass filter."""
    places = np.arange(-_FILTER_REACH, _FILTER_REACH + 1, dtype=np.float64)
    delay = np.where(places == 0, 1 << _FILTER_BITS, 0)
    inner = mel_edges(rate, BANDS)[1:-1]
    passes = [lowpass(places, edge, _FILTER_REACH + 1.0) for edge in inner]
    lows = in_fixed_point(np.stack(passes), _FILTER_BITS)
    filters = np.stack([delay, np.zeros_like(delay), *lows, delay])
    return np.fft.rfft(filters.astype(np.float64), length)


@lru_cache(maxsize=64)
def _smooth(least: int) -> int:
    """Return the smallest multiple of 64 of twos, threes and fives from this on: a fast transform."""
    length = -(-least // 64) * 64
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 64


def mix(clips: Clips, partners: Clips, levels: Ints) -> Clips:
    """Return a share of clips (B, T) in 256ths and the rest of their partners."""
    own = (levels[:, None] / WHOLE).astype(np.float32)
    blended = np.multiply(clips, own, dtype=np.float32)
    blended += np.multiply(partners, 1 - own, dtype=np.float32)
    return _whole(blended)


def _whole(values: NDArray[np.float32]) -> Clips:
    """Round to whole samples, halves to even, and limit them to int16 without its lowest value."""
    np.rint(values, out=values)
    np.clip(values, -LOUDEST, LOUDEST, out=values)
    return values.astype(np.int16)
