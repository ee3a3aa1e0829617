"""Draw a view: everything that an `AudioViewSpec` leaves to chance, as integers per clip.

Places are in samples of the rendered clip, which has T samples at the data's sample rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.random import Draws, Lane, Words, below, between, chance
from pipeline.modalities.audio.operations import BANDS, SPEED_STEPS, FrequencyMask, TimeMask
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.views.shares import WHOLE, beta_levels

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

DB_STEPS = 8  # gains and signal-to-noise ratios are drawn in eighths of a decibel


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseDraws:
    """Background noise of N clips.

    Args:
        words: (N, 2) random words that choose a recording and its first sample.
        snr_steps: (N,) ratio of energies in eighths of a decibel.
        happens: (N,) whether there is noise.
    """

    words: Words
    snr_steps: Ints
    happens: Flags

    def __getitem__(self, rows: NDArray[Any] | slice) -> NoiseDraws:
        return NoiseDraws(
            words=self.words[rows], snr_steps=self.snr_steps[rows], happens=self.happens[rows]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipParameters:
    """One view of N clips.

    Args:
        starts: (N,) first sample of the window, after the change of speed; may be negative.
        speeds: (N,) speed in twentieths.
        flips: (N,) whether the polarity is inverted.
        gain_steps: (N,) gain in eighths of a decibel.
        noise: background noise, or None.
        time_masks: (N, masks, 2) first sample and end of silenced stretches; equal for none.
        band_masks: (N, masks, 2) first band and end of removed bands; equal for none.
        levels: (N,) share of the clip itself in its mixture, in 256ths; None without mixing.
    """

    starts: Ints
    speeds: Ints
    flips: Flags
    gain_steps: Ints
    noise: NoiseDraws | None
    time_masks: Ints
    band_masks: Ints
    levels: Ints | None

    def __getitem__(self, rows: NDArray[Any] | slice) -> ClipParameters:
        return ClipParameters(
            starts=self.starts[rows],
            speeds=self.speeds[rows],
            flips=self.flips[rows],
            gain_steps=self.gain_steps[rows],
            noise=None if self.noise is None else self.noise[rows],
            time_masks=self.time_masks[rows],
            band_masks=self.band_masks[rows],
            levels=None if self.levels is None else self.levels[rows],
        )


def clip_parameters(
    spec: AudioViewSpec, *, view: int, keys: NDArray[np.uint64], lengths: Ints, size: int, rate: int
) -> ClipParameters:
    """Draw one view of N clips.

    Args:
        spec: the operations and their ranges.
        view: index of the view, 0 <= view < 2**32.
        keys: (N,) sample keys.
        lengths: (N,) samples of each clip.
        size: T, samples of the rendered clip.
        rate: samples per second.

    Returns:
        The same values for the same (seed, view, key), for any selection of clips.
    """
    draws = Draws(spec.seed, view, keys)
    speeds = _speeds(spec, draws)
    return ClipParameters(
        starts=_starts(spec, draws, played_lengths(lengths, speeds), size, rate),
        speeds=speeds,
        flips=_happens(spec.polarity, draws, Lane.POLARITY),
        gain_steps=_gains(spec, draws),
        noise=_noise(spec, draws),
        time_masks=_time_masks(spec.time_mask, draws, size),
        band_masks=_band_masks(spec.frequency_mask, draws),
        levels=draw_levels(spec, draws),
    )


def plain_parameters(lengths: Ints, size: int) -> ClipParameters:
    """Return the un-augmented view: the middle of longer clips, silence around shorter ones."""
    count = len(lengths)
    return ClipParameters(
        starts=(lengths - size) // 2,
        speeds=np.full(count, SPEED_STEPS),
        flips=np.zeros(count, np.bool_),
        gain_steps=np.zeros(count, np.int64),
        noise=None,
        time_masks=np.zeros((count, 0, 2), np.int64),
        band_masks=np.zeros((count, 0, 2), np.int64),
        levels=None,
    )


def played_lengths(lengths: Ints, speeds: Ints) -> Ints:
    """Return the number of samples (N,) of clips (N,) after a change of speed, rounded up."""
    # E.g. 100 samples at speed 22 / 20 become ceil(2000 / 22) = 91.
    return -(-lengths * SPEED_STEPS // speeds)


def draw_levels(spec: AudioViewSpec, draws: Draws) -> Ints | None:
    """Draw the share of each clip (N,) in its own mixture in 256ths, or None for views without mixing."""
    if spec.mixup is None:
        return None
    # (4, N) words; word 0 says whether a clip is mixed, word 1 its share.
    words = draws.words(Lane.MIXING)
    levels = beta_levels(spec.mixup.alpha, words[1]).astype(np.int64)
    return np.where(chance(words[0], spec.mixup.probability), levels, WHOLE)


def _speeds(spec: AudioViewSpec, draws: Draws) -> Ints:
    if spec.speed is None:
        return np.full(len(draws), SPEED_STEPS)
    # A place in the list of factors, (N,): the factors are twentieths, e.g. [18, 20, 22].
    choice = below(draws.words(Lane.SPEED)[0], len(spec.speed.steps)).astype(np.int64)
    return np.array(spec.speed.steps)[choice]


def _starts(spec: AudioViewSpec, draws: Draws, lengths: Ints, size: int, rate: int) -> Ints:
    """Return the first sample (N,) of each window.

    E.g. 10 samples, a window of 6: the centre starts at 2, a random one at 0 to 4. With a window of 16
    they start at -3, and at -6 to 0.
    """
    # Positive: samples of a longer clip that the window leaves out. Negative: silence around a shorter one.
    spare = lengths - size
    starts = spare // 2
    if spec.crop == "random":
        words = below(draws.words(Lane.CROP)[0], (np.abs(spare) + 1).astype(np.uint64))
        starts = np.sign(spare) * words.astype(np.int64)
    if spec.shift is not None:
        # A window that starts later shows the clip earlier; both ways are equally likely.
        farthest = round(spec.shift.seconds * rate)
        starts = starts + between(draws.words(Lane.SHIFT)[0], -farthest, farthest)
    return starts


def _happens(sometimes: Any, draws: Draws, lane: int) -> Flags:
    """Return whether an operation happens (N,); its choice is the lane's last word."""
    if sometimes is None:
        return np.zeros(len(draws), np.bool_)
    return chance(draws.words(lane)[3], sometimes.probability)


