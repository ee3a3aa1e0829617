"""Odd data goes through all commands: images of any shape, test samples without labels or of one class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.modalities.images.test_damage import cut_out
from tests.stages.conftest import make_images, run

# Height and width in pixels.
SHAPES = ((1, 1), (1, 400), (1500, 2), (7, 5), (2, 2), (16, 16))


def whole(edit, **data) -> None:
    """Run every command on other data, with as little training as possible."""
    short = {"training": {"epochs": 1}, "teachers": {"tutor": {"epochs": 1}}}
    edit({"data": data, "dumps": {"main": {"allow_poor_teacher": True}}, **short})
    commands = (
        *(["prepare"], ["train-teacher", "tutor"], ["cache-logits", "main"]),
        ["verify", "data/logits/main.zarr", "--replay", "8"],
        ["train-student", "pupil", "kd", "0", "--dump", "main"],
        *(["train-student", "pupil", "scratch", "0"], ["report"]),
    )
    for command in commands:
        assert run(*command) == 0, command


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_images_of_any_shape_and_one_huge_one(project, edit, capsys, keep):
    for split, count in (("train", 9), ("test", 3)):
        for label in ("blue", "red"):
            folder = Path("photos", split, label)
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = SHAPES[number % len(SHAPES)]
                colour = (9 * number, 0, 200) if label == "blue" else label
                Image.new("RGB", (width, height), colour).save(folder / f"{number}.png")
    Image.new("RGB", (9000, 9000), (200, 50, 40)).save("photos/train/red/huge.png")
    edit({"training": {"views": {"pad_crop": None, "random_resized_crop": {}}}})
    whole(edit, source="folder:photos", watch="photos", image_size=16, keep=keep, short_side=32)
    assert "2 classes, train 17, validation 2, test 6 images" in capsys.readouterr().out


def test_damage_in_files_that_stay_is_told_before_they_are_decoded(project, edit, capsys):
    for split, count in (("train", 8), ("test", 2)):
        for label in ("blue", "red"):
            folder = Path("photos", split, label)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((60, 80), 30.0 + number).convert("RGB").save(folder / f"{number}.jpg")
    cut_out(Path("photos/train/red/3.jpg"))
    edit({"data": {"source": "folder:photos", "watch": "photos", "image_size": 16, "keep": "encoded"}})
    edit({"training": {"views": {"pad_crop": None}, "epochs": 1}})
    assert run("prepare") == 0
    capsys.readouterr()
    assert run("train-student", "pupil", "scratch", "0") == 0
    told = "data/prepared: 1 file with damage, listed in damaged.txt there; lines of a decoder about them"
    assert told in capsys.readouterr().err


def test_no_padding_fits_an_image_of_one_pixel(project, edit, capsys):
    (train, labels), (test, right) = make_images(40, 0), make_images(12, 1)
    np.savez(
        "odd.npz", train_images=train[:, :1, :1], train_labels=labels, test_images=test, test_labels=right
    )
    edit({"data": {"source": "npz:odd.npz", "watch": "odd.npz", "image_size": 8}})
    assert run("prepare") == 0
    assert run("train-student", "pupil", "scratch", "0") == 1
    assert (
        "has 1x1 pixels, so a crop could miss it; expected less than the shorter side; remove pad_crop"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize("known", [0, 20])
def test_test_samples_without_labels_are_passed_over_or_said_to_have_none(project, edit, capsys, known):
    (train, labels), (test, right) = make_images(100, 0), make_images(40, 1)
    right = np.where(np.arange(40) < known, right, -1)
    arrays = {"train_images": train, "train_labels": labels, "test_images": test, "test_labels": right}
    np.savez("odd.npz", **arrays)
    whole(edit, source="npz:odd.npz", watch="odd.npz")
    told = capsys.readouterr().out
    assert f"test 40 ({40 - known} unlabelled)" in told
    results = json.loads(Path("reports/results.json").read_text())["students"]
    assert [run["top1"] is None for run in results] == [known == 0] * 2
    assert told.count(": top-1 unknown, no labels") == (0 if known else 2)


def test_a_test_split_of_one_class(project, edit):
    (train, labels), (test, right) = make_images(100, 0), make_images(40, 1)
    one = {"test_images": test[right == 2], "test_labels": right[right == 2]}
    np.savez("odd.npz", train_images=train, train_labels=labels, **one)
    whole(edit, source="npz:odd.npz", watch="odd.npz")
    results = json.loads(Path("reports/results.json").read_text())["students"]
    assert all(0 <= run["top1"] <= 1 and run["top5"] is None for run in results)
