"""How a model wants its images: normalisation as torchvision's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import rgb_to_grayscale

from pipeline.core.errors import ConfigError, ModelError
from pipeline.loading.feed import Feed
from pipeline.modalities.images.preprocessing import GivenPreprocessing, Preprocessing

IMAGENET = Preprocessing(size=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_fraction=0.875)
GREY = Preprocessing(size=8, mean=(0.286,), std=(0.353,))
CUBIC = replace(IMAGENET, interpolation="bicubic")


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


@pytest.mark.parametrize("preprocessing", [IMAGENET, GREY, CUBIC], ids=["colour", "grey", "cubic"])
def test_preprocessing_survives_its_dictionary(preprocessing):
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


def test_bilinear_interpolation_goes_without_saying():
    """So cards that were written before there was another have the digests that they had."""
    assert "interpolation" not in IMAGENET.to_dict()
    assert CUBIC.to_dict()["interpolation"] == "bicubic"


def test_an_interpolation_that_is_not_rendered_is_refused():
    with pytest.raises(ModelError, match=r"needs 'lanczos' interpolation; expected bilinear or bicubic"):
        replace(IMAGENET, interpolation="lanczos")


@pytest.mark.parametrize("on_device", [False, True], ids=["staged", "resident"])
@pytest.mark.parametrize("preprocessing", [IMAGENET, CUBIC], ids=["bilinear", "bicubic"])
def test_a_feed_resizes_as_the_model_wants(random_image, pack_images, preprocessing, on_device):
    images = [random_image(30, 40, 3, seed) for seed in range(3)]
    packed = pack_images(images)
    feed = Feed(packed, None, IMAGENET, device=torch.device("cpu"), on_device=on_device)
    pixels = feed.seen_by(preprocessing).pixels(0, np.arange(3))
    whole = Feed(packed, None, preprocessing, device=torch.device("cpu"), on_device=on_device)
    assert torch.equal(whole.pixels(0, np.arange(3)), pixels)
    mode = v2.InterpolationMode(preprocessing.interpolation)
    for image, found in zip(images, pixels, strict=True):
        cropped = torch.from_numpy(image).permute(2, 0, 1)
        theirs = v2.functional.resized_crop(cropped, 2, 7, 26, 26, [8, 8], mode, antialias=True)
        assert torch.equal(found, theirs.permute(1, 2, 0))


# What a user says


def test_what_is_said_stands_over_what_is_known():
    said = GivenPreprocessing(size=16, crop_fraction=0.5, interpolation="bicubic")
    assert said.over(IMAGENET) == replace(CUBIC, size=16, crop_fraction=0.5)
    assert GivenPreprocessing().over(CUBIC) == CUBIC


def test_what_is_said_may_be_all_there_is():
    said = GivenPreprocessing(size=8, mean=IMAGENET.mean, std=IMAGENET.std, crop_fraction=0.875)
    assert said.alone("model x") == IMAGENET


def test_what_is_not_said_where_nothing_is_known_is_asked_for():
    with pytest.raises(
        ModelError, match=r"model x does not specify its preprocessing.* which lacks mean, std; add it"
    ):
        GivenPreprocessing(size=8).alone("model x")


def test_means_without_as_many_deviations_are_refused():
    with pytest.raises(ModelError, match=r"1 means and 3 standard deviations; .* set both mean and std"):
        GivenPreprocessing(mean=(0.5,)).over(IMAGENET)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 7), ("size", 1025), ("mean", (0.5, 0.5)), ("mean", (123.0,) * 3), ("std", (0.0,)),
        ("std", (58.0,) * 3), ("crop_fraction", 0), ("crop_fraction", 1.1),
    ],
)  # fmt: skip
def test_what_is_said_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is "):
        GivenPreprocessing(**{name: value})