def _gains(spec: AudioViewSpec, draws: Draws) -> Ints:
    if spec.gain is None:
        return np.zeros(len(draws), np.int64)
    steps = _decibels(draws.words(Lane.GAIN)[0], spec.gain.min_db, spec.gain.max_db)
    return np.where(_happens(spec.gain, draws, Lane.GAIN), steps, 0)


def _decibels(words: Words, low: float, high: float) -> Ints:
    return between(words, round(low * DB_STEPS), round(high * DB_STEPS))


def _noise(spec: AudioViewSpec, draws: Draws) -> NoiseDraws | None:
    noise = spec.background_noise
    if noise is None:
        return None
    # (4, N) words of one lane: recording, place in it, ratio, chance.
    words = draws.words(Lane.BACKGROUND_NOISE)
    return NoiseDraws(
        words=np.ascontiguousarray(words[:2].T),
        snr_steps=_decibels(words[2], noise.min_snr_db, noise.max_snr_db),
        happens=chance(words[3], noise.probability),
    )


def _time_masks(mask: TimeMask | None, draws: Draws, size: int) -> Ints:
    if mask is None:
        return np.zeros((len(draws), 0, 2), np.int64)
    return _stretches(mask, draws, Lane.TIME_MASK, most=round(mask.longest * size), whole=size)


def _band_masks(mask: FrequencyMask | None, draws: Draws) -> Ints:
    if mask is None:
        return np.zeros((len(draws), 0, 2), np.int64)
    return _stretches(mask, draws, Lane.FREQUENCY_MASK, most=mask.widest, whole=BANDS)


def _stretches(mask: TimeMask | FrequencyMask, draws: Draws, lane: int, *, most: int, whole: int) -> Ints:
    """Draw the first unit and the end (N, masks, 2) of stretches of 0 to `most` of `whole` units."""
    happens, drawn = _happens(mask, draws, lane), []
    for number in range(mask.count):
        words = draws.words(lane + number)
        # Length first, then a place where the whole stretch fits. Of 32 bands, a length of 6 leaves the
        # firsts 0 to 26; a length of 0 is no mask.
        lengths = np.where(happens, between(words[0], 0, most), 0)
        firsts = below(words[1], (whole - lengths + 1).astype(np.uint64)).astype(np.int64)
        drawn.append(np.stack([firsts, firsts + lengths], axis=1))
    return np.stack(drawn, axis=1)
