"""Packed images: what is written is what is read, and a broken folder is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pipeline.data.packed import Moments, PreparedData, SplitWriter
from pipeline.data.sample import Sample, Source
from pipeline.digests import content_digest, sample_key
from pipeline.errors import DataError

SIZES = [(5, 7), (1, 1), (20, 3), (8, 8)]


def _sample(name: str, label: int = 0, image: np.ndarray | None = None) -> Sample:
    return Sample(name, label, lambda: image)


def _write(folder, images, *, labels=None, names=None):
    labels = range(len(images)) if labels is None else labels
    names = [f"train/{row}.png" for row in range(len(images))] if names is None else names
    with SplitWriter(folder, "train", images[0].shape[2] if images else 3, "none") as writer:
        for name, label, image in zip(names, labels, images, strict=True):
            writer.add(_sample(name, label), image)
        return writer.finish()


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the prepared dataset that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "prepared")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_several_sizes_come_back_as_they_were(tmp_path, random_image, channels):
    images = [random_image(*size, channels, seed) for seed, size in enumerate(SIZES)]
    packed = _write(tmp_path, images)
    assert len(packed) == len(SIZES)
    for row, image in enumerate(images):
        assert np.array_equal(packed.image(row), image)
    assert packed.shapes.tolist() == [list(size) for size in SIZES]
    assert packed.uniform is None


def test_images_of_one_size_are_one_array_without_a_copy(tmp_path, random_image):
    images = [random_image(6, 4, 3, seed) for seed in range(5)]
    packed = _write(tmp_path, images)
    pixels, places = packed.uniform
    assert np.array_equal(pixels[places], np.stack(images))
    assert np.shares_memory(pixels, packed.pixels)


def test_an_image_is_a_view_of_the_file(tmp_path, random_image):
    packed = _write(tmp_path, [random_image(6, 4)])
    assert np.shares_memory(packed.image(0), packed.pixels)


def test_a_slice_that_is_not_contiguous_is_packed_in_reading_order(tmp_path, random_image):
    image = random_image(12, 8)[::2, ::-1]
    assert np.array_equal(_write(tmp_path, [image]).image(0), image)


def test_labels_names_keys_and_digests_are_those_of_the_samples(tmp_path, random_image):
    images = [random_image(3, 3, 1, seed) for seed in range(3)]
    names, labels = ["train/a/ä.png", "train/b/x y.png", "train/c/1"], [2, -1, 0]
    packed = _write(tmp_path, images, names=names, labels=labels)
    assert packed.names == tuple(names)
    assert packed.labels.tolist() == labels
    assert packed.labels.dtype == np.int64
    assert packed.keys.tolist() == [sample_key(name) for name in names]
    assert packed.digests.tolist() == [
        content_digest(image, label) for image, label in zip(images, labels, strict=True)
    ]


@pytest.mark.parametrize("strange", ["\u2028", "\x0b", "\x85", "\r"])
def test_names_with_unusual_characters_stay_one_name(tmp_path, random_image, strange):
    names = [f"train/a{strange}b.png", "train/c.png"]
    packed = _write(tmp_path, [random_image(2, 2)] * 2, names=names)
    assert packed.names == tuple(names)


def test_an_empty_split_can_be_written_and_read(tmp_path):
    packed = _write(tmp_path, [])
    assert len(packed) == 0
    assert packed.uniform is None
    assert packed.shapes.shape == (0, 2)


def test_two_samples_of_one_name_are_refused(tmp_path, random_image):
    with pytest.raises(DataError, match="'train/x' and 'train/x' have the same key"):
        _write(tmp_path, [random_image(2, 2)] * 2, names=["train/x", "train/x"])


def test_the_digest_of_a_split_changes_with_a_pixel_a_label_a_name_and_the_order(tmp_path, random_image):
    images = [random_image(2, 2, 1, seed) for seed in range(2)]
    changed = [images[0].copy(), images[1]]
    changed[0][0, 0, 0] ^= 1
    digests = {
        _write(tmp_path, images).digest(),
        _write(tmp_path, changed).digest(),
        _write(tmp_path, images, labels=[1, 1]).digest(),
        _write(tmp_path, images, names=["train/0.png", "train/2.png"]).digest(),
        _write(tmp_path, images[::-1], names=["train/1.png", "train/0.png"], labels=[1, 0]).digest(),
    }
    assert len(digests) == 5


def test_content_tells_shapes_of_equal_bytes_apart():
    pixels = np.arange(12, dtype=np.uint8)
    shapes = [(2, 6, 1), (6, 2, 1), (2, 2, 3), (12, 1, 1)]
    assert len({content_digest(pixels.reshape(shape), 0) for shape in shapes}) == len(shapes)


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_are_those_of_all_pixels_whatever_their_image(random_image, channels):
    images = [random_image(*size, channels, seed) for seed, size in enumerate(SIZES)]
    moments = Moments(channels)
    for image in images:
        moments.add(image)
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]) / 255
    mean, std = moments.mean_and_std()
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-6)


def test_the_deviation_of_a_constant_channel_can_be_divided_by():
    moments = Moments(1)
    moments.add(np.full((4, 4, 1), 7, np.uint8))
    assert moments.mean_and_std()[1] == [0.001]


def test_prepared_data_opens_with_what_was_prepared(tiny_data):
    assert tiny_data.classes == ("bar-0", "bar-1", "bar-2")
    assert tiny_data.channels == 1
    assert len(tiny_data.train) + len(tiny_data.validation) == 90
    assert len(tiny_data.test) == 30
    pixels = tiny_data.train.uniform[0] / 255
    np.testing.assert_allclose(tiny_data.mean, [pixels.mean()], atol=1e-6)
    np.testing.assert_allclose(tiny_data.std, [pixels.std()], atol=1e-6)


def test_prepared_pixels_cannot_be_written_to(tiny_data):
    with pytest.raises(ValueError, match="read-only"):
        tiny_data.train.image(0)[...] = 0


def test_a_folder_that_was_never_prepared_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset.json is missing.*run: pipeline prepare"):
        PreparedData.open(tmp_path)


def test_prepared_data_without_its_description_is_incomplete(copy):
    (copy / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset.json is missing"):
        PreparedData.open(copy)


@pytest.mark.parametrize(
    "name", ["train.pixels", "validation.npz", "test.names", "test.pixels", "train.npz"]
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing; run: pipeline prepare"):
        PreparedData.open(copy)


def test_truncated_pixels_are_named_with_both_sizes(copy):
    path = copy / "train.pixels"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"train.pixels: {size - 1} bytes, expected {size}"):
        PreparedData.open(copy)


@pytest.mark.parametrize("name", ["train.npz", "dataset.json"])
@pytest.mark.parametrize("kept_bytes", [0, 20])
def test_a_truncated_index_or_description_is_named(copy, name, kept_bytes):
    path = copy / name
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=name):
        PreparedData.open(copy)


def test_swapped_splits_are_refused(copy):
    for suffix in ("npz", "pixels", "names"):
        test, validation = copy / f"test.{suffix}", copy / f"validation.{suffix}"
        test.rename(copy / "swap")
        validation.rename(test)
        (copy / "swap").rename(validation)
    with pytest.raises(DataError, match=r"do not belong to dataset.json.*run: pipeline prepare"):
        PreparedData.open(copy)


def test_the_index_of_another_preparation_is_refused(copy, tmp_path, make_source, prepare_quietly):
    source = make_source()
    reversed_names = [Sample(sample.name + "x", sample.label, sample.load) for sample in source.train]
    other = prepare_quietly(
        Source(classes=source.classes, channels=1, train=reversed_names, test=source.test),
        tmp_path / "other",
        validation=0,
    )
    for suffix in ("npz", "pixels", "names"):
        shutil.copy(other / f"train.{suffix}", copy / f"train.{suffix}")
    with pytest.raises(DataError, match=r"do not belong to dataset.json"):
        PreparedData.open(copy)


@pytest.mark.parametrize("schema", [1, 3])
def test_another_schema_is_refused(copy, schema):
    path = copy / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(DataError, match=rf"schema {schema}, this program reads 2"):
        PreparedData.open(copy)


def test_a_subset_keeps_each_samples_pixels_and_names(pack_images, random_image):
    images = [random_image(5, 4, seed=n) for n in range(6)]
    part = pack_images(images, labels=list(range(6))).subset(np.array([4, 1]))
    assert part.names == ("train/4", "train/1")
    assert part.labels.tolist() == [4, 1]
    assert np.array_equal(part.image(0), images[4])
    pixels, places = part.uniform
    assert np.array_equal(pixels[places], np.stack([images[4], images[1]]))
