"""Sound files to clips: (T,) int16 of one channel.

soundfile (libsndfile) decodes WAV, FLAC, Ogg Vorbis, Opus, MP3 and AIFF. It is an extra, imported with the
first file. Samples become 16-bit integers there; several channels are averaged in integers here.
"""

from __future__ import annotations

import importlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError, brief
from pipeline.core.package import extra_command, installed_version
from pipeline.modalities.audio.completeness import WHOLE, Completeness, completeness
from pipeline.modalities.audio.form import HIGHEST_RATE, LOWEST_RATE, MOST_SAMPLES
from pipeline.modalities.audio.resampling import LOUDEST, resample
from pipeline.samples.files import Files

AUDIO_FILES = Files("sound", (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"))
_MOST_CHANNELS = 64
# Subtypes of integers; others hold floats, or are decoded to floats.
_INTEGER = ("PCM_", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_")
_OBJECT = re.compile(r"Error opening <[^>]*>: ")


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """A decoded file.

    Args:
        samples: (T,) int16, one channel.
        rate: samples per second.
        file: whether the file was whole.
        is_finite: whether the file has no NaN and no infinity.
    """

    samples: NDArray[np.int16]
    rate: int
    file: Completeness = WHOLE
    is_finite: bool = True

    def at(self, rate: int) -> NDArray[np.int16]:
        """Return the samples (T,) at another rate.

        Raises:
            ValueError: the ratio of the rates has no small terms.
        """
        return resample(self.samples, self.rate, rate)


def decoder() -> str:
    """Return the name and version of the decoder, for dataset.json.

    Raises:
        ConfigError: soundfile is not installed.
    """
    return f"soundfile {installed_version('soundfile')}, {_soundfile('sound files').__libsndfile_version__}"


@dataclass(frozen=True, slots=True)
class SoundFile:
    """A sound file; call it for its samples, or read it for its rate as well.

    Args:
        path: path of the file.
    """

    path: Path

    def __call__(self) -> NDArray[np.int16]:
        """Return the samples (T,), at the file's own rate."""
        return self.read().samples

    def read(self) -> Recording:
        """Return the decoded file; see `read_sound`."""
        return read_sound(self.path)


def read_sound(path: Path) -> Recording:
    """Decode a sound file.

    Raises:
        ConfigError: soundfile is not installed.
        DataError: the file is missing, not a sound file, damaged, empty, or has an odd rate.
    """
    library = _soundfile(path)
    try:
        if not path.is_file():
            raise OSError("no regular file" if path.exists() else "no such file")
        content = path.read_bytes()
        with library.SoundFile(io.BytesIO(content)) as file:
            rate, channels = int(file.samplerate), int(file.channels)
            _require_plain(path, rate, channels, int(file.frames))
            frames, is_finite = _frames(file)
    except (OSError, library.SoundFileError) as error:
        raise DataError(
            f"{path}: not a readable sound file ({_reason(error)}); expected "
            f"{', '.join(AUDIO_FILES.suffixes)}; replace or remove it"
        ) from None
    if not len(frames):
        raise DataError(f"{path}: no samples; expected at least one; replace or remove it")
    return Recording(to_mono(frames), rate, completeness(content), is_finite)


def _reason(error: Exception) -> str:
    """Return the reason of libsndfile's error without the object that was read."""
    return _OBJECT.sub("", brief(error)) or type(error).__name__


def sound_header(path: Path) -> tuple[int, int] | None:
    """Return samples and samples per second from a file's header; None if it has none.

    Raises:
        ConfigError: soundfile is not installed.
    """
    library = _soundfile(path)
    try:
        found = library.info(str(path))
    except (OSError, library.SoundFileError):
        return None
    return int(found.frames), int(found.samplerate)


def _frames(file: Any) -> tuple[NDArray[np.int16], bool]:
    """Decode all frames (T, channels) of an open file; also return whether they are finite."""
    if file.subtype.startswith(_INTEGER):
        return file.read(dtype="int16", always_2d=True), True
    # libsndfile would not scale floats, and lossy formats may exceed full scale.
    scaled = np.rint(file.read(dtype="float64", always_2d=True) * (LOUDEST + 1))
    limited = np.clip(np.nan_to_num(scaled), -LOUDEST, LOUDEST).astype(np.int16)
    return limited, bool(np.isfinite(scaled).all())


def _require_plain(path: Path, rate: int, channels: int, frames: int) -> None:
    """Refuse absurd headers before their samples are decoded."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or channels > _MOST_CHANNELS:
        raise DataError(
            f"{path}: {rate:,} samples per second in {channels} channels; expected {LOWEST_RATE:,} to "
            f"{HIGHEST_RATE:,} in at most {_MOST_CHANNELS}; convert it"
        )
    if frames > MOST_SAMPLES * max(1, rate // LOWEST_RATE):
        raise DataError(
            f"{path}: {frames / rate:,.0f} seconds; expected a clip; cut it into clips of one class each"
        )


def to_mono(frames: NDArray[np.int16]) -> NDArray[np.int16]:
    """Average channels (T, channels) in integers, halves rounded up: (T,).

    >>> to_mono(np.array([[1, 2], [-4, -1]], np.int16)).tolist()
    [2, -2]
    """
    channels = frames.shape[1]
    if channels == 1:
        return np.ascontiguousarray(frames[:, 0])
    total = frames.sum(1, dtype=np.int64)
    averaged: NDArray[np.int16] = ((2 * total + channels) // (2 * channels)).astype(np.int16)
    return averaged


def to_rate(recording: Recording, rate: int, name: object) -> NDArray[np.int16]:
    """Return a recording's samples (T,) int16 at a rate.

    Raises:
        DataError: the ratio of the rates has no small terms, or the clip is too long.
    """
    try:
        samples = recording.at(rate)
    except ValueError as error:
        raise DataError(
            f"{name}: {recording.rate:,} samples per second become {rate:,} by {error}; convert it to a "
            "usual rate, e.g. 16,000"
        ) from None
    if len(samples) > MOST_SAMPLES:
        raise DataError(
            f"{name}: {len(samples):,} samples; expected a clip of at most {MOST_SAMPLES:,}; cut it into "
            "clips of one class each"
        )
    return samples


def _soundfile(path: object) -> Any:
    try:
        return importlib.import_module("soundfile")
    except (ModuleNotFoundError, OSError) as error:
        raise ConfigError(
            f"{path}: needs soundfile ({brief(error)}); expected the extra audio; run: "
            f"{extra_command('audio')}"
        ) from None
