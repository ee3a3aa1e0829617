"""Encoded images: files that stay give the pixels of packed ones, or are refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.loading.feed import Feed
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.encoded import EncodedSplit
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from tests.pipeline.preparing import asking, prepare
from tests.pipeline.samples.test_draft import Stop

VIEWS = ViewSpec(seed=4, random_resized_crop=RandomResizedCrop(), flip="random")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Files of every format, some of them turned, one of another format than its name says."""
    root, generator = tmp_path_factory.mktemp("some") / "photos", np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 8
    kinds = [("jpg", {}), ("png", {}), ("webp", {}), ("gif", {}), ("jpg", {"exif": turned})]
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for row, (suffix, options) in enumerate(kinds * 2):
                shape = (*generator.integers(12, 60, 2), 3)
                image = Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8))
                image.save(root / split / name / f"{row}.{suffix}", **options)
    os.replace(root / "train/cat/1.png", root / "train/cat/1.jpg")
    return root


@pytest.fixture
def prepared(photos, tmp_path):
    """Return a function (keep, short_side, channels, progress) that prepares and opens the photos."""

    def run(keep: str, short_side: int | None = None, channels: int = 3, progress=None) -> PreparedData:
        source = open_source(f"folder:{photos}", ImageOptions(root=photos, channels=channels))
        asked = asking(origin="photos", validation=0.2, keep=keep, short_side=short_side)
        folder = tmp_path / keep
        options = {"state": tmp_path / f"{keep}.state", "workers": 2, "progress": progress or Stop()}
        prepare(source, folder, asked, **options)
        return PreparedData.open(folder)

    return run


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("short_side", [None, 20])
def test_encoded_images_are_the_packed_ones(prepared, tmp_path, channels, short_side):
    packed, encoded = (prepared(keep, short_side, channels) for keep in ("pixels", "encoded"))
    for name in ("train", "validation", "test"):
        pixels, files = getattr(packed, name), getattr(encoded, name)
        assert isinstance(files, EncodedSplit)
        assert (len(files), files.size_bytes, files.uniform) == (len(pixels), pixels.size_bytes, None)
        assert files.form.channels == channels
        assert list(files.names) == list(pixels.names)
        for column in ("shapes", "labels", "keys"):
            assert np.array_equal(getattr(files, column), getattr(pixels, column)), column
        for row in range(len(pixels)):
            assert np.array_equal(files.array(row), pixels.array(row)), files.names[row]
    assert encoded.statistics == packed.statistics
    assert not list((tmp_path / "encoded").glob("*.pixels"))
    assert json.loads((tmp_path / "encoded/dataset.json").read_text())["keep"] == "encoded"


