"""The built-in data: what was selected, that it is whole, and that it can be rebuilt."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.sources import arrays as source_arrays
from pipeline.modalities.images.sources.arrays import CLASSES, load_subset, select_subset


@pytest.fixture(scope="module")
def arrays():
    return load_subset()


@pytest.fixture(scope="module")
def source():
    return open_source("fashion-mnist-10k", ImageOptions(root=Path("unused")))


def _write_idx(path: Path, array: np.ndarray) -> None:
    """The original format, gzipped: two zero bytes, type 8, rank, big-endian sizes, bytes."""
    sizes = np.array(array.shape, ">u4").tobytes()
    content = bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_arrays_have_their_documented_shapes_and_types(arrays):
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "train_images": ((10_000, 28, 28), np.uint8),
        "train_labels": ((10_000,), np.uint8),
        "train_positions": ((10_000,), np.uint16),
        "test_images": ((10_000, 28, 28), np.uint8),
        "test_labels": ((10_000,), np.uint8),
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_class_has_a_thousand_images(arrays, split):
    assert np.bincount(arrays[f"{split}_labels"]).tolist() == [1000] * len(CLASSES)


def test_positions_ascend_in_the_original_training_set(arrays):
    positions = arrays["train_positions"].astype(int)
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] < 60_000


def test_no_test_image_is_a_training_image(arrays):
    train = {image.tobytes() for image in arrays["train_images"]}
    shared = sum(image.tobytes() in train for image in arrays["test_images"])
    assert shared <= 2  # Fashion-MNIST itself repeats a few of its 70,000 images


def test_changed_bytes_are_refused(arrays, tmp_path, monkeypatch):
    (tmp_path / "builtin").mkdir()
    changed = {**arrays, "train_labels": arrays["train_labels"][::-1]}
    np.savez(tmp_path / "builtin" / "fashion_mnist_10k.npz", **changed)
    monkeypatch.setattr(source_arrays, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"fashion_mnist_10k.npz: digest .* reinstall"):
        load_subset()


def test_the_source_is_grey_with_ten_named_classes(source):
    assert source.classes == CLASSES
    assert source.channels == 1
    assert (len(source.train), len(source.test)) == (10_000, 10_000)
    assert source.train[0].load().shape == (28, 28, 1)


def test_names_carry_the_original_positions(source, arrays):
    positions = arrays["train_positions"].tolist()
    assert [sample.name for sample in source.train] == [f"train/{n}" for n in positions]
    assert [sample.name for sample in source.test[:3]] == ["test/0", "test/1", "test/2"]


def test_samples_load_their_own_image_and_label(source, arrays):
    for row in (0, 1234, 9999):
        assert np.array_equal(source.train[row].load()[..., 0], arrays["train_images"][row])
        assert source.train[row].label == arrays["train_labels"][row]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_selection_is_the_first_images_of_each_class_in_order(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(source_arrays, "_PER_CLASS", 2)
    labels = np.array([*[0] * 3, *range(9, -1, -1), 4, *range(10)])
    images = np.arange(len(labels) * 6).reshape(-1, 2, 3) % 256
    for part in ("train", "t10k"):
        _write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        _write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
    subset = select_subset(tmp_path)
    kept = subset["train_positions"].tolist()
    expected = sorted(row for label in range(10) for row in np.flatnonzero(labels == label)[:2])
    assert kept == expected
    assert np.array_equal(subset["train_images"], images[expected])
    assert np.array_equal(subset["train_labels"], labels[expected])
    assert np.array_equal(subset["test_images"], images)
