"""What is bad is made again, the rest keeps its bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.audit import verify
from pipeline.caching.dump import cache_logits
from pipeline.caching.repair import repair
from pipeline.errors import IncompleteStoreError, MismatchError, StoreError
from pipeline.store.reader import LogitStore
from tests.pipeline.caching.test_growth import content, shards, with_train


@pytest.fixture
def path(bench, teacher, make_spec, tmp_path):
    folder = tmp_path / "main.zarr"
    cache_logits(bench, teacher, make_spec("affine8"), folder)
    return folder


def flip(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def test_a_good_store_is_left_alone(path, bench, teacher):
    before = content(path)
    assert repair(path, bench, teacher) == []
    assert content(path) == before


@pytest.mark.parametrize(
    "name",
    [
        *("train/codes/c/1/0/0", "train/scale/c/2/1", "test/codes/c/0/0/0"),
        *("train/codes/zarr.json", "train/zarr.json", "zarr.json", "train/keys/c/0"),
        *("test/digests/zarr.json", "validation/keys/c/0"),
    ],
)
@pytest.mark.parametrize("damage", ["flip", "remove", "empty"])
def test_damage_is_mended_to_the_same_bytes(path, bench, teacher, name, damage):
    before = content(path)
    file = path / name
    {"flip": flip, "remove": lambda f: f.unlink(), "empty": lambda f: f.write_bytes(b"")}[damage](file)
    assert not verify(path).ok
    assert any(name in line for line in repair(path, bench, teacher))
    assert content(path) == before


def test_only_the_bad_shard_is_made_again(path, bench, teacher, monkeypatch):
    seen = []
    original = type(teacher).output
    monkeypatch.setattr(type(teacher), "output", lambda t, x: seen.append(len(x)) or original(t, x))
    flip(path / "train/codes/c/1/2/0")
    repair(path, bench, teacher)
    assert sum(seen) == 16


def test_two_swapped_shards_are_made_again(path, bench, teacher):
    before = content(path)
    first, second = path / "train/codes/c/0/0/0", path / "train/codes/c/1/0/0"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert len(repair(path, bench, teacher)) == 2
    assert content(path) == before


def test_strays_are_removed(path, bench, teacher):
    (path / "train/stray").write_text("x")
    repair(path, bench, teacher)
    assert verify(path).ok


def test_an_edited_manifest_vouches_for_nothing(path, bench, teacher):
    before = content(path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["teacher_top1"]["cached"]["test"] = 0.99
    (path / "manifest.json").write_text(json.dumps(manifest))
    repair(path, bench, teacher)
    assert content(path) == before


def test_an_unfinished_store_is_no_case_for_repair(path, bench, teacher):
    (path / "manifest.json").unlink()
    with pytest.raises(IncompleteStoreError, match="go on with"):
        repair(path, bench, teacher)


def test_another_teacher_mends_nothing(path, bench, teacher):
    flip(path / "train/codes/c/1/0/0")
    with pytest.raises(MismatchError, match="another teacher"):
        repair(path, bench, replace(teacher, precision="bf16"))
    assert not verify(path).ok


def test_lost_keys_of_a_grown_store_cannot_be_made_again(bench, teacher, make_spec, tmp_path):
    folder = tmp_path / "grown.zarr"
    order = np.random.default_rng(1).permutation(len(bench.data.train))
    cache_logits(with_train(bench, order[:40]), teacher, make_spec(), folder)
    cache_logits(with_train(bench, order), teacher, make_spec(), folder)
    flip(folder / "train/keys/c/0")
    with pytest.raises(StoreError, match=r"which samples its rows are is lost.*dvc checkout"):
        repair(folder, bench, teacher)


def test_mending_adds_no_samples(bench, teacher, make_spec, tmp_path):
    folder = tmp_path / "small.zarr"
    cache_logits(with_train(bench, range(30)), teacher, make_spec(), folder)
    before, files = content(folder), shards(folder)
    flip(folder / "train/logits/c/0/0/0")
    repair(folder, bench, teacher)
    assert content(folder) == before
    assert len(shards(folder)) == len(files)
    assert LogitStore.open(folder).n_samples == 30
