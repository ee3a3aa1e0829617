"""The views of a clip: the augmentation as data, with a canonical form and a digest.

`operations.py` owns the ranges of each operation, `draw.py` draws from a spec, `rendering.py` renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pipeline.core.errors import quoted
from pipeline.modalities.audio.noise import noise_digest, trust_folder
from pipeline.modalities.audio.operations import (
    BackgroundNoise,
    FrequencyMask,
    Gain,
    Mixup,
    Polarity,
    Shift,
    Speed,
    TimeMask,
)
from pipeline.modalities.preprocessing import UsualViews
from pipeline.views.operations import Augmentation, plain_settings, require, spec_values

# Raise it when a spec would render different samples; part of every store's fingerprint.
SEMANTICS = 1
OPERATIONS: Mapping[str, type[Augmentation]] = {
    kind.name: kind
    for kind in (Speed, Shift, Polarity, Gain, BackgroundNoise, TimeMask, FrequencyMask, Mixup)
}
_CROPS = ("centre", "random")
# Always in the canonical form. Other fields are added only if set, so a new operation leaves the digests
# of specs without it unchanged.
_ALWAYS = ("seed", "crop")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioViewSpec(UsualViews):
    """How view number v of a clip is drawn: a pure function of (seed, v, sample key).

    Operations are applied in the order in which they stand here, each where it is not None.

    Args:
        seed: random seed of all draws, 64-bit unsigned.
        speed: play faster or slower.
        crop: part of a longer clip, and place of a shorter one among silence: centre or random.
        shift: move the clip in time.
        polarity: turn the waveform upside down.
        gain: make it louder or quieter.
        background_noise: add a stretch of your own recordings.
        time_mask: silence a stretch of time.
        frequency_mask: remove a band of frequencies.
        mixup: add another clip of the view.

    Example:
        >>> spec = AudioViewSpec(seed=1, shift=Shift(seconds=0.05))
        >>> spec.canonical()
        {'semantics': 1, 'seed': 1, 'crop': 'centre', 'shift': {'seconds': 0.05}}
        >>> AudioViewSpec.from_canonical(spec.canonical()) == spec
        True
    """

    seed: int = 0
    speed: Speed | None = None
    crop: Literal["centre", "random"] = "centre"
    shift: Shift | None = None
    polarity: Polarity | None = None
    gain: Gain | None = None
    background_noise: BackgroundNoise | None = None
    time_mask: TimeMask | None = None
    frequency_mask: FrequencyMask | None = None
    mixup: Mixup | None = None

    def __post_init__(self) -> None:
        require(self.crop in _CROPS, "views.crop", quoted(self.crop), f"one of {', '.join(_CROPS)}")
        require(0 <= self.seed < 1 << 64, "views.seed", self.seed, "0 to 2^64 - 1")

    @property
    def mixes(self) -> bool:
        """Whether clips of a view are mixed with each other."""
        return self.mixup is not None

    @property
    def noise(self) -> BackgroundNoise | None:
        """The background noise, with the digest of its files.

        Raises:
            DataError: the folder is missing or has no sound files.
        """
        noise = self.background_noise
        if noise is None or noise.digest:
            return noise
        trust_folder(noise.folder)
        return replace(noise, digest=noise_digest(noise.folder))

    def canonical(self) -> dict[str, Any]:
        """Return the spec as plain values, with the version of the rendering's semantics."""
        values = asdict(replace(self, background_noise=self.noise))
        kept = {name: plain_settings(v) for name, v in values.items() if name in _ALWAYS or v is not None}
        return {"semantics": SEMANTICS, **kept}

    @classmethod
    def from_canonical(cls, value: Mapping[str, Any]) -> AudioViewSpec:
        """Return the spec described by `canonical`.

        Raises:
            MismatchError: written by an incompatible version of this program.
        """
        names = {field.name for field in fields(cls)}
        spec = cls(**spec_values(value, OPERATIONS, names, SEMANTICS))
        noise = spec.background_noise
        require(noise is None or noise.digest != "", "background_noise.digest", "empty", "a SHA-256")
        return spec
