"""Some images to look at, of a split or of any folder."""

from __future__ import annotations

import pytest
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.modalities.images.pictures import open_pictures


def test_images_are_spread_over_the_split(tiny_data):
    some = tiny_data.test.spread(4)
    assert list(some.names) == [tiny_data.test.names[row] for row in (0, 10, 19, 29)]
    assert (some.array(3) == tiny_data.test.array(29)).all()
    assert len(tiny_data.test.spread(1000)) == len(tiny_data.test)


def test_a_folders_files_are_decoded_whatever_their_folder_and_size(tmp_path, random_image, capsys):
    images = {"b/1.png": random_image(9, 7), "a.png": random_image(5, 6, seed=1)}
    for name, image in images.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    opened = open_pictures(tmp_path, 3, 10)
    assert capsys.readouterr().err == f"{tmp_path}: left out: 1 file (.txt 1)\n"
    assert list(opened.names) == ["a.png", "b/1.png"]
    for row, name in enumerate(opened.names):
        assert (opened.array(row) == images[name]).all()
    assert opened.labels.tolist() == [-1, -1]
    assert open_pictures(tmp_path, 1, 1).array(0).shape == (5, 6, 1)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.heic").touch()
    others = ", left out: 1 file" if name == "empty" else ""
    with pytest.raises(DataError, match=f"{name}: no image files{others}"):
        open_pictures(tmp_path / name, 3, 4)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.png"):
        open_pictures(tmp_path, 3, 4)
