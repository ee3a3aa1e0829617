"""Moments: those of all pixels, whatever their image, and exactly."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.modalities.images.encoded import Moments

SIZES = [(5, 7), (1, 1), (20, 3), (8, 8)]


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_are_those_of_all_pixels_whatever_their_image(random_image, channels):
    images = [random_image(*size, channels, seed) for seed, size in enumerate(SIZES)]
    moments = sum(map(Moments.of, images), start=Moments.none(channels))
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]) / 255
    mean, std = moments.mean_and_std()
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-6)


def test_the_deviation_of_a_constant_channel_can_be_divided_by():
    moments = Moments.of(np.full((4, 4, 1), 7, np.uint8))
    assert moments.mean_and_std()[1] == [0.001]


def test_what_is_taken_away_again_leaves_no_trace(random_image):
    some, more = (Moments.of(random_image(9, 7, 3, seed)) for seed in range(2))
    assert np.array_equal((some + more - more).counts, some.counts)
