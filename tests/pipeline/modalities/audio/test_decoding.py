"""Sound files: every format, mono by integers, faults by name."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.audio.completeness import WHOLE, Completeness, completeness
from pipeline.modalities.audio.decoding import Recording, SoundFile, read_sound, to_mono, to_rate
from tests.pipeline.modalities.audio.clips import noise, tone, write


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff"])
def test_lossless_files_are_their_samples(tmp_path, name):
    clip = noise(500)
    found = read_sound(write(tmp_path / name, clip, 11_025))
    assert (found.rate, found.file, found.is_finite) == (11_025, WHOLE, True)
    assert (found.samples == clip).all()
    assert (SoundFile(tmp_path / name)() == clip).all()


@pytest.mark.parametrize(("name", "how"), [("a.mp3", {}), ("a.ogg", {}), ("a.wav", {"subtype": "FLOAT"})])
def test_floats_and_lossy_files_are_scaled(tmp_path, name, how):
    path = tmp_path / name
    soundfile.write(path, 0.5 * np.sin(np.arange(8000) * 0.1), 16_000, **how)
    loudest = np.abs(read_sound(path).samples[2000:6000].astype(int)).max()
    assert 15_500 < loudest < 17_500


def test_a_float_beyond_full_scale_is_limited(tmp_path):
    path = write(tmp_path / "a.wav", np.array([1.5, -1.5, np.nan, 0.25] * 10), subtype="FLOAT")
    found = read_sound(path)
    assert found.samples[:4].tolist() == [32767, -32767, 0, 8192]
    assert not found.is_finite


def test_channels_are_averaged_with_halves_rounded_up(tmp_path):
    frames = np.array([[1, 2], [-1, -2], [32767, 32767], [100, -50]], np.int16)
    assert to_mono(frames).tolist() == [2, -1, 32767, 25]
    assert read_sound(write(tmp_path / "a.wav", frames)).samples.tolist() == [2, -1, 32767, 25]
    assert to_mono(np.array([[1, 1, 2]], np.int16)).tolist() == [1]


def test_a_file_that_ends_early_is_told(tmp_path):
    path = write(tmp_path / "a.wav", noise(1000))
    path.write_bytes(path.read_bytes()[:1044])
    found = read_sound(path)
    assert (len(found.samples), found.file.is_cut) == (500, True)


LONG = 0.5 * np.sin(np.arange(48_000) * 0.1)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.aiff", {"subtype": "PCM_16"}),
        ("a.aiff", {"subtype": "FLOAT"}),
        ("a.mp3", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.wav", {"subtype": "IMA_ADPCM"}),
    ],
)
def test_every_format_that_a_decoder_reads_on_is_checked_for_its_end(tmp_path, name, how):
    path = tmp_path / name
    soundfile.write(path, LONG, 16_000, **how)
    assert read_sound(path).file == WHOLE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    assert read_sound(path).file.is_cut


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_page_with_flipped_bits_is_told(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.tile(LONG, 4), 16_000, format="OGG", subtype=subtype)
    content = bytearray(path.read_bytes())
    assert completeness(bytes(content)) == WHOLE
    middle = len(content) * 2 // 3
    content[middle] ^= 4
    assert completeness(bytes(content)) == Completeness(is_damaged=True)
    assert completeness(bytes(content[:middle])).is_cut
    assert completeness(bytes(content[: content.rindex(b"OggS") + 9])).is_cut
    # Pages that follow other bytes are found again.
    assert completeness(b"OggX" + bytes(content)) == WHOLE
    whole = path.read_bytes()
    assert completeness(whole[:58] + b"lost" + whole[58:]).is_damaged


def test_tags_before_an_mp3_are_skipped(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, LONG, 16_000)
    content = b"ID3\x03\x00\x00" + bytes([0, 0, 1, 2]) + bytes(130) + path.read_bytes()
    assert completeness(content) == WHOLE
    assert completeness(content[:-200]).is_cut


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.wav: not a readable sound file"),
        (b"RIFF\x00\x00\x00\x00WAVE", "a.wav: not a readable sound file"),
        (b"a letter", r"a.wav: not a readable sound file \(Format not recognised"),
    ],
)
def test_other_bytes_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_sound(path)


def test_a_missing_file_an_empty_one_and_an_odd_rate_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.wav: not a readable sound file \(no such file\)"):
        read_sound(tmp_path / "none.wav")
    with pytest.raises(DataError, match=r"a.wav: no samples; expected at least one"):
        read_sound(write(tmp_path / "a.wav", noise(0)))
    with pytest.raises(DataError, match=r"a.wav: 400 samples per second in 1 channels; expected 1,000"):
        read_sound(write(tmp_path / "a.wav", noise(50), 400))
    with pytest.raises(DataError, match="8,001 samples per second become 8,000 by a ratio of 8000 to 8001"):
        to_rate(Recording(noise(50), 8_001), 8_000, "x")


def test_a_header_that_promises_hours_is_refused_before_they_are_decoded(tmp_path):
    path = write(tmp_path / "a.wav", tone(100, 10_000_000, rate=8000), 1_000)
    with pytest.raises(DataError, match=r"a.wav: 10,000 seconds; expected a clip"):
        read_sound(path)


def test_without_soundfile_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"a.wav: needs soundfile .* expected the extra audio; run: pip"):
        read_sound(tmp_path / "a.wav")
