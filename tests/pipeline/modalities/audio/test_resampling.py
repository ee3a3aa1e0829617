"""Resampling: exact integers, close to the ideal, the same on every machine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.core.hashing import array_digest
from pipeline.modalities.audio.filters import kaiser, mel_edges, power_of_ten, sine
from pipeline.modalities.audio.resampling import (
    LOUDEST,
    Span,
    make_resampler,
    resample,
    rounded,
    window,
)
from tests.pipeline.modalities.audio.clips import noise, tone

RATIOS = [(160, 441), (80, 441), (441, 160), (1, 3), (2, 1), (20, 18), (20, 23)]
# Prepared data and views depend on these integers. A change needs a new RESAMPLER and SEMANTICS.
PINNED = {(160, 441): "81adc1f0", (1, 2): "0a73d368", (20, 22): "8695642f"}


def test_sine_and_window_are_those_of_mathematics():
    places = np.linspace(-3, 3, 601)
    assert np.abs(sine(places) - np.sin(np.pi * places)).max() < 1e-14
    inside = np.linspace(-0.99, 0.99, 199)
    assert np.allclose(kaiser(inside), np.i0(8 * np.sqrt(1 - inside**2)) / np.i0(8), atol=1e-14)
    assert kaiser(np.array([-1.5, 1.0])).tolist() == [0, 0]


def test_powers_of_ten_and_mels():
    assert [power_of_ten(db, 20, 1 << 12) for db in (-20, 0, 20)] == [410, 4096, 40960]
    edges = np.array(mel_edges(16_000, 8)) * 8000
    mels = 2595 * np.log10(1 + edges / 700)
    assert np.allclose(np.diff(mels), mels[-1] / 8, atol=1e-3)


@pytest.mark.parametrize(("up", "down"), RATIOS)
def test_every_phase_sums_to_one_exactly(up, down):
    resampler = make_resampler(up, down)
    assert (resampler.matrix.sum(0) == 1 << 20).all()
    assert (resampler.matrix == np.rint(resampler.matrix)).all()


@pytest.mark.parametrize(("up", "down"), RATIOS)
def test_it_equals_the_sum_in_python_integers(up, down):
    clip, resampler = noise(300), make_resampler(up, down)
    got = resample(clip, down, up)
    assert len(got) == math.ceil(300 * up / down)
    for place in (0, 7, len(got) - 1):
        block, phase = divmod(place, resampler.up)
        first = block * resampler.down - resampler.reach + 1
        taps = [int(c) for c in resampler.matrix[:, phase]]
        total = sum(c * int(clip[first + n]) for n, c in enumerate(taps) if 0 <= first + n < len(clip))
        assert got[place] == max(-LOUDEST, min(LOUDEST, (total + (1 << 19)) >> 20))


def test_a_tone_stays_and_what_cannot_be_kept_goes():
    heard = resample(tone(1000, 44_100, rate=44_100), 44_100, 16_000)[200:-200].astype(float)
    ideal = tone(1000, 16_000, rate=16_000)[200:-200]
    assert 10 * np.log10((ideal.astype(float) ** 2).mean() / ((heard - ideal) ** 2).mean()) > 75
    gone = resample(tone(9500, 44_100, rate=44_100), 44_100, 16_000)[200:-200].astype(float)
    assert 10 * np.log10((gone**2).mean() / (ideal.astype(float) ** 2).mean()) < -70


def test_a_part_is_the_part_of_the_whole():
    clip, resampler = noise(1000), make_resampler(20, 23)
    whole = resample(clip, 23, 20)
    for span in (Span(0, 10), Span(13, 200), Span(-5, 30), Span(860, 40)):
        part = resampler.apply(window(clip, resampler.needed(span)), span)
        places = np.arange(span.first, span.first + span.count)
        inside = (places >= 0) & (places < len(whole))
        assert (part[inside] == whole[places[inside]]).all()


def test_silence_and_a_constant_stay():
    assert not resample(np.zeros(50, np.int16), 3, 2).any()
    assert (resample(np.full(400, 1234, np.int16), 44_100, 8_000)[30:-30] == 1234).all()


def test_full_scale_is_limited_and_halves_are_rounded_up():
    loud = np.where(np.arange(100) % 20 < 10, LOUDEST, -LOUDEST).astype(np.int16)
    assert np.abs(resample(loud, 2, 3).astype(int)).max() == LOUDEST
    assert rounded(np.array([-3.0, -1.0, 1.0, 3.0]) * 2, 2).tolist() == [-1, 0, 1, 2]


def test_a_ratio_of_large_terms_is_refused():
    with pytest.raises(ValueError, match="a ratio of 8000 to 8001; expected at most 4096"):
        resample(noise(10), 8_001, 8_000)


@pytest.mark.parametrize(("up", "down"), PINNED)
def test_filters_are_pinned(up, down):
    assert array_digest(make_resampler(up, down).matrix)[:8] == PINNED[up, down]
