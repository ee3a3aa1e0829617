"""A dump decodes each encoded image once for all its views, and makes the shards of packed ones."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.dump import read_ahead
from pipeline.dump.read_ahead import DecodedBlocks, fitting_shard_rows, held_bytes
from pipeline.dump.run import cache_logits
from pipeline.evaluation.context import RunContext
from pipeline.modalities.images.augmentations import Mixup, RandomResizedCrop
from pipeline.modalities.images.encoded import EncodedSplit
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.store.layout import CHUNK_ROWS, ShardId
from pipeline.store.writer import StoreWriter
from pipeline.tasks.table import find_task

MIXED = ViewSpec(seed=9, random_resized_crop=RandomResizedCrop(), mixup=Mixup())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, prepare_quietly) -> dict[str, Path]:
    """75 photos of several sizes, prepared as pixels and encoded."""
    root, generator = tmp_path_factory.mktemp("blocks"), np.random.default_rng(0)
    for split, count in (("train", 25), ("test", 4)):
        for name in "abc":
            (root / "photos" / split / name).mkdir(parents=True)
            for row in range(count):
                pixels = generator.integers(0, 256, (*generator.integers(9, 20, 2), 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / "photos" / split / name / f"{row:02}.jpg")
    source = open_source(f"folder:{root / 'photos'}", ImageOptions(root=root))
    return {keep: prepare_quietly(source, root / keep, keep=keep) for keep in ("pixels", "encoded")}


def _bench(folder: Path, workers: int = 2) -> RunContext:
    return RunContext(
        data=PreparedData.open(folder), task=find_task(), device=torch.device("cpu"), workers=workers
    )


@pytest.fixture(scope="module")
def tutor(folders) -> Teacher:
    torch.manual_seed(0)
    data = PreparedData.open(folders["pixels"])
    architecture = Architecture(name="wrn_16_2", num_classes=3, channels=3, stem_stride=1)
    card = ModelCard(
        architecture=architecture,
        preprocessing=Preprocessing(size=12, **data.statistics),
        classes=data.classes,
    )
    return Teacher(name="t", network=build(architecture).eval(), card=card, precision="fp32")


@pytest.fixture
def decoded(monkeypatch) -> Counter[str]:
    """How often each image was decoded."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def spy(self, row, read=EncodedSplit.array):
        with lock:
            counts[self.names[row]] += 1
        return read(self, row)

    monkeypatch.setattr(EncodedSplit, "array", spy)
    return counts


def _shards(store: Path) -> dict[str, str]:
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.glob("*/*/c/**/*"))
        if file.is_file() and "digests" not in file.parts
    }


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"shard_rows": 8}, {"shard_rows": 4096}, {"views": MIXED}])
def test_each_image_is_decoded_once_and_shards_are_those_of_packed_images(
    folders, tutor, make_spec, tmp_path, decoded, workers, changes
):
    spec = make_spec(**changes)
    cache_logits(_bench(folders["pixels"]), tutor, spec, tmp_path / "pixels.zarr")
    cache_logits(_bench(folders["encoded"], workers), tutor, spec, tmp_path / "encoded.zarr")
    data = PreparedData.open(folders["encoded"])
    names = [*data.train.names, *data.validation.names, *data.test.names]
    assert decoded == Counter(dict.fromkeys(names, 1))
    assert len(_shards(tmp_path / "pixels.zarr")) > 3
    assert _shards(tmp_path / "encoded.zarr") == _shards(tmp_path / "pixels.zarr")


def test_view_by_view_images_are_decoded_once_a_view_and_the_store_is_the_same(
    folders, tutor, make_spec, tmp_path, decoded, monkeypatch
):
    context, spec = _bench(folders["encoded"]), make_spec()
    by_block = cache_logits(context, tutor, spec, tmp_path / "by-block.zarr")
    decoded.clear()
    made, write = [], StoreWriter.write
    monkeypatch.setattr(
        StoreWriter, "write", lambda self, shard, *a, **k: (made.append(shard), write(self, shard, *a, **k))
    )
    by_view = cache_logits(context, tutor, spec, tmp_path / "by-view.zarr", by_view=True)
    assert by_view.to_dict() == by_block.to_dict()
    train = [shard for shard in made if shard.section == "train"]
    assert train == sorted(train)
    assert len(train) > 2 * spec.view_count
    assert {decoded[name] for name in context.data.train.names} == {spec.view_count}


