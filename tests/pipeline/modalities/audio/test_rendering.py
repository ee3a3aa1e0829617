"""Rendered clips: exact in any batch, and each operation does what its name says."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.core.errors import MismatchError
from pipeline.core.hashing import array_digest
from pipeline.modalities.audio.draw import clip_parameters
from pipeline.modalities.audio.filters import mel_edges
from pipeline.modalities.audio.operations import (
    BackgroundNoise,
    FrequencyMask,
    Gain,
    Mixup,
    Polarity,
    Shift,
    Speed,
    TimeMask,
)
from pipeline.modalities.audio.rendering import (
    AudioViews,
    amplify,
    energy,
    mix,
    nine_bits,
    play,
    remove_bands,
)
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.views.pairing import pair_up
from tests.pipeline.modalities.audio.clips import RATE, noise, pack_clips, tone, write

SIZE = 900
CLIPS = pack_clips([noise(600 + 37 * row, seed=row) for row in range(24)])
EVERY = np.arange(len(CLIPS))


def views(spec: AudioViewSpec | None, size: int = SIZE, clips=CLIPS) -> AudioViews:
    mixes = spec is not None and spec.mixes
    pairing = pair_up(clips.keys, 0 if spec is None else spec.seed, mixes=mixes)
    return AudioViews(clips, spec, pairing, SimpleNamespace(size=size))


@pytest.fixture
def strong(tmp_path) -> AudioViewSpec:
    """Every operation, noise included."""
    write(tmp_path / "noise/fan.wav", noise(3000, seed=99))
    write(tmp_path / "noise/hum/short.wav", tone(50, 200))
    return AudioViewSpec(
        seed=5,
        speed=Speed(factors=(0.9, 1.0, 1.15)),
        crop="random",
        shift=Shift(seconds=0.02),
        polarity=Polarity(),
        gain=Gain(),
        background_noise=BackgroundNoise(folder=str(tmp_path / "noise"), probability=0.7),
        time_mask=TimeMask(count=2),
        frequency_mask=FrequencyMask(count=2),
        mixup=Mixup(probability=0.8),
    )


def test_a_row_depends_on_neither_batch_nor_order(strong):
    renderer = views(strong)
    whole = renderer.render(3, EVERY)
    assert whole.shape == (24, SIZE)
    backwards = renderer.render(3, EVERY[::-1].copy())
    assert (backwards.flip(0) == whole).all()
    for rows in np.array_split(np.random.default_rng(0).permutation(EVERY), 7):
        assert (renderer.render(3, rows) == whole[rows]).all()
    assert all((renderer.render(3, EVERY[[row]])[0] == whole[row]).all() for row in (0, 11))


def test_views_differ_and_other_clips_change_nothing(strong):
    plain = replace(strong, mixup=None)
    seen = [views(plain).render(view, EVERY).numpy() for view in range(3)]
    assert all((seen[0] != other).any(1).all() for other in seen[1:])
    few = CLIPS.subset(EVERY[5:9])
    assert (views(plain, clips=few).render(0, np.arange(4)).numpy() == seen[0][5:9]).all()


def test_renderings_are_pinned(strong):
    quiet = replace(strong, background_noise=None)
    assert array_digest(views(quiet).render(1, EVERY).numpy())[:12] == PINNED


# The rendered bytes that stores hold checksums of; a change needs a new SEMANTICS.
PINNED = "3654b9d6594e"


def test_without_views_longer_clips_are_cropped_and_shorter_ones_padded_in_the_middle():
    clips = pack_clips([np.arange(1, 11, dtype=np.int16), np.arange(1, 4, dtype=np.int16)])
    rendered = views(None, 6, clips).render(0, np.arange(2)).tolist()
    assert rendered == [[3, 4, 5, 6, 7, 8], [0, 0, 1, 2, 3, 0]]


def test_a_random_crop_reaches_both_ends():
    spec = AudioViewSpec(crop="random")
    lengths = np.full(2000, 10)
    keys = np.arange(2000).astype(np.uint64)
    longer = clip_parameters(spec, view=0, keys=keys, lengths=lengths, size=6, rate=RATE).starts
    shorter = clip_parameters(spec, view=0, keys=keys, lengths=lengths, size=13, rate=RATE).starts
    assert np.unique(longer).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(shorter).tolist() == [-3, -2, -1, 0]


def test_a_shift_moves_by_up_to_its_seconds():
    lengths, keys = np.full(4000, 100), np.arange(4000).astype(np.uint64)
    spec = AudioViewSpec(shift=Shift(seconds=0.005))
    starts = clip_parameters(spec, view=0, keys=keys, lengths=lengths, size=100, rate=RATE).starts
    assert (starts.min(), starts.max()) == (-40, 40)


@pytest.mark.parametrize(("speed", "hertz"), [(18, 900), (20, 1000), (24, 1200)])
def test_a_faster_clip_is_higher_and_shorter(speed, hertz):
    clips = np.empty((1, 3000), np.int16)
    play(clips, [tone(1000, 2000)], np.array([0]), np.array([speed]))
    spectrum = np.abs(np.fft.rfft(clips[0, 100:900] * np.hanning(800)))
    assert spectrum.argmax() * RATE / 800 == hertz
    assert abs(np.flatnonzero(clips[0]).max() - 2000 * 20 / speed) < 20


def test_gain_is_in_decibels_and_polarity_is_a_sign():
    clips = np.stack([tone(440, 100)] * 4)
    louder = clips.copy()
    amplify(louder, np.array([0, 48, -48, 0]), np.array([False, False, False, True]))
    levels = [20 * math.log10(np.abs(row.astype(float)).max() / np.abs(clips[0]).max()) for row in louder]
    assert np.allclose(levels, [0, 6, -6, 0], atol=0.02)
    assert (louder[0] == clips[0]).all()
    assert (louder[3] == -clips[3]).all()
    amplify(louder, np.full(4, 320), np.zeros(4, bool))
    assert np.abs(louder.astype(int)).max() == 32767


def test_products_in_float32_are_exact():
    samples = np.arange(-32767, 32768).astype(np.int16)
    for value in (1, 4097, 123_457, 1 << 26):
        factor = nine_bits(value, 20)
        assert abs(factor / (value / 2**20) - 1) <= 2**-9
        products = np.multiply(samples, np.float32(factor), dtype=np.float32)
        assert (products.astype(float) == samples.astype(float) * factor).all()


def test_noise_has_its_ratio_to_the_clip(strong, tmp_path):
    kind = replace(strong.background_noise, probability=1.0, min_snr_db=12.0, max_snr_db=12.0)
    quiet = replace(strong.background_noise, folder=kind.folder)
    clips = pack_clips([tone(300 + 50 * row, 500, loudness=0.1) for row in range(8)])
    assert quiet == strong.background_noise
    plain = views(AudioViewSpec(), 500, clips).render(0, np.arange(8)).numpy().astype(np.int64)
    noisy = views(AudioViewSpec(background_noise=kind), 500, clips).render(0, np.arange(8)).numpy()
    ratios = [energy(a) / energy(b) for a, b in zip(plain, noisy - plain, strict=True)]
    assert np.allclose(10 * np.log10(ratios), 12, atol=0.1)


def test_silence_stays_silent_under_noise(strong):
    kind = replace(strong.background_noise, probability=1.0)
    clips = pack_clips([np.zeros(500, np.int16)])
    assert not views(AudioViewSpec(background_noise=kind), 500, clips).render(0, np.arange(1)).any()


def test_other_noise_than_the_dump_had_is_refused(strong):
    forged = replace(strong, background_noise=replace(strong.noise, digest="0" * 64))
    with pytest.raises(MismatchError, match=r"background noise of digest .* bring the same files back"):
        views(forged)


def test_a_time_mask_silences_up_to_its_share():
    spec = AudioViewSpec(time_mask=TimeMask(longest=0.3, probability=1.0))
    clips = pack_clips([np.full(400, 5, np.int16) for _ in range(300)])
    silent = (views(spec, 400, clips).render(0, np.arange(300)).numpy() == 0).sum(1)
    assert (silent.min() <= 2, silent.max() > 110, silent.max() <= 120) == (True, True, True)


def test_a_frequency_mask_removes_a_band_and_nothing_else():
    clip = noise(8000, seed=3)[None]
    masked = clip.copy()
    remove_bands(masked, np.array([[[12, 18]]]), RATE)
    before, after = (np.abs(np.fft.rfft(x[0].astype(float))) ** 2 for x in (clip, masked))
    edges = np.array(mel_edges(RATE, 32)) * len(before)
    band = slice(int(edges[12]) + 60, int(edges[18]) - 60)
    beside = np.r_[0 : int(edges[12]) - 120, int(edges[18]) + 120 : len(before)]
    assert after[band].sum() < 1e-3 * before[band].sum()
    assert abs(after[beside].sum() / before[beside].sum() - 1) < 0.01


def test_the_filter_equals_the_convolution_in_integers():
    loud = np.where(np.random.default_rng(1).random(700) < 0.5, 32767, -32767).astype(np.int16)
    masked = loud[None].copy()
    remove_bands(masked, np.array([[[0, 16]]]), RATE)
    impulse = np.zeros((1, 1021), np.int16)
    impulse[0, 510] = 1 << 14
    remove_bands(impulse, np.array([[[0, 16]]]), RATE)
    assert masked.shape == (1, 700)
    # A filter's response to an impulse is the filter, here rounded to 14 of its 16 bits.
    close = np.convolve(loud.astype(float), impulse[0, 255:766] / (1 << 14), "same")
    assert np.abs(np.clip(close, -32767, 32767) - masked[0]).max() < 200


def test_a_mixture_is_a_share_of_each_and_tells_it():
    one, other = np.full((1, 4), 1000, np.int16), np.full((1, 4), -3000, np.int16)
    assert mix(one, other, np.array([256])).tolist() == [[1000] * 4]
    assert mix(one, other, np.array([64])).tolist() == [[-2000] * 4]
    spec = AudioViewSpec(seed=2, mixup=Mixup(probability=1.0))
    renderer = views(spec)
    shares = renderer.shares(0, EVERY)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert len(np.unique(shares)) > 10
    partners = pair_up(CLIPS.keys, 2, mixes=True).partners(0, EVERY)
    plain = views(None).render(0, EVERY).numpy().astype(float)
    expected = plain * shares[:, None] + plain[partners] * (1 - shares[:, None])
    assert np.abs(renderer.render(0, EVERY).numpy() - expected).max() <= 1
    assert views(AudioViewSpec()).shares(0, EVERY) is None
