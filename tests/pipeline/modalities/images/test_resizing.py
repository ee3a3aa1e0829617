"""Shrinking: shapes that keep the aspect, and torchvision's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipeline.modalities.images.decoding import shrink, shrunk_shape


@pytest.mark.parametrize(
    ("shape", "short_side", "expected"),
    [
        ((375, 500), 256, (256, 341)),  # 341.33
        ((500, 375), 256, (341, 256)),
        ((333, 500), 256, (256, 384)),  # 384.38
        ((300, 401), 200, (200, 267)),  # 267.33
        ((64, 99), 32, (32, 50)),  # 49.5 goes up
        ((300, 300), 16, (16, 16)),
        ((17, 4000), 16, (16, 3765)),  # 3764.7
        ((256, 4000), 256, (256, 4000)),
        ((10, 4000), 256, (10, 4000)),
        ((375, 500), None, (375, 500)),
    ],
)
def test_the_shorter_side_is_the_cap_and_the_longer_keeps_the_aspect(shape, short_side, expected):
    assert shrunk_shape(*shape, short_side) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(61, 97), (97, 61), (33, 200), (64, 64), (32, 90), (20, 90)])
def test_pixels_are_those_of_torchvisions_resize(random_image, shape, channels):
    image = random_image(*shape, channels)
    image.flags.writeable = False
    found = shrink(image, 32)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()
    expected = v2.functional.resize(pixels, list(shrunk_shape(*shape, 32)), antialias=True)
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())


def test_a_smaller_image_is_left_alone(random_image):
    image = random_image(20, 90)
    assert shrink(image, 32) is image
    assert shrink(image, None) is image
