"""The operations of an audio view, each with its ranges: one frozen class per operation.

Names and meanings follow audiomentations (Shift, Gain, PolarityInversion, AddBackgroundNoise, TimeMask,
BandStopFilter) and torchaudio (SpeedPerturbation, TimeMasking, FrequencyMasking). This module owns the
range of each setting; `spec.py` owns their combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.views.operations import Augmentation, Mixing, Sometimes

# Speed factors are multiples of 1/20, so that resampling has few phases.
SPEED_STEPS = 20
_MOST_FACTORS, _MOST_MASKS = 9, 4
# Bands of a frequency mask, of equal width in mels.
BANDS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift(Augmentation):
    """Move the clip by up to `seconds` either way; what leaves is lost, what comes in is silence.

    Args:
        seconds: largest shift in seconds, in (0, 60].
    """

    name: ClassVar[str] = "shift"
    seconds: float = 0.1

    def __post_init__(self) -> None:
        self._require("seconds", 0 < self.seconds <= 60, "more than 0 and at most 60 seconds")
        self._normalise()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed(Augmentation):
    """Play faster or slower, pitch included: a factor drawn from a list, by integer resampling.

    Args:
        factors: multiples of 0.05 from 0.5 to 2, at most 9.

    Source: Ko et al., "Audio augmentation for speech recognition", Interspeech 2015.
    """

    name: ClassVar[str] = "speed"
    factors: tuple[float, ...] = (0.9, 1.0, 1.1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(float(factor) for factor in self.factors))
        fits = 1 <= len(self.factors) <= _MOST_FACTORS and all(map(_is_step, self.factors))
        self._require("factors", fits, "1 to 9 multiples of 0.05 from 0.5 to 2")

    @property
    def steps(self) -> tuple[int, ...]:
        """The factors in twentieths."""
        return tuple(round(factor * SPEED_STEPS) for factor in self.factors)


def _is_step(factor: float) -> bool:
    return 0.5 <= factor <= 2 and abs(factor * SPEED_STEPS - round(factor * SPEED_STEPS)) < 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Polarity(Sometimes):
    """Turn the waveform upside down, which no one hears."""

    name: ClassVar[str] = "polarity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain(Sometimes):
    """Make the clip louder or quieter; what exceeds full scale is cut off.

    Args:
        min_db, max_db: ends of the range of the gain in decibels, drawn in steps of 1/8, -60 to 40.
    """

    name: ClassVar[str] = "gain"
    min_db: float = -12.0
    max_db: float = 12.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        expected = "min_db <= max_db, both -60 to 40"
        self._require("min_db", -60 <= self.min_db <= self.max_db <= 40, expected)
        Sometimes.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundNoise(Sometimes):
    """Add a stretch of a recording from your own folder of noises.

    The view's digest holds that of the noises' files: with other files, it is another view.

    Args:
        folder: folder of sound files, relative to the working folder.
        min_snr_db, max_snr_db: ends of the range of the ratio of energies, clip to noise, in decibels,
            drawn in steps of 1/8, -30 to 90.
        digest: SHA-256 of the files; found by reading them if empty.
    """

    name: ClassVar[str] = "background_noise"
    folder: str
    min_snr_db: float = 3.0
    max_snr_db: float = 30.0
    digest: str = ""

    def __post_init__(self) -> None:
        self._require("folder", bool(self.folder), "a folder of sound files")
        expected = "min_snr_db <= max_snr_db, both -30 to 90"
        self._require("min_snr_db", -30 <= self.min_snr_db <= self.max_snr_db <= 90, expected)
        Sometimes.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Masks(Sometimes):
    """Base class of both masks.

    Args:
        count: number of masks, 1 to 4; they may overlap.
    """

    count: int = 1

    def __post_init__(self) -> None:
        self._require("count", 1 <= self.count <= _MOST_MASKS, f"1 to {_MOST_MASKS}")
        Sometimes.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeMask(_Masks):
    """Silence a stretch of time.

    Args:
        longest: largest length as a share of the clip, in (0, 1]; the length is uniform up to it.

    Source: Park et al., "SpecAugment", arXiv 1904.08779.
    """

    name: ClassVar[str] = "time_mask"
    longest: float = 0.2

    def __post_init__(self) -> None:
        self._require("longest", 0 < self.longest <= 1, "more than 0 and at most 1, a share of the clip")
        _Masks.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyMask(_Masks):
    """Remove a band of frequencies, by a band-stop filter on the waveform.

    Args:
        widest: largest width in bands, 1 to 16 of the 32 bands of equal width in mels; the width is
            uniform up to it.

    Source: Park et al., "SpecAugment", arXiv 1904.08779, there on spectrograms.
    """

    name: ClassVar[str] = "frequency_mask"
    widest: int = 6

    def __post_init__(self) -> None:
        self._require("widest", 1 <= self.widest <= BANDS // 2, f"1 to {BANDS // 2} bands")
        _Masks.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixup(Mixing):
    """Add another clip of the same view: lambda of one, 1 - lambda of the other.

    Source: Zhang et al., arXiv 1710.09412.
    """

    name: ClassVar[str] = "mixup"
