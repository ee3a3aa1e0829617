"""The keys of `data` in params.yaml that belong to audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.core.errors import ConfigError
from pipeline.modalities.audio.form import HIGHEST_RATE, LOWEST_RATE, MOST_SAMPLES
from pipeline.modalities.modality import DataOptions
from pipeline.samples.description import Description

OnFault = Literal["warn", "refuse"]
# Data prepared less strictly may hold clips that these would refuse.
REFUSING = ("faulty",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioOptions(DataOptions):
    """Storage and length of clips.

    Args:
        sample_rate: samples per second of prepared clips, 1,000 to 192,000; clips of other rates are
            resampled once.
        clip_seconds: length of the models' input in seconds; longer clips are cropped, shorter ones are
            padded with silence. None takes the longest training clip.
        label: column of a table that names a clip's class. For tags or numbers: a list of columns, e.g.
            [rain, wind], of 1, 0 or nothing, or of numbers; or `[tags]`, texts such as `rain;wind`. An
            empty list for no labels.
        group: column of a table, e.g. speaker. Without a split column, whole groups are held out for
            validation and test, so that no voice is in two splits. None draws clips one by one.
        faulty: silent, clipped, cut off and very short clips: warn (read and list them) or refuse.
    """

    sample_rate: int = 16_000
    clip_seconds: float | None = None
    label: str | tuple[str, ...] = "label"
    group: str | None = None
    faulty: OnFault = "warn"

    def __post_init__(self) -> None:
        if not LOWEST_RATE <= self.sample_rate <= HIGHEST_RATE:
            raise ConfigError(
                f"sample_rate is {self.sample_rate}; expected {LOWEST_RATE:,} to {HIGHEST_RATE:,} samples "
                "per second"
            )
        most = MOST_SAMPLES / self.sample_rate
        if self.clip_seconds is not None and not 0.01 <= self.clip_seconds <= most:
            raise ConfigError(
                f"clip_seconds is {self.clip_seconds}; expected 0.01 to {most:.0f} seconds, or null"
            )

    @property
    def size(self) -> int | None:
        """Length in samples of the input of models trained here."""
        return None if self.clip_seconds is None else round(self.clip_seconds * self.sample_rate)

    @property
    def refusing(self) -> tuple[str, ...]:
        """Names of the options that only refuse clips."""
        return REFUSING

    def for_models(self) -> dict[str, Any]:
        """Return the options that shape networks and leave prepared data unchanged."""
        return {"clip_seconds": self.clip_seconds}

    def asked(self) -> dict[str, Any]:
        """Return the options that change the prepared data, by name."""
        label = self.label if isinstance(self.label, str) else ",".join(self.label)
        return {**DataOptions.asked(self), "label": label}

    def known(self, description: Description) -> dict[str, Any]:
        """Return the options recorded in a prepared dataset."""
        faulty = "warn" if description.remarks else "none"
        return {**description.made_with, "faulty": faulty}

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether an option asks for different data than the prepared data."""
        if name in ("label", "group") and not str(was["source"]).startswith("csv:"):
            return False  # Only tables have columns.
        if name == "faulty":
            return bool(asked[name] == "refuse" and was[name] == "warn")
        return bool(was[name] != asked[name])
