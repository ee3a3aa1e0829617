"""Background noise: stretches of recordings, bounded in memory, decoded once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.audio import noise as module
from pipeline.modalities.audio.noise import Noises, noise_digest, noise_files, open_noises
from tests.pipeline.modalities.audio.clips import RATE, noise, write


def test_a_short_recording_begins_again():
    noises = Noises((np.arange(5, dtype=np.int16),))
    assert noises.stretch(0, 3, 7).tolist() == [3, 4, 0, 1, 2, 3, 4]
    assert noises.stretch(0, 1, 3).tolist() == [1, 2, 3]


def test_files_at_any_depth_are_found_and_resampled(tmp_path):
    write(tmp_path / "b.wav", noise(100))
    write(tmp_path / "deep/a.flac", noise(200), 16_000)
    (tmp_path / "notes.txt").touch()
    assert noise_files(str(tmp_path)) == ["b.wav", "deep/a.flac"]
    noises = open_noises(str(tmp_path), noise_digest(str(tmp_path)), RATE)
    assert [len(clip) for clip in noises.clips] == [100, 100]


def test_more_than_fits_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_SAMPLES", 150)
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, noise(100))
    with pytest.raises(DataError, match=r"more than .* minutes of background noise; expected less"):
        open_noises(str(tmp_path), noise_digest(str(tmp_path)), RATE)
