"""The report's picture of a clip is a spectrogram, and its sound is the clip."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
import PIL.Image
import pytest

from pipeline.modalities.audio.pictures import listened
from tests.pipeline.modalities.audio.clips import RATE, noise, tone


def content(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))


def test_the_sound_is_the_clip():
    clip = noise(500)
    with wave.open(content(listened(clip, RATE).sound)) as file:
        assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
        assert np.frombuffer(file.readframes(500), "<i2").tolist() == clip.tolist()


@pytest.mark.parametrize("length", [1, 100, 1600, 40_000])
def test_a_clip_of_any_length_is_a_square_picture(length):
    picture = listened(tone(1000, length), RATE)
    assert PIL.Image.open(content(picture.uri)).size == (picture.side, picture.side)


def test_a_tone_is_a_line_and_high_tones_are_above_low_ones():
    rows = [
        np.asarray(PIL.Image.open(content(listened(tone(hertz, 8000), RATE).uri))).sum((1, 2)).argmax()
        for hertz in (200, 1000, 3000)
    ]
    assert 128 > rows[0] > rows[1] > rows[2] > 0
