"""The built-in synthetic words: whole, as documented, with voices held out."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.sources import builtin, open_source
from pipeline.modalities.audio.sources.builtin import WORDS, encode_mu_law, load_words, mu_law_levels


@pytest.fixture(scope="module")
def source():
    return open_source("spoken-words-synthetic", AudioOptions())


def voices(samples) -> set[str]:
    return {sample.name.split("/")[0] for sample in samples}


def test_counts_are_those_of_its_description(source):
    assert [len(part) for part in (source.train, source.validation, source.test)] == [1440, 320, 480]
    assert (source.classes, source.sample_rate, source.decoder) == (WORDS, 8_000, "none")
    for part in (source.train, source.validation, source.test):
        assert len(set(np.bincount([sample.label for sample in part]).tolist())) == 1


def test_no_voice_is_in_two_splits(source):
    found = [voices(part) for part in (source.train, source.validation, source.test)]
    assert [len(part) for part in found] == [36, 8, 12]
    assert len(set.union(*found)) == 56


def test_clips_are_short_words_of_their_own(source):
    clips = [sample.load() for part in (source.train, source.validation, source.test) for sample in part]
    assert {clip.dtype.name for clip in clips} == {"int16"}
    assert 0.1 < min(map(len, clips)) / 8_000 < max(map(len, clips)) / 8_000 < 1.2
    assert len({clip.tobytes() for clip in clips}) == len(clips)
    names = [sample.name for sample in source.train]
    assert len(set(names)) == len(names)


def test_mu_law_is_that_of_g711():
    levels = mu_law_levels().astype(int)
    assert (levels[128:] == -levels[:128]).all()
    assert sorted(set(np.abs(levels)))[:4] == [0, 8, 16, 24]
    assert levels[[0x80, 0x8F, 0xF0]].tolist() == [32124, 16764, 120]
    every = np.arange(-32767, 32768)
    nearest = levels[encode_mu_law(every.astype(np.int16))]
    assert (np.abs(nearest - every) <= (np.abs(every) + 132) / 33).all()


def test_damage_is_told(monkeypatch):
    monkeypatch.setattr(builtin, "DIGEST", "0" * 64)
    with pytest.raises(DataError, match=r"synthetic_words.npz: digest .* reinstall the package"):
        load_words()


def test_nothing_may_stand_behind_its_name():
    with pytest.raises(ConfigError, match="expected nothing after the name"):
        open_source("spoken-words-synthetic:x", AudioOptions())
