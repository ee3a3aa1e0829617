"""The store below the stages: layout, writing, reading, and reading with zarr alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, MismatchError, StoreError
from pipeline.modalities.images.spec import ViewSpec
from pipeline.store.frame import build_frame
from pipeline.store.header import Fingerprint, Header
from pipeline.store.index import SampleIndex
from pipeline.store.layout import Layout, Section, ShardId, default_shard_rows
from pipeline.store.reader import LogitStore
from pipeline.store.records import RenderChecksums, checksum_rows, versions
from pipeline.store.writer import StoreWriter
from pipeline.tasks.classes import CLASSES as TASK

CLASSES, VIEWS = 5, 3
CODEC = find_codec("affine8", CLASSES)
FINGERPRINT = Fingerprint(dataset="d", teacher="t", views="v", codec="affine8.1")


def logits_of(shard: ShardId, count: int) -> torch.Tensor:
    seed = 1000 * shard.view + shard.block + {"train": 0, "test": 7}[shard.section]
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.fixture
def splits(pack_images, random_image):
    images = [random_image(4, 4, seed=n) for n in range(34)]
    train = pack_images(images[:23], names=[f"train/{n}" for n in range(23)])
    return {"train": train, "test": pack_images(images[23:], names=[f"test/{n}" for n in range(11)])}


def layout(views: int = VIEWS, rows: int = 8) -> Layout:
    sections = {
        "train": Section(name="train", extents=((0, 23),), n_views=views),
        "test": Section(name="test", extents=((0, 11),), n_views=1),
    }
    arrays = CODEC.arrays
    return Layout(
        codec="affine8",
        arrays=arrays,
        n_classes=CLASSES,
        shard_rows=rows,
        sections=sections,
        keeps_labels=True,
    )


def header(cut: Layout | None = None) -> Header:
    return Header(
        layout=cut or layout(),
        fingerprint=FINGERPRINT,
        labels="0" * 64,
        teacher={
            "name": "t",
            "precision": "fp32",
            "architecture": {"name": "wrn_16_2"},
            "preprocessing": {"size": 4, "mean": [0.5] * 3, "std": [0.2] * 3, "crop_fraction": 1.0},
            "classes": [f"class {n}" for n in range(CLASSES)],
        },
        views=ViewSpec(seed=5).canonical(),
        codec_spec=CodecSpec(name="affine8"),
        batch_size=4,
        versions=versions("none"),
    )


def new_writer(path, splits) -> StoreWriter:
    index = {name: SampleIndex.of(images) for name, images in splits.items()}
    build_frame(path, header(), index=index, state={})
    return StoreWriter(path, header())


def missing(writer: StoreWriter) -> list[ShardId]:
    return writer.missing(writer.layout.shards())


def write(writer: StoreWriter, shards: list[ShardId], shift: float = 0) -> None:
    for shard in shards:
        logits = logits_of(shard, writer.layout.n_rows(shard)) * (1 + shift)
        encoded = CODEC.encode(TeacherOutput(logits), TASK)
        writer.write(
            shard,
            {name: values.numpy() for name, values in encoded.items()},
            fidelity=Fidelity.measure(TASK, logits, CODEC.decode(encoded)),
            labelled=len(logits),
            correct=0,
            checksums=checksums_of(writer.layout.n_rows(shard)),
        )


def checksums_of(count: int) -> RenderChecksums:
    return RenderChecksums.of(np.zeros((len(checksum_rows(count)), 4, 4, 3), np.uint8))


@pytest.fixture
def path(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = new_writer(folder, splits)
    write(writer, missing(writer))
    writer.tidy()
    writer.complete_with(writer.manifest({"test": 0.5}))
    return folder


def test_every_row_is_covered_once():
    cut = layout()
    seen = {(s.section, s.view, r) for s in cut.shards() for r in range(*cut.rows(s).indices(99))}
    assert len(seen) == 23 * VIEWS + 11
    assert next(s.section for s in cut.shards()) == "test"


def test_shard_ids_roundtrip():
    shard = ShardId("train", 12, 345)
    assert ShardId.parse(str(shard)) == shard


def test_shards_of_large_data_hold_about_64_megabytes():
    rows = default_shard_rows(1002, 1_281_167)
    assert 32e6 < rows * 1002 <= 64 << 20
    assert default_shard_rows(12, 9_000) == 4096


def test_views_come_back_as_they_were_encoded(path, splits):
    store = LogitStore.open(path)
    for view in range(VIEWS):
        parts = [logits_of(ShardId("train", view, b), n) for b, n in ((0, 8), (1, 8), (2, 7))]
        expected = CODEC.decode(CODEC.encode(TeacherOutput(torch.cat(parts)), TASK))
        assert torch.equal(store.view(view), expected)


def test_zarr_alone_can_read_it(path):
    """The format as pipeline/store/README.md explains it, without this library."""
    codes = zarr.open_array(path / "train/codes", mode="r")[1].astype(np.float32)
    scale = zarr.open_array(path / "train/scale", mode="r")[1].astype(np.float32)
    logits = (codes - 255) * scale[:, None]
    assert np.array_equal(logits, LogitStore.open(path).view(1).numpy())


def test_rows_are_found_by_key(path, splits):
    store = LogitStore.open(path)
    order = np.random.default_rng(0).permutation(23)[:10]
    subset = splits["train"].subset(order)
    assert store.rows_of(subset).tolist() == order.tolist()


def test_a_sample_that_is_not_there_is_named(path, splits):
    with pytest.raises(MismatchError, match="'test/0' is not in the store"):
        LogitStore.open(path).rows_of(splits["test"])


def test_a_changed_sample_is_named(path, splits):
    digests = splits["train"].content_digests.copy()
    digests[4] ^= np.uint64(1)
    with pytest.raises(MismatchError, match="'train/4' has different content"):
        LogitStore.open(path).rows_of(replace(splits["train"], contents=digests))


def test_summary_has_the_agreed_keys(path):
    summary = LogitStore.open(path).summary()
    assert list(summary) == [
        *("schema", "complete", "n_samples", "n_views", "n_classes", "codec", "bytes"),
        *("bytes_per_sample_view", "shards", "fingerprint", "labels_digest", "fidelity", "teacher_top1"),
    ]
    assert summary["shards"] == {"total": 3 * VIEWS + 2, "done": 3 * VIEWS + 2}
    files = [f for f in path.glob("*/*/c/**/*") if f.is_file() and f.parts[-5] != "keys"]
    sizes = sum(f.stat().st_size for f in files if f.relative_to(path).parts[1] in ("codes", "scale"))
    assert summary["bytes"] == sizes
    assert set(summary["fidelity"]) == {"kl_t1_mean", "kl_t1_p99", "kl_t4_mean", "top1_agreement"}


def test_the_manifest_holds_no_clock_host_or_path(path, tmp_path):
    text = (path / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert f'"{__import__("socket").gethostname()}"' not in text
    assert not (path / "records").exists()


def test_resuming_knows_what_is_done(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    first = new_writer(folder, splits)
    shards = missing(first)
    write(first, shards[:4])
    assert missing(StoreWriter(folder, header())) == shards[4:]


def test_a_shard_that_lost_its_file_is_made_again(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    first = new_writer(folder, splits)
    shards = missing(first)
    write(first, shards[:4])
    (folder / first.layout.shard_file(shards[1], "codes")).write_bytes(b"short")
    second = StoreWriter(folder, header())
    assert missing(second) == [shards[1], *shards[4:]]
    write(second, missing(second))
    second.tidy()
    second.complete_with(second.manifest({}))
    assert LogitStore.open(folder).n_views == VIEWS


def test_a_record_that_was_changed_counts_as_none(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = new_writer(folder, splits)
    shards = missing(writer)
    write(writer, shards[:2])
    record = folder / "records" / f"{shards[0]}.record"
    content = bytearray(record.read_bytes())
    content[-1] ^= 1
    record.write_bytes(content)
    assert missing(writer) == [shards[0], *shards[2:]]


def test_leftovers_are_replaced_in_the_slice_that_is_made(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = new_writer(folder, splits)
    shards = list(writer.layout.shards())
    orphans = [folder / writer.layout.shard_file(shards[k], "codes") for k in (3, 5)]
    for orphan in orphans:
        orphan.parent.mkdir(parents=True, exist_ok=True)
        orphan.write_bytes(b"half a shard")
    partial = orphans[0].with_name("0.abc.partial")
    partial.write_bytes(b"x")
    write(writer, writer.missing(shards[:4]))
    assert shards[3] in writer.done()
    assert orphans[1].read_bytes() == b"half a shard"  # another writer may be at it
    write(writer, missing(writer))
    writer.tidy()
    assert not partial.exists()


def test_an_unfinished_store_is_refused(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = new_writer(folder, splits)
    write(writer, missing(writer))
    with pytest.raises(IncompleteStoreError, match=r"manifest\.json is missing"):
        LogitStore.open(folder)


def test_an_edited_manifest_is_refused(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["teacher_top1"]["cached"]["test"] = 0.99
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptStoreError, match="changed since it was written"):
        LogitStore.open(path)


def test_a_newer_schema_is_refused(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["schema"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="schema 99, but this program reads 3 and 4"):
        LogitStore.open(path)


def test_a_swapped_shard_is_refused_when_its_view_is_read(path):
    files = sorted(path.glob("train/codes/c/*/0/0"))
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    store = LogitStore.open(path)
    store.view(2)
    with pytest.raises(CorruptStoreError, match="has changed since it was written"):
        store.view(0)


def test_a_shard_of_zeros_is_a_shard(tmp_path, splits):
    writer = new_writer(tmp_path / "main.zarr", splits)
    shard = missing(writer)[0]
    count = writer.layout.n_rows(shard)
    arrays = {"codes": np.zeros((count, CLASSES), np.uint8), "scale": np.zeros(count, np.float16)}
    writer.write(
        shard,
        arrays,
        fidelity=Fidelity.total(TASK.measures, []),
        labelled=0,
        correct=0,
        checksums=checksums_of(8),
    )
    assert shard not in missing(writer)
