"""The built-in set: twenty English words, synthetic, spoken by the voices of espeak-ng.

No person speaks in it. It shows that a project works; it is no evidence for real speech. Voices are held
out as a whole for validation and test. `python -m tests.benchmarks.synthetic_words OUT` rebuilds the file;
`synthetic_words.md` beside it records licence and digest.

Samples are kept as 8-bit mu-law codes, as on a telephone line, in half the bytes of 16-bit samples.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.hashing import named_arrays_digest
from pipeline.modalities.audio.form import AudioSource
from pipeline.modalities.audio.options import AudioOptions
from pipeline.samples.samples import Sample, Samples

NAME = "spoken-words-synthetic"
RATE = 8_000
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
)
DIGEST = "8840b14573e3c8b6ae6d4a8e6f779f06d0c79d00117fc1271a93877873640b81"
_SPLITS = ("train", "validation", "test")


def mu_law_levels() -> NDArray[np.int16]:
    """Return the samples (256,) that mu-law codes stand for, in ITU-T G.711's order, in 16 bits.

    >>> mu_law_levels()[[0, 127, 128, 255]].tolist()
    [-32124, 0, 32124, 0]
    """
    codes = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (codes >> 4) & 7, (codes & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + 132) << exponent) - 132
    return np.where(codes & 128, -magnitude, magnitude).astype(np.int16)


def encode_mu_law(clip: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return the code (T,) of the nearest level for each sample (T,)."""
    levels = mu_law_levels().astype(np.int32)
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][1:] + levels[order][:-1]) / 2
    return order[np.searchsorted(middles, clip)].astype(np.uint8)


def load_words() -> dict[str, NDArray[Any]]:
    """Return the packaged arrays, checked against their digest.

    Returns:
        codes, flat uint8; lengths, labels, splits and voices (N,); voice_names.

    Raises:
        DataError: the file is damaged.
    """
    path = files("pipeline.modalities.audio") / "builtin" / "synthetic_words.npz"
    with path.open("rb") as file, np.load(file) as archive:
        arrays = dict(archive)
    found = named_arrays_digest(arrays)
    if found != DIGEST:
        raise DataError(f"{path}: digest {found[:12]}, expected {DIGEST[:12]}; reinstall the package")
    return arrays


def open_builtin(detail: str, options: AudioOptions) -> AudioSource:
    """Open the synthetic words; samples are named VOICE/WORD/TAKE."""
    if detail:
        raise ConfigError(f"data.source is '{NAME}:{detail}'; expected nothing after the name")
    arrays = load_words()
    ends = np.cumsum(arrays["lengths"].astype(np.int64))
    starts, clips = ends - arrays["lengths"], mu_law_levels()[arrays["codes"]]
    labels, voices = arrays["labels"].tolist(), arrays["voice_names"][arrays["voices"]].tolist()

    def make(row: int) -> Sample:
        # Takes of one voice and word stand side by side, two of each.
        name = f"{voices[row]}/{WORDS[labels[row]]}/{row % 2}"
        return Sample(name, labels[row], lambda: clips[starts[row] : ends[row]])

    train, validation, test = (
        Samples(make, np.flatnonzero(arrays["splits"] == number)) for number in range(len(_SPLITS))
    )
    return AudioSource(
        classes=WORDS, train=train, validation=validation, test=test, sample_rate=RATE, forks=True
    )
