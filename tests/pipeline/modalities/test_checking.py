"""Bytes of prepared data that changed are found: by a sample at a start, all of them on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import write_png

from pipeline.core.errors import DataError
from pipeline.modalities import prepared
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.prepared import PreparedData, audit_data, require_sample, sampled_rows

IMAGE_BYTES = 64


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    """A copy of the prepared dataset that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "prepared")


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def audit(folder: Path):
    return audit_data(folder, workers=2, progress=lambda batches, _: iter(batches))


def test_data_that_is_whole_is_found_whole(copy):
    found = audit(copy)
    assert (found.checked, found.images, found.bad) == (1 + 3 * 3, 120, [])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_of_any_split_is_named_with_its_image(copy, split, bit):
    data = PreparedData.open(copy)
    images = getattr(data, split)
    row = len(images) - 1
    flip(copy / f"{split}.pixels", row * IMAGE_BYTES + 5, bit)
    name = images.names[row]
    (line,) = audit(copy).bad
    assert f"{split}.pixels: image {name!r} has changed since it was prepared" in line
    assert line.endswith("run: pipeline prepare")
    with pytest.raises(DataError, match=rf"{split}\.pixels: image '{name}'"):
        require_sample(PreparedData.open(copy), seed=0, workers=2)
    assert images.faults(np.arange(row)) == []


@pytest.mark.parametrize(
    "name", [f"{split}.{kind}" for split in ("train", "validation", "test") for kind in ("npz", "names")]
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_flipped_bit_of_the_index_is_refused_at_once(copy, name, share):
    size = (copy / name).stat().st_size
    flip(copy / name, int(share * (size - 1)))
    with pytest.raises(DataError, match=rf"{name}: content does not match dataset\.json"):
        PreparedData.open(copy)
    (line,) = audit(copy).bad
    assert name in line


@pytest.mark.parametrize("kind", ["npz", "names"])
def test_an_index_of_an_older_version_with_a_flipped_bit_is_refused_or_harmless(copy, kind):
    """Without SHA-256 of files, keys and contents decide: a bit of the archive's dates changes nothing."""
    path = copy / "dataset.json"
    content = json.loads(path.read_text())
    for key in ("description_digest", "files", "made_with"):
        del content[key]
    path.write_text(json.dumps(content))
    index = copy / f"train.{kind}"
    whole, before = index.read_bytes(), PreparedData.open(copy).digest()
    for place in range(0, len(whole), 41):
        flip(index, place, place % 8)
        told = audit(copy).bad
        assert all("\n" not in line for line in told)
        if not told:
            assert PreparedData.open(copy).digest() == before
        index.write_bytes(whole)


def test_every_fault_is_listed_and_a_flood_is_counted(copy):
    (copy / "test.names").unlink()
    content = bytearray((copy / "train.pixels").read_bytes())
    (copy / "train.pixels").write_bytes(bytes(255 - value for value in content))
    found = audit(copy)
    told = "\n".join(found.bad)
    assert "test.names: missing" in told
    assert sum("has changed since it was prepared" in line for line in found.bad) == 20
    assert "more samples with faults" in told


def test_a_folder_that_was_never_prepared_is_bad(tmp_path):
    (line,) = audit(tmp_path).bad
    assert "no prepared dataset" in line


def test_names_that_are_not_those_of_the_keys_are_found(copy):
    path, description = copy / "test.names", copy / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b"test/0\n", b"test/x\n"))
    content = json.loads(description.read_text())
    for key in ("description_digest", "files"):
        del content[key]
    description.write_text(json.dumps(content))
    (line,) = audit(copy).bad
    assert "test.names: 1 name without a matching key in the index, first 'test/x'" in line


def test_of_a_large_split_a_random_sample_is_looked_at(tiny_data, monkeypatch):
    images = tiny_data.train
    assert sampled_rows(images, 0).tolist() == list(range(len(images)))
    monkeypatch.setattr(prepared, "SAMPLED_BYTES", 20 * IMAGE_BYTES)
    monkeypatch.setattr(prepared, "SAMPLED_IMAGES", 10)
    first, same, other = (sampled_rows(images, seed).tolist() for seed in (0, 0, 1))
    assert first == same != other
    assert len(set(first)) == 20
    monkeypatch.setattr(prepared, "SAMPLED_BYTES", 1)
    assert len(sampled_rows(images, 0)) == 10


def test_files_that_stay_are_compared_too(tmp_path, prepare_quietly, random_image):
    root = tmp_path / "photos"
    for split, count in (("train", 6), ("test", 2)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = torch.from_numpy(random_image(9, 8, 3, index)).permute(2, 0, 1)
                write_png(pixels, str(root / split / label / f"{index}.png"))
    source = open_source(f"folder:{root}", ImageOptions(root=tmp_path))
    folder = prepare_quietly(source, tmp_path / "prepared", keep="encoded", validation=0)
    assert audit(folder).checked == 1 + 2 * 3 + 16
    flip(root / "train/a/3.png", -20)
    (root / "test/b/1.png").unlink()
    found = audit(folder)
    assert len(found.bad) == 2
    assert "train/a/3.png" in found.bad[0]
    assert "has changed since it was prepared" in found.bad[0]
    assert "test/b/1.png: missing" in found.bad[1]
