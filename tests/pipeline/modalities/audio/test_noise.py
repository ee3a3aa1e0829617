"""Background noise: stretches of recordings, bounded in memory, decoded once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, DataError, MismatchError
from pipeline.modalities.audio import noise as module
from pipeline.modalities.audio.noise import Noises, noise_digest, noise_files, open_noises
from pipeline.modalities.audio.operations import BackgroundNoise
from pipeline.modalities.audio.spec import AudioViewSpec
from tests.pipeline.modalities.audio.clips import RATE, noise, write


def test_a_short_recording_begins_again():
    noises = Noises((np.arange(5, dtype=np.int16),))
    assert noises.stretch(0, 3, 7).tolist() == [3, 4, 0, 1, 2, 3, 4]
    assert noises.stretch(0, 1, 3).tolist() == [1, 2, 3]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


def test_a_store_alone_reads_no_folder_elsewhere(tmp_path, monkeypatch):
    for folder in ("outside", "here/noise", "here/main.zarr/noise"):
        write(tmp_path / folder / "a.wav", noise(100))
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("../outside", str(tmp_path / "outside"), "main.zarr/noise"):
        named = BackgroundNoise(folder=folder, digest=noise_digest(folder))
        # As a store's header describes views; a copy of these would have been named by the user.
        spec = AudioViewSpec.from_canonical(AudioViewSpec(background_noise=named).canonical())
        with pytest.raises(MismatchError, match="a store alone reads no other folder"):
            open_noises(spec.noise.folder, spec.noise.digest, RATE)
        assert AudioViewSpec(background_noise=BackgroundNoise(folder=folder)).noise == named
        assert len(open_noises(folder, named.digest, RATE).clips) == 1
        monkeypatch.setattr(module, "_NAMED", set())
        open_noises.cache_clear()
    assert len(open_noises("noise", noise_digest("noise"), RATE).clips) == 1


def test_a_header_without_the_digest_of_its_noise_is_refused():
    views = {"semantics": 1, "seed": 0, "background_noise": {"folder": "/"}}
    with pytest.raises(ConfigError, match=r"background_noise\.digest is empty"):
        AudioViewSpec.from_canonical(views)
