"""Clips as found in a source, as kept in prepared data, and as described in dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pydantic

from pipeline.modalities.audio.resampling import RESAMPLER
from pipeline.samples.index import Form
from pipeline.samples.samples import NO_DECODER, Source

LOWEST_RATE, HIGHEST_RATE = 1_000, 192_000
# About four minutes at 16 kHz; sums of squares and of filters stay exact below it.
MOST_SAMPLES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSource(Source):
    """A dataset of clips, as found.

    Each sample's `load` is a `decoding.SoundFile`, or returns (T,) int16 at `sample_rate`.

    Args:
        sample_rate: samples per second of clips that are arrays; None for files, which say it themselves.
    """

    sample_rate: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioForm(Form):
    """How prepared clips (T,) int16 are kept; made by `audio_form`.

    Args:
        sample_rate: samples per second.
        resampler: name of the filter that clips of other rates went through.
    """

    sample_rate: int
    resampler: str = RESAMPLER

    noun: ClassVar[str] = "clip"
    longest: ClassVar[int] = MOST_SAMPLES

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> AudioForm:
        """Read the form from the content of a dataset.json.

        Raises:
            pydantic.ValidationError: a wrong type or range.
        """
        found = _Described.model_validate(plain)
        return audio_form(found.sample_rate, found.decoder, resampler=found.resampler)

    def to_dict(self) -> dict[str, Any]:
        """Return the form as plain values, for dataset.json."""
        own = {"sample_rate": self.sample_rate, "resampler": self.resampler}
        return {**Form.to_dict(self), **own}


def audio_form(rate: int, decoder: str = NO_DECODER, *, resampler: str = RESAMPLER) -> AudioForm:
    """Return the form of clips of this many samples per second; see `AudioForm`."""
    return AudioForm(dtype="int16", axes=1, unit=(), decoder=decoder, sample_rate=rate, resampler=resampler)


class _Described(pydantic.BaseModel):
    """A form in dataset.json, which is untrusted."""

    sample_rate: Annotated[int, pydantic.Field(ge=LOWEST_RATE, le=HIGHEST_RATE)]
    resampler: Annotated[str, pydantic.Field(max_length=80)]
    decoder: Annotated[str, pydantic.Field(max_length=200)] = NO_DECODER
