"""How a model wants its images: normalisation as torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import rgb_to_grayscale

from pipeline.models.preprocessing import Preprocessing

IMAGENET = Preprocessing(size=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_fraction=0.875)
GREY = Preprocessing(size=8, mean=(0.286,), std=(0.353,))


def _pixels(channels: int) -> torch.Tensor:
    """Every value of a byte in every channel: (4, 8, 8, channels)."""
    return torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8, 1).repeat(1, 1, 1, channels)


@pytest.mark.parametrize("preprocessing", [IMAGENET, GREY], ids=["colour", "grey"])
def test_normalisation_is_torchvisions_within_a_millionth(preprocessing):
    pixels = _pixels(preprocessing.channels)
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
        ]
    )(pixels.permute(0, 3, 1, 2))
    ours = preprocessing.normalise(pixels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("preprocessing", [IMAGENET, GREY], ids=["colour", "grey"])
def test_normalised_images_are_channels_last(preprocessing):
    out = preprocessing.normalise(_pixels(preprocessing.channels))
    assert out.shape == (4, preprocessing.channels, 8, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_grey_images_are_repeated_for_a_model_of_three_channels():
    grey = IMAGENET.normalise(_pixels(1))
    assert torch.equal(grey, IMAGENET.normalise(_pixels(3)))
    assert grey.is_contiguous(memory_format=torch.channels_last)


def test_a_model_of_one_channel_sees_the_luma_of_colour_images():
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    luma = rgb_to_grayscale(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(GREY.normalise(pixels), GREY.normalise(luma))


def test_normalisation_of_a_sample_does_not_depend_on_its_batch():
    pixels = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8)
    whole = IMAGENET.normalise(pixels)
    for start in range(0, 64, 7):
        part = IMAGENET.normalise(pixels[start : start + 7])
        assert torch.equal(part, whole[start : start + 7])


def test_normalisation_leaves_the_pixels_as_they_are():
    pixels = _pixels(3)
    IMAGENET.normalise(pixels).zero_()
    assert torch.equal(pixels, _pixels(3))


def test_an_empty_batch_is_normalised():
    assert GREY.normalise(torch.empty(0, 8, 8, 1, dtype=torch.uint8)).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("preprocessing", [IMAGENET, GREY], ids=["colour", "grey"])
def test_preprocessing_survives_its_dictionary(preprocessing):
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
