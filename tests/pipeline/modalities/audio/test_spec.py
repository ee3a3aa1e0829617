"""Views of clips as data: ranges, canonical form, digests."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError, DataError, MismatchError
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
from pipeline.modalities.audio.spec import AudioViewSpec
from tests.pipeline.modalities.audio.clips import noise, write

EVERY = AudioViewSpec(
    seed=7,
    speed=Speed(),
    crop="random",
    shift=Shift(),
    polarity=Polarity(),
    gain=Gain(),
    time_mask=TimeMask(count=2),
    frequency_mask=FrequencyMask(),
    mixup=Mixup(alpha=0.4),
)
# Digests that stores hold; a change needs a new SEMANTICS.
PINNED = "48cc1112527d"


def test_a_spec_comes_back_from_its_canonical_form():
    assert AudioViewSpec.from_canonical(EVERY.canonical()) == EVERY
    assert AudioViewSpec.from_canonical(AudioViewSpec().canonical()) == AudioViewSpec()


def test_digests_are_pinned():
    assert EVERY.digest()[:12] == PINNED


def test_equal_numbers_are_equal_views():
    assert AudioViewSpec(gain=Gain(min_db=-6)).digest() == AudioViewSpec(gain=Gain(min_db=-6.0)).digest()
    assert (
        AudioViewSpec(speed=Speed(factors=[1])).digest()
        == AudioViewSpec(speed=Speed(factors=(1.0,))).digest()
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shift(seconds=0), "shift.seconds is 0; expected more than 0"),
        (lambda: Speed(factors=(0.93,)), r"speed.factors is \[0.93\]; expected 1 to 9 multiples of 0.05"),
        (lambda: Speed(factors=()), "speed.factors"),
        (lambda: Gain(min_db=3, max_db=1), "gain.min_db is 3; expected min_db <= max_db"),
        (lambda: Polarity(probability=0), "polarity.probability is 0"),
        (lambda: BackgroundNoise(folder=""), "background_noise.folder is ; expected a folder"),
        (lambda: BackgroundNoise(folder="x", max_snr_db=99), "background_noise.min_snr_db"),
        (lambda: TimeMask(longest=1.5), "time_mask.longest is 1.5"),
        (lambda: TimeMask(count=5), "time_mask.count is 5; expected 1 to 4"),
        (lambda: FrequencyMask(widest=17), "frequency_mask.widest is 17; expected 1 to 16 bands"),
        (lambda: Mixup(alpha=9), "mixup.alpha is 9"),
        (lambda: AudioViewSpec(crop="left"), "views.crop is 'left'; expected one of centre, random"),
        (lambda: AudioViewSpec(seed=-1), "views.seed is -1"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantics": 2}, "semantics 2 of rendering"),
        ({"echo": {}}, "operation echo"),
        ({"shift": {"metres": 3}}, r"operation shift\.metres"),
    ],
)
def test_views_of_another_version_are_refused(change, message):
    with pytest.raises(MismatchError, match=message):
        AudioViewSpec.from_canonical({**EVERY.canonical(), **change})


@pytest.mark.parametrize(
    "change", [{"seed": "1"}, {"shift": 3}, {"gain": {"min_db": "x"}}, {"speed": {"factors": ["fast"]}}]
)
def test_a_forged_header_is_a_clear_error(change):
    with pytest.raises(ConfigError, match="expected"):
        AudioViewSpec.from_canonical({**EVERY.canonical(), **change})


def test_the_files_of_background_noise_are_part_of_the_view(tmp_path):
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write(path / "fan.wav", noise(seed=seed))
    one, same, other = (BackgroundNoise(folder=str(path)) for path in paths)
    specs = [AudioViewSpec(background_noise=kind) for kind in (one, same, other)]
    found = [spec.canonical()["background_noise"]["digest"] for spec in specs]
    assert found[0] == found[1] != found[2]
    assert AudioViewSpec.from_canonical(specs[0].canonical()).digest() == specs[0].digest()


def test_a_missing_folder_of_noise_is_a_clear_error(tmp_path):
    spec = AudioViewSpec(background_noise=BackgroundNoise(folder=str(tmp_path / "none")))
    with pytest.raises(DataError, match="none: no sound files; expected a folder of noises"):
        spec.digest()
