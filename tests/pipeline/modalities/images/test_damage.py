"""JPEG files whose data is corrupt: named, counted, listed, or refused; and remarks on odd images."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.modalities.images.damage import Ear
from pipeline.modalities.images.decoding import decode
from pipeline.modalities.images.sources import ImageOptions, open_source
from tests.pipeline.preparing import asking, prepare
from tests.pipeline.samples.test_draft import Stop

BAD = ("cat/1.jpg", "dog/4.jpg")


def cut_out(path: Path) -> None:
    """Take a piece out of the middle of a JPEG's scan."""
    content = path.read_bytes()
    middle = (content.index(b"\xff\xda") + len(content)) // 2
    path.write_bytes(content[:middle] + content[middle + 200 :])


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve training JPEG files, two of them damaged, and two to test on."""
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for row in range(count):
                small = Image.fromarray(generator.integers(0, 256, (6, 8, 3)).astype(np.uint8))
                small.resize((80, 60), Image.Resampling.BICUBIC).save(root / split / name / f"{row}.jpg")
    for name in BAD:
        cut_out(root / "train" / name)
    return root


@pytest.fixture
def prepared(photos, tmp_path):
    """Return a function (progress, and what to ask for) that prepares the photos, to their description."""

    def run(progress=None, **asked):
        return prepare(
            open_source(f"folder:{photos}", ImageOptions(root=photos)),
            tmp_path / "prepared",
            asking(**{"origin": "photos", **asked}),
            state=tmp_path / "state",
            workers=3,
            progress=progress or Stop(),
        )

    return run


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_damaged_files_are_named_counted_and_listed(prepared, photos, tmp_path, capfd, keep):
    description = prepared(keep=keep)
    expected = [str(photos / "train" / name) for name in BAD]
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("damaged:"))
    assert (
        f"damaged: 2 images have corrupt JPEG data and may decode wrongly: {', '.join(expected)};" in line
    )
    assert (tmp_path / "prepared/damaged.txt").read_text().splitlines() == expected
    assert description["remarks"] == {"damaged": 2}
    assert description["samples"]["train"] == 12


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_they_can_be_refused_and_all_others_are_kept(prepared, photos, tmp_path, keep):
    for name in ("warn", "refuse"):
        with pytest.raises((DataError, KeyboardInterrupt)):
            prepared(Stop(9) if name == "warn" else None, keep=keep, damaged=name)
    listed = (tmp_path / "state/unreadable.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in listed] == [str(photos / "train" / name) for name in BAD]
    for name in BAD:
        (photos / "train" / name).unlink()
    assert prepared(keep=keep, damaged="refuse")["samples"]["train"] == 10


def test_damaged_files_to_test_on_are_named_too(prepared, photos, capfd):
    cut_out(photos / "test/dog/0.jpg")
    assert prepared(keep="encoded")["remarks"] == {"damaged": 3}
    told = capfd.readouterr().err
    assert "test/dog/0.jpg" in told
    assert "images for damage" not in told


def test_a_list_of_an_earlier_preparation_goes(prepared, photos, tmp_path):
    prepared()
    for name in BAD:
        (photos / "train" / name).unlink()
    assert json.dumps(prepared()["remarks"]) == "{}"
    assert not (tmp_path / "prepared/damaged.txt").exists()


@pytest.mark.parametrize("after", [2, 7, 12])
def test_an_interrupted_preparation_tells_the_same(prepared, tmp_path, capfd, after):
    with pytest.raises(KeyboardInterrupt):
        prepared(Stop(after))
    prepared()
    assert "damaged: 2 images" in capfd.readouterr().err
    found = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    prepared()
    assert {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()} == found


def test_each_thread_hears_of_its_own_file_alone(photos):
    paths = sorted((photos / "train").rglob("*.jpg")) * 10
    contents = [np.fromfile(path, np.uint8) for path in paths]
    with Ear() as ear, ThreadPoolExecutor(4) as pool:
        decoders = (
            partial(decode, content, 3, path) for content, path in zip(contents, paths, strict=True)
        )
        heard = list(pool.map(ear.listen, decoders))
    expected = [str(path.relative_to(photos / "train")) in BAD for path in paths]
    assert [damaged for _, damaged in heard] == expected


def test_all_other_words_pass(capfd):
    with Ear() as ear:
        print("of Python", file=sys.stderr)
        _, damaged = ear.listen(lambda: os.write(2, b"of C code\nCorrupt JPEG data: bad Huffman code\n"))
        assert damaged
        _, damaged = ear.listen(lambda: os.write(2, b"of C code\n"))
        assert not damaged
    os.write(2, b"after\n")
    words = capfd.readouterr().err
    assert "of Python\n" in words
    assert words.endswith("of C code\nafter\n")
    assert "Corrupt" not in words


def test_ears_that_are_open_at_once_hear_alike_and_leave_stderr_as_it_was(capfd):
    complaint = b"Corrupt JPEG data: bad Huffman code\n"
    stderr = os.fstat(2)
    one, other = Ear(), Ear()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(one)
        second.enter_context(other)
        assert one.listen(lambda: os.write(2, complaint))[1]
        first.close()
        assert other.listen(lambda: os.write(2, complaint))[1]
        print("of Python", file=sys.stderr)
    os.write(2, b"after\n")
    assert os.path.samestat(os.fstat(2), stderr)
    assert capfd.readouterr().err == "of Python\nafter\n"


def test_two_preparations_at_once_in_one_process_tell_each_of_its_own_files(photos, tmp_path, capfd):
    whole = tmp_path / "whole"
    for path in sorted(photos.rglob("*.jpg")):
        if not str(path).endswith(BAD):
            copy = whole / path.relative_to(photos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())

    def remarks(root: Path) -> object:
        source, state = open_source(f"folder:{root}", ImageOptions(root=root)), root.with_suffix(".state")
        options = {"state": state, "workers": 2, "progress": Stop()}
        return prepare(source, root.with_suffix(".made"), asking(origin="x"), **options)["remarks"]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(remarks, [photos, whole])) == [{"damaged": 2}, {}]
    assert "Corrupt" not in capfd.readouterr().err.replace("corrupt JPEG data", "")


# Odd images that are read nevertheless


BITS_12 = 4095


@pytest.fixture
def x_rays(tmp_path) -> Path:
    """Pictures of 12 bits in files of 16, and one that uses all 16, in the layout of Country211."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("AD", "AE"):
            folder = tmp_path / "country211" / split / name
            folder.mkdir(parents=True)
            for row in range(2):
                pixels = generator.integers(0, BITS_12 + 1, (9, 9)).astype(np.uint16)
                Image.fromarray(pixels << 4 if row else pixels).save(folder / "x.jpg", format="png")
                (folder / "x.jpg").rename(folder / f"{row}.jpg")
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "torchvision"])
def test_pictures_of_12_bits_in_files_of_16_are_told(x_rays, tmp_path, capsys, kind):
    source = {"folder": f"folder:{x_rays}/country211", "torchvision": "torchvision:Country211"}[kind]
    description = prepare(
        open_source(source, ImageOptions(root=x_rays)),
        tmp_path / "prepared",
        asking(origin=source),
        state=tmp_path / "state",
        workers=2,
        progress=Stop(),
    )
    assert description["remarks"] == {"narrow_range": 4}
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("narrow range:"))
    assert "4 images with 16 bits use less than a quarter of their range" in line
    assert f"{x_rays}/country211/train/AD/0.jpg" in line
