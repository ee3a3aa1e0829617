"""Clips for tests: packed in memory, or written as sound files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipeline.core.hashing import content_digest, sample_key
from pipeline.modalities.audio.form import audio_form
from pipeline.samples.packed import PackedSplit
from pipeline.samples.samples import Names

RATE = 8_000


def tone(hertz: float, count: int = 800, *, rate: int = RATE, loudness: float = 0.3) -> np.ndarray:
    """Return a sine (count,) int16."""
    return np.rint(loudness * 32767 * np.sin(2 * np.pi * hertz * np.arange(count) / rate)).astype(np.int16)


def noise(count: int = 800, seed: int = 0, loudness: int = 8000) -> np.ndarray:
    """Return white noise (count,) int16."""
    return np.random.default_rng(seed).integers(-loudness, loudness, count).astype(np.int16)


def pack_clips(clips: Sequence[np.ndarray], rate: int = RATE) -> PackedSplit:
    """Return a split of clips train/0, train/1, ... in memory."""
    names = [f"train/{row}" for row in range(len(clips))]
    sizes = [len(clip) for clip in clips]
    return PackedSplit(
        values=np.concatenate(clips),
        form=audio_form(rate),
        offsets=np.cumsum([0, *sizes[:-1]]).astype(np.int64),
        shapes=np.array(sizes, np.int32)[:, None],
        labels=np.arange(len(clips)) % 2,
        keys=np.array([sample_key(name) for name in names], np.uint64),
        digests=np.array([content_digest(clip, 0) for clip in clips], np.uint64),
        names=Names.of(names),
    )


def write(path: Path, clip: np.ndarray, rate: int = RATE, **how: str) -> Path:
    """Write a sound file and the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip, rate, **how)
    return path
