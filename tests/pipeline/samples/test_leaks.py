"""Equal images in training and test, and of two labels: counted, with examples, in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.samples.leaks import read_leaks


@pytest.fixture
def photos(tmp_path):
    """Six training images and two to test on, all different, and some that look alike at a glance."""
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for row in range(count):
                pixels = generator.integers(0, 256, (6, 5, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{row}.png")
    mirrored = np.asarray(Image.open(root / "train/cat/0.png"))[:, ::-1]
    Image.fromarray(mirrored).save(root / "train/dog/mirrored.png")
    return root


@pytest.fixture
def prepared(photos, tmp_path, prepare_quietly):
    """Return a function (keep) that prepares the photos, to the leaks in dataset.json."""

    def run(keep="pixels"):
        source = open_source(f"folder:{photos}", ImageOptions(root=photos))
        folder = prepare_quietly(source, tmp_path / "prepared", validation=0, keep=keep)
        return json.loads((folder / "dataset.json").read_text())["leaks"]

    return run


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_nothing_is_said_of_different_images(prepared, tmp_path, capsys, keep):
    assert prepared(keep) == {}
    assert read_leaks(tmp_path / "prepared") == ""
    assert "leaks" not in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_equal_images_are_counted_with_examples(prepared, photos, tmp_path, capsys, keep):
    shutil.copy(photos / "train/cat/1.png", photos / "test/cat/copy.png")
    shutil.copy(photos / "train/cat/2.png", photos / "train/dog/also.png")
    shutil.copy(photos / "train/dog/0.png", photos / "train/dog/twice.png")
    (photos / "train/unlabelled").mkdir()
    shutil.copy(photos / "test/dog/0.png", photos / "train/unlabelled/u.png")
    found = prepared(keep)
    assert found["test_in_train"]["count"] == 2
    assert sorted(found["test_in_train"]["examples"]) == [
        ["test/cat/copy.png", "train/cat/1.png"],
        ["test/dog/0.png", "train/unlabelled/u.png"],
    ]
    assert found["two_labels"] == {"count": 1, "examples": [["train/cat/2.png", "train/dog/also.png"]]}
    line = read_leaks(tmp_path / "prepared")
    assert f"leaks: {line}\n" in capsys.readouterr().err
    assert "2 of 3 test samples are also in train (" in line
    assert "1 sample has two labels (train/cat/2.png = train/dog/also.png)" in line


def test_of_packed_images_the_pixels_count_not_the_files(prepared, photos):
    Image.open(photos / "train/cat/1.png").save(photos / "test/cat/copy.bmp")
    assert prepared()["test_in_train"]["count"] == 1


def test_validation_images_that_are_trained_on_are_told(photos, prepared):
    (photos / "val/cat").mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(photos / split / "cat/0.png", photos / "val/cat" / f"{split}.png")
    found = prepared()
    assert {kind: entry["count"] for kind, entry in found.items()} == {
        "test_in_validation": 1,
        "validation_in_train": 1,
    }


def test_data_of_older_versions_has_no_word_of_them(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"samples": {"train": 1}}))
    assert read_leaks(tmp_path) == ""