@pytest.mark.parametrize("workers", [1, 3])
def test_every_view_has_the_same_pixels(prepared, workers):
    preprocessing = Preprocessing(size=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    packed, encoded = (
        Feed(prepared(keep, 20).train, VIEWS, preprocessing, device=CPU, workers=workers)
        for keep in ("pixels", "encoded")
    )
    rows = np.random.default_rng(0).permutation(len(packed.images))
    requests = [(view, some) for view in range(3) for some in np.array_split(rows, 4)]
    for one, other in zip(packed.rendered(requests), encoded.rendered(requests), strict=True):
        assert torch.equal(one, other)


def test_a_subset_is_decoded_from_its_own_files(prepared):
    train = prepared("encoded").train
    part = train.subset(np.array([5, 2]))
    assert list(part.names) == [train.names[5], train.names[2]]
    assert np.array_equal(part.array(1), train.array(2))


def test_digests_are_of_bytes_label_and_shape(prepared):
    whole, smaller, again = (prepared("encoded", side).train for side in (None, 20, 4096))
    changed = whole.shapes != smaller.shapes
    assert np.array_equal(whole.digests != smaller.digests, changed.any(1))
    assert np.array_equal(whole.digests, again.digests)
    assert not set(whole.digests.tolist()) & set(prepared("pixels").train.digests.tolist())


def test_an_interrupted_scan_goes_on_to_the_same_bytes(prepared, tmp_path):
    prepared("encoded")
    folder = tmp_path / "encoded"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    for after in (3, 9, 20, 13):
        with pytest.raises(KeyboardInterrupt):
            prepared("encoded", progress=Stop(after))
        assert not (folder / "dataset.json").exists()
    prepared("encoded")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


@pytest.fixture
def own_copy(photos, tmp_path, prepared):
    """Photos that a test may change, prepared as encoded images."""
    root = shutil.copytree(photos, tmp_path / "own")
    source = open_source(f"folder:{root}", ImageOptions(root=root))
    asked = asking(origin="own", keep="encoded")
    state = tmp_path / "own.state"
    prepare(source, tmp_path / "prepared", asked, state=state, workers=1, progress=Stop())
    return root, PreparedData.open(tmp_path / "prepared").train


def test_a_file_that_is_gone_is_named(own_copy):
    root, train = own_copy
    (root / train.names[3]).unlink()
    with pytest.raises(
        DataError, match=rf"{train.names[3]}: missing, .* restore it, or run: pipeline prep"
    ):
        train.array(3)


@pytest.mark.parametrize("change", ["longer", "a flipped bit", "replaced"])
def test_a_file_that_changed_is_named_with_what_to_do(own_copy, change):
    root, train = own_copy
    path = root / train.names[0]
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    other = (root / train.names[5]).read_bytes()
    path.write_bytes({"longer": content + b"x", "a flipped bit": flipped, "replaced": other}[change])
    message = (
        rf"{train.names[0]}: content .* bytes\) has changed since it was prepared; .*run: pipeline prepare"
    )
    with pytest.raises(DataError, match=message):
        train.array(0)


def test_a_failure_on_a_rendering_thread_names_the_file(own_copy):
    root, train = own_copy
    (root / train.names[3]).write_bytes(b"")
    preprocessing = Preprocessing(size=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    feed = Feed(train, VIEWS, preprocessing, device=CPU, workers=2)
    with pytest.raises(DataError, match=rf"{train.names[3]}: content \(0 bytes\)"):
        list(feed.rendered([(0, np.arange(8))]))


def test_another_shape_than_the_header_promised_is_refused(own_copy, monkeypatch):
    _, train = own_copy
    monkeypatch.setattr(
        "pipeline.modalities.images.encoded.decode",
        lambda content, channels, path: np.zeros((4, 5, 3), np.uint8),
    )
    with pytest.raises(
        DataError, match=r"decodes to 4x5 pixels; expected \d+x\d+, according to its header"
    ):
        train.array(0)


def test_files_that_are_damaged_behind_their_headers_are_found_where_they_are_measured(own_copy, tmp_path):
    root, train = own_copy
    names = [name for name in train.names if name.endswith("0.jpg")]
    for name in names:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[:-200])
    source = open_source(f"folder:{root}", ImageOptions(root=root))
    asked, state = asking(origin="own", keep="encoded"), tmp_path / "state"
    with pytest.raises(DataError, match=rf"{len(names)} of 40 images cannot be read"):
        prepare(source, tmp_path / "again", asked, state=state, workers=1, progress=Stop())
    assert len((state / "unreadable.txt").read_text().splitlines()) == len(names)


def test_an_empty_file_is_named(own_copy, tmp_path):
    root, train = own_copy
    (root / train.names[0]).write_bytes(b"")
    asked, source = (
        asking(origin="own", keep="encoded"),
        open_source(f"folder:{root}", ImageOptions(root=root)),
    )
    with pytest.raises(
        DataError, match=rf"{train.names[0]}: not a readable image \(0 bytes: an empty file"
    ):
        prepare(source, tmp_path / "new", asked, state=tmp_path / "s", workers=1, progress=Stop())


def test_mean_and_deviation_are_estimated_from_a_spread_sample(prepared, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.samples.prepare.MEASURED", 5)
    encoded = prepared("encoded")
    train = encoded.train
    chosen = np.linspace(0, len(train) - 1, 5).astype(int)
    pixels = np.concatenate([train.array(row).reshape(-1, 3) for row in chosen]) / 255
    np.testing.assert_allclose(encoded.statistics["mean"], pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(encoded.statistics["std"], pixels.std(0), atol=1e-6)
    told = capsys.readouterr().err
    assert f"estimated from 5 of {len(train)} training images" in told
    assert "checked 13 of 40 images for damage; the rest are decoded on use" in told


def test_a_project_may_move_with_its_images(photos, tmp_path, monkeypatch):
    before = tmp_path / "before"
    shutil.copytree(photos, before / "photos")
    monkeypatch.chdir(before)
    source = open_source("folder:photos", ImageOptions(root=Path("data/raw")))
    asked, folder = asking(origin="folder:photos", keep="encoded"), Path("data/prepared")
    prepare(source, folder, asked, state=Path("runs/.state/prepare"), workers=1, progress=Stop())
    train = PreparedData.open(folder).train
    expected = train.array(0)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(train.array(0), expected)
    before.rename("after")
    assert np.array_equal(PreparedData.open(Path("after/data/prepared")).train.array(0), expected)
