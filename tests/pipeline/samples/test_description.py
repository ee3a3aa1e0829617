"""dataset.json is checked where it comes in, and compared with what is asked for now."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.core.errors import DataError, MismatchError
from pipeline.core.hashing import spec_digest
from pipeline.modalities.images import options
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.description import DECISIVE, Description, read_description, require_as_asked

ASKED = {"source": "npz:a.npz", "root": "data/raw", "channels": 3, "short_side": None}
ASKED |= {"keep": "pixels", "validation": 0.2, "seed": 0}


def compare(folder: Path, description: Description, asked: dict[str, object]) -> None:
    require_as_asked(folder, description, asked, options.ImageOptions())


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    """A copy of the prepared dataset that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "prepared")


def rewrite(folder: Path, *, honest: bool = True, **changes: object) -> None:
    """Change keys of dataset.json; None removes one, an honest forger renews the digest."""
    path = folder / "dataset.json"
    content = {**json.loads(path.read_text()), **changes}
    content = {key: value for key, value in content.items() if value != "remove"}
    if honest and content.pop("description_digest", None):
        content["description_digest"] = spec_digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "3"}, "schema: Input should be a valid integer"),
        ({"schema": "remove"}, "schema: Field required"),
        ({"classes": "remove"}, "classes: Field required"),
        ({"classes": []}, "classes: Tuple should have at least 1 item"),
        ({"classes": [1, 2, 3]}, "classes.0: Input should be a valid string"),
        ({"channels": 2}, "channels: Input should be 1 or 3"),
        ({"channels": 3}, "expected 3 values of mean"),
        ({"keep": "jpeg"}, "keep: Input should be 'pixels' or 'encoded'"),
        ({"keep": "encoded"}, "a root if and only if images stay encoded"),
        ({"short_side": -1}, "short_side: Input should be greater than or equal to 1"),
        ({"mean": [2.0]}, "mean.0: Input should be less than or equal to 1"),
        ({"mean": [0.5, 0.5]}, "expected 1 values of mean"),
        ({"std": [0.0]}, "expected 1 values of std, above 0"),
        ({"samples": {"train": 1}}, "expected sample counts for train, validation, test"),
        ({"samples": {"train": -1, "validation": 1, "test": 1}}, "samples.train: Input should be"),
        ({"files": {"train.npz": 7}}, "files.train.npz: Input should be a valid string"),
        ({"made_with": [1]}, "made_with: Input should be an object"),
        ({"samples": {"train": 1, "validation": 1, "test": 30}}, "dataset.json says"),
        ({"classes": ["only"]}, "labels up to 2; dataset.json says"),
        ({"digest": "0" * 64}, "not match dataset.json"),
        ({"files": {"test.names": "0" * 64}}, "test.names: content does not match dataset.json"),
    ],
)
def test_a_forged_description_is_refused_by_key(copy, changes, message):
    rewrite(copy, **changes)
    with pytest.raises(DataError) as caught:
        PreparedData.open(copy)
    told = str(caught.value)
    assert message in told
    assert told.startswith(str(copy))
    assert "run: pipeline prepare" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"7", b"{", b"\xff\xfe", b"[" * 3000, b'{"schema": 3, "x": NaN', b'"' + b"a" * 10_000],
)
def test_what_is_no_description_is_refused_in_one_line(copy, content):
    (copy / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json: .*run: pipeline prepare") as caught:
        PreparedData.open(copy)
    assert len(str(caught.value)) < 400 + len(str(copy))
    assert "\n" not in str(caught.value)


def test_a_description_that_was_changed_in_place_is_refused(copy):
    mean = json.loads((copy / "dataset.json").read_text())["mean"][0]
    rewrite(copy, honest=False, mean=[mean / 2])
    with pytest.raises(DataError, match=r"dataset\.json: changed since it was written"):
        PreparedData.open(copy)


def test_a_description_of_an_older_version_opens_without_what_it_does_not_say(copy):
    rewrite(copy, description_digest="remove", files="remove", made_with="remove")
    assert len(PreparedData.open(copy).test) == 30
    description = read_description(copy)
    assert options.ImageOptions().known(description) == {"keep": "pixels", "short_side": None}
    compare(copy, description, {**ASKED, "source": "test", "validation": 0.9, "channels": 1})
    with pytest.raises(MismatchError, match=r"was prepared from test, but params.yaml asks for npz:a\.npz"):
        compare(copy, description, ASKED)


@pytest.fixture
def made(copy):
    """The description of data that was made with some changes to `ASKED`."""

    def describe(**changes):
        made_with = {**ASKED, **changes}
        rewrite(copy, made_with=made_with, source=made_with["source"])
        return read_description(copy)

    return describe


def test_data_that_is_as_asked_passes(copy, made):
    assert set(ASKED) == {*DECISIVE, *options.DECISIVE}
    compare(copy, made(), ASKED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": "npz:b.npz"},
            "was prepared from npz:a.npz, but params.yaml asks for npz:b.npz; run: pipeline prepare",
        ),
        ({"source": "folder:a.npz"}, "was prepared from npz:a.npz, but params.yaml asks for folder:a.npz"),
        ({"validation": 0.5}, "validation 0.2, but params.yaml asks for npz:a.npz with validation 0.5"),
        ({"seed": 1, "keep": "encoded"}, "with keep pixels, seed 0, but params.yaml asks for"),
        ({"channels": 1}, "with channels 3"),
        ({"short_side": 64}, "with short_side None"),
        ({"source": "npz:b.npz\n" + "x" * 5000}, r"params.yaml asks for npz:b.npz\nxxx"),
    ],
)
def test_data_that_is_not_as_asked_is_refused_by_both_values(copy, made, changes, message):
    asked = {name: {**ASKED, **changes}[name] for name in ASKED}
    with pytest.raises(MismatchError) as caught:
        compare(copy, made(), asked)
    told = str(caught.value)
    assert message in told
    assert told.endswith("run: pipeline prepare")
    assert "\n" not in told
    assert len(told) < 600 + len(str(copy))


