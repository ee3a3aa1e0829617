"""No bit that flipped in a packed file goes into a dump."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import DataError
from pipeline.core.hashing import file_digest
from pipeline.dump.read_ahead import PixelChecks
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import splits_of
from pipeline.dump.verify import replay
from pipeline.evaluation.context import RunContext
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.packed import PackedSplit
from pipeline.store.layout import ShardId
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task

IMAGE_BYTES = 64


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    """A copy of the prepared dataset that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "prepared")


def opened(folder: Path) -> RunContext:
    return RunContext(
        data=PreparedData.open(folder), task=find_task(), device=torch.device("cpu"), workers=2
    )


def flip(folder: Path, split: str, row: int) -> None:
    path = folder / f"{split}.pixels"
    content = bytearray(path.read_bytes())
    content[row * IMAGE_BYTES + 17] ^= 4
    path.write_bytes(content)


def digests(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): file_digest(path)
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("split", "row"), [("train", 3), ("train", -1), ("validation", 0), ("test", 29)])
def test_a_flipped_bit_ends_a_dump_and_the_healed_data_gives_the_same_bytes(
    copy, tmp_path, teacher, make_spec, split, row
):
    whole = tmp_path / "whole.zarr"
    cache_logits(opened(copy), teacher, make_spec(), whole)
    images = getattr(PreparedData.open(copy), split)
    row = row % len(images)
    kept = (copy / f"{split}.pixels").read_bytes()
    flip(copy, split, row)
    store = tmp_path / "other.zarr"
    with pytest.raises(DataError, match=rf"{split}\.pixels: image '{images.names[row]}'.*run: pipeline"):
        cache_logits(opened(copy), teacher, make_spec(), store)
    assert not (store / "manifest.json").exists()
    (copy / f"{split}.pixels").write_bytes(kept)
    cache_logits(opened(copy), teacher, make_spec(), store)
    assert digests(store) == digests(whole)


def test_a_codec_is_not_chosen_by_pixels_that_changed(copy, tmp_path, teacher, make_spec):
    flip(copy, "train", 5)
    with pytest.raises(DataError, match=r"train\.pixels: image"):
        cache_logits(opened(copy), teacher, make_spec("auto", max_kl=0.1), tmp_path / "auto.zarr")
    assert not (tmp_path / "auto.zarr").exists()


def test_a_store_that_grows_blames_the_pixels_not_the_versions(copy, tmp_path, teacher, make_spec):
    store = tmp_path / "main.zarr"
    cache_logits(opened(copy), teacher, make_spec(), store)
    flip(copy, "train", 0)
    with pytest.raises(DataError, match=r"train\.pixels: image"):
        cache_logits(opened(copy), teacher, make_spec(view_count=4), store)


def test_the_teacher_does_not_look_again_at_pixels_that_changed(copy, tmp_path, teacher, make_spec):
    cache_logits(opened(copy), teacher, make_spec(), tmp_path / "main.zarr")
    for row in range(len(PreparedData.open(copy).train)):
        flip(copy, "train", row)
    store = LogitStore.open(tmp_path / "main.zarr", allow_drift=True)
    with pytest.raises(DataError, match=r"train\.pixels: image"):
        replay(store, opened(copy), teacher, 4)


def test_each_image_is_compared_once_for_all_its_views(context, tmp_path, teacher, make_spec, monkeypatch):
    looked_at: list[tuple[str, int]] = []
    faults = PackedSplit.faults

    def spy(images: PackedSplit, rows: np.ndarray) -> list[str]:
        looked_at.extend((images.origin, row) for row in rows.tolist())
        return faults(images, rows)

    monkeypatch.setattr(PackedSplit, "faults", spy)
    cache_logits(context, teacher, make_spec(view_count=5), tmp_path / "main.zarr")
    count = sum(len(images) for images in splits_of(context.data).values())
    assert len(looked_at) == len(set(looked_at)) == count


def test_a_large_block_is_compared_in_parts(tiny_data, monkeypatch):
    monkeypatch.setattr("pipeline.dump.read_ahead._CHECKED_AT_ONCE_BYTES", 10 * IMAGE_BYTES)
    images = tiny_data.train
    wrong = images.digests.copy()
    wrong[-1] += 1
    checks = PixelChecks({"train": replace(images, digests=wrong)}, workers=2)
    first, last = ShardId("train", 0, 0), ShardId("train", 1, 0)
    checks.begin(first, np.arange(len(images)))
    checks.begin(last, np.arange(len(images)))
    with pytest.raises(DataError, match="has changed since it was prepared"):
        checks.finish(last)
