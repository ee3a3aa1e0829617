"""Stores of schema 3: read, grown, repaired and upgraded; no shard is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError
from pipeline.dump.repair import repair
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import splits_of
from pipeline.dump.verify import verify
from pipeline.store.index import Splits
from pipeline.store.layout import SCHEMA
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from pipeline.store.summary import inspect
from pipeline.store.upgrade import Upgraded, upgrade
from tests.pipeline.dump.test_growth import content
from tests.pipeline.store.older import to_schema_3


@pytest.fixture
def path(context, teacher, make_spec, tmp_path) -> Path:
    folder = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), folder)
    return folder


def shards_of(path: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of each shard's file."""
    files = [f for array in ("codes", "scale") for f in path.glob(f"*/{array}/c/**/*") if f.is_file()]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def splits(context) -> Splits:
    return splits_of(context.data)


@pytest.fixture
def states(path, splits) -> tuple[dict, dict]:
    """The store before and after it became one of schema 3."""
    before = content(path)
    to_schema_3(path, splits)
    return before, content(path)


def test_an_upgrade_gives_the_bytes_of_a_new_dump(path, states, splits):
    before, older = states
    kept = shards_of(path)
    assert older != before
    assert json.loads((path / "manifest.json").read_text())["schema"] == 3
    assert upgrade(path, splits) == Upgraded(changed=True, untold=0)
    assert content(path) == before
    assert shards_of(path) == kept
    assert verify(path).ok
    assert upgrade(path, splits) == Upgraded(changed=False, untold=0)


def test_an_older_store_is_read_and_verified(path, states):
    older = inspect(path)
    views = [LogitStore.open(path).view(view) for view in range(3)]
    assert verify(path).ok
    upgrade(path)
    newer = inspect(path)
    assert {**older.summary, "schema": 4} == newer.summary
    assert (older.fidelity, older.labelled) == (newer.fidelity, newer.labelled)
    assert all(torch.equal(LogitStore.open(path).view(view), views[view]) for view in range(3))


def test_an_older_store_that_is_complete_stays_as_it_is(path, states, context, teacher, make_spec):
    cache_logits(context, teacher, make_spec("affine8"), path)
    assert content(path) == states[1]


def test_an_older_store_is_upgraded_as_it_grows(
    path, states, splits, context, teacher, make_spec, tmp_path
):
    files = shards_of(path)
    cache_logits(context, teacher, make_spec("affine8", view_count=4), path)
    assert files.items() < shards_of(path).items()
    assert not (path / "records.jsonl").exists()
    at_once = tmp_path / "once.zarr"
    cache_logits(context, teacher, make_spec("affine8", view_count=4), at_once)
    upgrade(path, splits)
    assert content(path) == content(at_once)


def test_an_older_store_is_upgraded_as_it_is_repaired(path, states, splits, context, teacher):
    (path / "train/codes/c/1/2/0").write_bytes(b"damaged")
    repair(path, context, teacher)
    assert inspect(path).header.schema == SCHEMA
    upgrade(path, splits)
    assert content(path) == states[0]


def test_an_older_store_without_its_manifest_is_completed(
    path, states, splits, context, teacher, make_spec
):
    (path / "manifest.json").unlink()
    cache_logits(context, teacher, make_spec("affine8"), path)
    upgrade(path, splits)
    assert content(path) == states[0]


@pytest.mark.parametrize("name", ["zarr.json", "train/keys/c/0", "train/codes/zarr.json"])
def test_a_damaged_store_is_not_upgraded(path, states, name):
    file = path / name
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    before = content(path)
    with pytest.raises(CorruptStoreError, match=r"verify \S+ --repair"):
        upgrade(path)
    assert content(path) == before


def test_what_cannot_be_upgraded_is_said(path, states, context, teacher, make_spec, tmp_path):
    with pytest.raises(IncompleteStoreError, match="no such store"):
        upgrade(tmp_path / "none.zarr")
    spec = make_spec("affine8", view_count=5)
    cache_logits(context, teacher, spec, path, part=Slice(0, 2), completes=False)
    with pytest.raises(StoreError, match="has an unfinished growth, which upgrades the store"):
        upgrade(path)
    cache_logits(context, teacher, spec, path)
    assert LogitStore.open(path).n_views == 5
    assert not upgrade(path).changed