def test_one_source_spelled_otherwise_is_the_same(copy, made, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.npz").touch()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    was = made(source="folder:photos")
    for path in ("photos/", "./photos", "photos/../photos", str(tmp_path / "photos"), "link", "photos//"):
        compare(copy, was, {**ASKED, "source": f"folder:{path}"})
    absolute = made(source=f"npz:{tmp_path}/photos/a.npz")
    compare(copy, absolute, {**ASKED, "source": f"npz:{os.path.relpath('link/a.npz')}"})
    with pytest.raises(MismatchError, match="asks for folder:elsewhere"):
        compare(copy, was, {**ASKED, "source": "folder:elsewhere"})


def test_a_project_that_was_moved_keeps_its_data(copy, made, tmp_path, monkeypatch):
    was = made(source="npz:here/a.npz")
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path / "moved")
    compare(copy, was, {**ASKED, "source": "npz:here/a.npz"})


def test_a_root_decides_for_downloads_alone(copy, made):
    compare(copy, made(), {**ASKED, "root": "elsewhere"})
    was = made(source="torchvision:CIFAR10")
    compare(copy, was, {**ASKED, "source": "torchvision:CIFAR10", "root": "./data/raw/"})
    with pytest.raises(MismatchError, match=r"with root data/raw, but params\.yaml asks for"):
        compare(copy, was, {**ASKED, "source": "torchvision:CIFAR10", "root": "elsewhere"})


def test_the_seed_decides_only_where_something_validates(copy, made):
    was = made(validation=0.0)
    compare(copy, was, {**ASKED, "validation": 0, "seed": 5})
    with pytest.raises(MismatchError, match="seed 0"):
        compare(copy, made(), {**ASKED, "seed": 5})


@pytest.mark.parametrize(
    ("made_with", "remarks", "asked", "words"),
    [
        (
            {"max_pixels": 99},
            {},
            {"max_pixels": 98},
            "max_pixels 99, but params.yaml asks for folder:a with max_pixels 98",
        ),
        ({"max_pixels": 99}, {}, {"max_pixels": 100}, ""),
        ({"max_pixels": 99, "source": "npz:a.npz"}, {}, {"max_pixels": 9}, ""),
        ({}, {}, {"max_pixels": 9}, ""),
        (
            {"damaged": "warn"},
            {"damaged": 2},
            {"damaged": "refuse"},
            "damaged warn, but params.yaml asks for folder:a with damaged refuse",
        ),
        ({"damaged": "warn"}, {}, {"damaged": "refuse"}, ""),
        ({"damaged": "refuse"}, {}, {"damaged": "warn"}, ""),
        ({}, {"damaged": 2}, {"damaged": "refuse"}, "damaged warn"),
    ],
)
def test_data_that_was_made_less_strictly_is_refused_if_it_may_differ(
    copy, made_with, remarks, asked, words
):
    made_with = {"source": "folder:a", **made_with}
    rewrite(copy, made_with=made_with, source=made_with["source"], remarks=remarks)
    asked = {"source": made_with["source"], **asked}
    if not words:
        compare(copy, read_description(copy), asked)
        return
    with pytest.raises(MismatchError) as caught:
        compare(copy, read_description(copy), asked)
    assert words in str(caught.value)
    assert str(caught.value).endswith("; run: pipeline prepare, or with DVC: dvc repro -f -s prepare")