def test_what_is_missing_of_a_block_is_made_of_one_decoding(folders, tutor, make_spec, tmp_path, decoded):
    context, store = _bench(folders["encoded"]), tmp_path / "x.zarr"
    cache_logits(context, tutor, make_spec(view_count=1), store)
    decoded.clear()
    cache_logits(context, tutor, make_spec(view_count=4), store)
    train = set(context.data.train.names)
    # Samples with checksums of the finished view are looked at before: all rows of such small shards.
    assert {name: count for name, count in decoded.items() if name in train} == dict.fromkeys(train, 2)


def test_a_block_that_does_not_fit_is_held_in_part_and_it_is_said(
    folders, tutor, make_spec, tmp_path, decoded, monkeypatch, capsys
):
    context, spec = _bench(folders["encoded"]), make_spec(shard_rows=4096)
    sizes = context.data.train.shapes.astype(np.int64).prod(1) * 3
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", int(sizes[:20].sum()))
    cache_logits(context, tutor, spec, tmp_path / "x.zarr")
    train = list(context.data.train.names)
    assert [decoded[name] for name in train] == [1] * 20 + [3] * (len(train) - 20)
    assert (
        "are decoded once, the rest for every view; to decode all of them once, lower data.short_side"
        in capsys.readouterr().err
    )
    cache_logits(_bench(folders["pixels"]), tutor, spec, tmp_path / "pixels.zarr")
    assert _shards(tmp_path / "x.zarr") == _shards(tmp_path / "pixels.zarr")


def test_at_most_one_block_is_decoded_ahead(folders, decoded):
    context = _bench(folders["encoded"])
    held = DecodedBlocks(context, batch_size=1)
    rows = {block: np.arange(10 * block, 10 * block + 10) for block in range(5)}
    shards = {ShardId("train", view, block): rows[block] for block in range(5) for view in range(2)}
    with held.expecting(shards):
        images = held.context.data.train
        for block in range(5):
            for view in range(2):
                held.start(ShardId("train", view, block))
                assert set(images.held) == set(range(10 * block, min(50, 10 * block + 20)))
                assert np.array_equal(images.array(10 * block), context.data.train.array(10 * block))
                held.end(ShardId("train", view, block))
        assert not images.held


def test_what_waits_to_be_decoded_is_dropped_when_a_dump_stops(folders, decoded, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(EncodedSplit, "array", lambda self, row: go_on.wait(600))
    held = DecodedBlocks(_bench(folders["encoded"], workers=1), batch_size=8)
    shards = {ShardId("train", view, 0): np.arange(40) for view in range(2)}
    waiting = held.context.data.train.held
    with held.expecting(shards):
        held.start(ShardId("train", 0, 0))
        futures = list(waiting.values())
    go_on.set()
    assert not waiting
    assert sum(future.cancelled() for future in futures) >= 39


def test_a_file_that_is_lost_on_the_way_is_named(folders, tutor, make_spec, tmp_path, monkeypatch):
    context = _bench(folders["encoded"])
    lost = context.data.train.names[7]

    def array(self, row, read=EncodedSplit.array):
        if self.names[row] == lost:
            raise DataError(f"{lost}: gone")
        return read(self, row)

    monkeypatch.setattr(EncodedSplit, "array", array)
    with pytest.raises(DataError, match=f"{lost}: gone"):
        cache_logits(context, tutor, make_spec(), tmp_path / "x.zarr")


def test_shards_of_a_new_store_are_of_images_that_fit(folders, monkeypatch):
    packed, encoded = (PreparedData.open(folders[keep]).train for keep in ("pixels", "encoded"))
    mean = encoded.size_bytes / len(encoded)
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", int(2.5 * CHUNK_ROWS * mean))
    assert fitting_shard_rows(packed, 8 * CHUNK_ROWS) == 8 * CHUNK_ROWS
    assert fitting_shard_rows(encoded, 8 * CHUNK_ROWS) == 2 * CHUNK_ROWS
    assert fitting_shard_rows(encoded, CHUNK_ROWS) == CHUNK_ROWS
    assert held_bytes(packed, CHUNK_ROWS) == 0
    assert held_bytes(encoded, CHUNK_ROWS) == pytest.approx(2 * CHUNK_ROWS * mean, rel=1e-3)
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", 1000)
    assert fitting_shard_rows(encoded, 8 * CHUNK_ROWS) == CHUNK_ROWS
    assert held_bytes(encoded, CHUNK_ROWS) == 2000
