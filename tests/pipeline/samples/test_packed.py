"""Packed images: what is prepared is what is read."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.hashing import content_digest, sample_key
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.samples import Sample

SIZES = [(5, 7), (1, 1), (20, 3), (8, 8)]


@pytest.fixture
def pack(tmp_path, prepare_quietly):
    """Return a function that prepares training images and opens them."""

    def run(images, *, labels=None, names=None, folder="prepared"):
        labels = range(len(images)) if labels is None else labels
        names = [f"train/{row}.png" for row in range(len(images))] if names is None else names
        samples = [
            Sample(name, label, lambda image=image: image)
            for name, label, image in zip(names, labels, images, strict=True)
        ]
        channels = images[0].shape[2]
        classes = tuple(map(str, range(1 + max(2, *labels))))
        source = ImageSource(classes=classes, channels=channels, train=samples, test=samples[:1])
        return PreparedData.open(prepare_quietly(source, tmp_path / folder, validation=0)).train

    return run


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_several_sizes_come_back_as_they_were(pack, random_image, channels):
    images = [random_image(*size, channels, seed) for seed, size in enumerate(SIZES)]
    packed = pack(images)
    assert len(packed) == len(SIZES)
    for row, image in enumerate(images):
        assert np.array_equal(packed.array(row), image)
    assert packed.shapes.tolist() == [list(size) for size in SIZES]
    assert packed.uniform is None


def test_images_of_one_size_are_one_array_without_a_copy(pack, random_image):
    images = [random_image(6, 4, 3, seed) for seed in range(5)]
    packed = pack(images)
    pixels, places = packed.uniform
    assert np.array_equal(pixels[places], np.stack(images))
    assert np.shares_memory(pixels, packed.values)


def test_an_image_is_a_view_of_the_file(pack, random_image):
    packed = pack([random_image(6, 4)])
    assert np.shares_memory(packed.array(0), packed.values)


def test_a_slice_that_is_not_contiguous_is_packed_in_reading_order(pack, random_image):
    image = random_image(12, 8)[::2, ::-1]
    assert np.array_equal(pack([image]).array(0), image)


def test_labels_names_keys_and_digests_are_those_of_the_samples(pack, random_image):
    images = [random_image(3, 3, 1, seed) for seed in range(3)]
    names, labels = ["train/a/ä.png", "train/b/x y.png", "train/c/1"], [2, -1, 0]
    packed = pack(images, names=names, labels=labels)
    assert tuple(packed.names) == tuple(names)
    assert packed.labels.tolist() == labels
    assert packed.labels.dtype == np.int64
    assert packed.keys.tolist() == [sample_key(name) for name in names]
    assert packed.digests.tolist() == [
        content_digest(image, label) for image, label in zip(images, labels, strict=True)
    ]


@pytest.mark.parametrize("strange", ["\u2028", "\x0b", "\x85", "\r"])
def test_names_with_unusual_characters_stay_one_name(pack, random_image, strange):
    names = [f"train/a{strange}b.png", "train/c.png"]
    packed = pack([random_image(2, 2)] * 2, names=names)
    assert tuple(packed.names) == tuple(names)


def test_an_empty_split_can_be_written_and_read(tmp_path, make_source, prepare_quietly):
    packed = PreparedData.open(prepare_quietly(make_source(), tmp_path / "x", validation=0)).validation
    assert len(packed) == 0
    assert packed.uniform is None
    assert packed.shapes.shape == (0, 2)


def test_two_samples_of_one_name_are_refused(pack, random_image):
    with pytest.raises(DataError, match="'train/x' and 'train/x' have the same key"):
        pack([random_image(2, 2)] * 2, names=["train/x", "train/x"])


def test_the_digest_of_a_split_changes_with_a_pixel_a_label_a_name_and_the_order(pack, random_image):
    images = [random_image(2, 2, 1, seed) for seed in range(2)]
    changed = [images[0].copy(), images[1]]
    changed[0][0, 0, 0] ^= 1
    digests = {
        pack(images).digest(),
        pack(changed).digest(),
        pack(images, labels=[1, 1]).digest(),
        pack(images, names=["train/0.png", "train/2.png"]).digest(),
        pack(images[::-1], names=["train/1.png", "train/0.png"], labels=[1, 0]).digest(),
    }
    assert len(digests) == 5


def test_content_tells_shapes_of_equal_bytes_apart():
    pixels = np.arange(12, dtype=np.uint8)
    shapes = [(2, 6, 1), (6, 2, 1), (2, 2, 3), (12, 1, 1)]
    assert len({content_digest(pixels.reshape(shape), 0) for shape in shapes}) == len(shapes)


def test_a_subset_keeps_each_samples_pixels_and_names(pack_images, random_image):
    images = [random_image(5, 4, seed=n) for n in range(6)]
    part = pack_images(images, labels=list(range(6))).subset(np.array([4, 1]))
    assert tuple(part.names) == ("train/4", "train/1")
    assert part.labels.tolist() == [4, 1]
    assert np.array_equal(part.array(0), images[4])
    pixels, places = part.uniform
    assert np.array_equal(pixels[places], np.stack([images[4], images[1]]))
