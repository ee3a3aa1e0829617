"""Preprocessing of clips: spectrograms, rates, measured statistics, untrusted values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import ConfigError, ModelError
from pipeline.modalities.audio.modality import AUDIO
from pipeline.modalities.audio.preprocessing import AudioPreprocessing, GivenAudio
from pipeline.modalities.audio.resampling import resample
from pipeline.modalities.audio.spectrogram import Frames, log_mels, resampled
from tests.pipeline.modalities.audio.clips import RATE, noise, pack_clips, tone

USUAL = AudioPreprocessing.usual(8_000, RATE)


def test_the_usual_spectrogram_of_two_rates():
    assert (USUAL.win_length, USUAL.n_fft, USUAL.hop_length, USUAL.f_max) == (200, 256, 80, 4000)
    assert USUAL.normalise(USUAL.example(3)).shape == (3, 1, 40, 101)
    higher = AudioPreprocessing.usual(16_000, 16_000, 8_000)
    assert higher.normalise(higher.example(2)).shape == (2, 1, 40, 101)
    assert (USUAL.side, USUAL.channels) == (40, 1)


def test_a_tone_is_in_the_band_of_its_frequency():
    frames = Frames(
        sample_rate=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=32, f_min=0.0, f_max=4000.0
    )
    centres = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 34)[1:-1] / 2595) - 1)
    for band in (5, 15, 25):
        wave = torch.from_numpy(tone(float(centres[band]), 4000)).float()[None] / 32768
        assert log_mels(wave, frames)[0, :, 10].argmax() == band


def test_the_exported_form_is_the_same_to_rounding():
    generator = torch.Generator().manual_seed(0)
    for preprocessing in (USUAL, GivenAudio(sample_rate=6_000, mean=-5, std=3).over(USUAL)):
        clips = preprocessing.example(4, generator)
        listening = preprocessing.with_normalisation(nn.Identity())
        assert torch.allclose(listening(clips), preprocessing.normalise(clips), atol=1e-4)


@pytest.mark.parametrize(("rate", "target"), [(16_000, 8_000), (8_000, 16_000), (16_000, 11_025)])
def test_resampling_in_floats_is_that_in_integers_to_rounding(rate, target):
    clip = noise(1001)
    floats = resampled(torch.from_numpy(clip).float()[None], rate, target)[0]
    assert torch.allclose(floats, torch.from_numpy(resample(clip, rate, target)).float(), atol=0.51)


def test_a_waveform_is_scaled_to_its_deviation():
    preprocessing = GivenAudio(features="waveform").over(USUAL)
    clips = pack_clips([noise(8_000, seed=seed) for seed in range(5)])
    measured = preprocessing.measured(clips)
    values = measured.normalise(torch.from_numpy(np.stack([clips.array(row) for row in range(5)])))
    assert values.shape == (5, 1, 8_000)
    assert (measured.mean, round(float(values.std()), 2)) == (0.0, 1.0)


def test_statistics_are_measured_unless_they_are_known():
    clips = pack_clips([noise(8_000, seed=seed) for seed in range(5)])
    measured = AUDIO.measured(USUAL, clips)
    values = measured.normalise(torch.from_numpy(np.stack([clips.array(row) for row in range(5)])))
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01
    assert AUDIO.measured(measured, clips) is measured
    assert AUDIO.measured(GivenAudio(mean=-3.0).over(USUAL), clips).mean == -3.0


def test_a_changed_window_forgets_the_statistics_and_a_changed_length_does_not():
    known = GivenAudio(mean=-5.0, std=2.0).over(USUAL)
    assert GivenAudio(n_mels=64).over(known).mean is None
    assert (GivenAudio(size=4_000).over(known).mean, known.with_size(4_000).std) == (-5.0, 2.0)
    lower = GivenAudio(sample_rate=4_000).over(known)
    assert (lower.win_length, lower.f_max, lower.std) == (100, 2_000, None)


def test_it_comes_back_from_a_card():
    known = GivenAudio(mean=-5.0, std=2.0).over(USUAL)
    assert AUDIO.preprocessing(known.to_dict()) == known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "preprocessing.size is 0"),
        ({"mean": None}, "preprocessing.mean is None"),
        ({"std": 0.0}, "preprocessing.std"),
        ({"std": float("nan")}, "preprocessing.std"),
        ({"features": "mfcc"}, "preprocessing.features is 'mfcc'"),
        ({"win_length": 512}, "win_length is 512; expected at most n_fft, 256"),
        ({"f_max": 4001.0}, "f_max at most half of sample_rate, 4000"),
        ({"hop_length": "80"}, "preprocessing.hop_length"),
        ({"colour": 1}, "preprocessing.colour"),
    ],
)
def test_a_forged_card_is_a_clear_error(change, message):
    known = GivenAudio(mean=-5.0, std=2.0).over(USUAL).to_dict()
    with pytest.raises(ValueError, match=message):
        AUDIO.preprocessing({**known, **change})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_fft": 0}, "n_fft is 0; expected 1 to 65,536"),
        ({"sample_rate": 500}, "sample_rate is 500; expected 1,000 to 192,000"),
        ({"std": 0.0}, "std is 0.0; expected more than 0"),
    ],
)
def test_settings_out_of_range_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        GivenAudio(**given)


def test_contradicting_settings_are_refused():
    with pytest.raises(ModelError, match="preprocessing has mel bands from 20 to 9000 Hz"):
        GivenAudio(f_max=9_000.0).over(USUAL)
    with pytest.raises(
        ModelError, match=r"x does not say how it wants its clips; .* which lacks mean, std"
    ):
        GivenAudio(size=100, rendered_rate=RATE, features="waveform").alone("x")


def test_clips_of_another_rate_and_a_device_are_refused():
    clips, cpu = pack_clips([noise(100)], 16_000), torch.device("cpu")
    with pytest.raises(ModelError, match="clips have 8,000 samples per second, and the data's 16,000"):
        USUAL.renderer(clips, None, None, device=cpu, on_device=None)
    with pytest.raises(ConfigError, match="clips are rendered on the CPU alone"):
        USUAL.renderer(pack_clips([noise(100)]), None, None, device=cpu, on_device=True)


def test_what_users_of_an_exported_network_need_is_told():
    told = USUAL.deployed(normalises=True)
    assert told["input"] == {"dtype": "int16", "layout": "(batch, time)", "normalised": False}
    assert told["preprocessing"]["rendered_rate"] == RATE
    assert USUAL.deployed(normalises=False)["input"]["layout"] == "(batch, 1, mel band, frame)"
