"""The store below the stages: layout, writing, reading, and reading with zarr alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from pipeline.audit import verify
from pipeline.codecs import find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.errors import CorruptStoreError, IncompleteStoreError, MismatchError, StoreError
from pipeline.store.layout import Layout, Section, ShardId, default_shard_rows
from pipeline.store.manifest import Fingerprint
from pipeline.store.reader import LogitStore
from pipeline.store.writer import StoreWriter
from pipeline.views.spec import ViewSpec

CLASSES, VIEWS = 5, 3
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
        "train": Section(name="train", n_samples=23, n_views=views),
        "test": Section(name="test", n_samples=11, n_views=1),
    }
    return Layout(codec="affine8", n_classes=CLASSES, shard_rows=rows, sections=sections)


def open_writer(path, splits, cut=None, fingerprint=FINGERPRINT) -> StoreWriter:
    return StoreWriter(
        path,
        cut or layout(),
        fingerprint=fingerprint,
        teacher={"name": "t"},
        views=ViewSpec(seed=5).canonical(),
        splits=splits,
    )


def write(writer: StoreWriter, shards: list[ShardId]) -> None:
    codec = find_codec("affine8", CLASSES)
    for shard in shards:
        rows = writer.layout.rows(shard)
        logits = logits_of(shard, rows.stop - rows.start)
        encoded = codec.encode(logits)
        writer.write(
            shard,
            {name: values.numpy() for name, values in encoded.items()},
            fidelity=Fidelity.measure(logits, codec.decode(encoded)),
            labelled=len(logits),
            correct=0,
        )


@pytest.fixture
def path(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = open_writer(folder, splits)
    write(writer, writer.missing())
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
    rows = default_shard_rows(find_codec("affine8", 1000), 1_281_167)
    assert 32e6 < rows * 1002 <= 64 << 20
    assert default_shard_rows(find_codec("affine8", 10), 9_000) == 4096


def test_views_come_back_as_they_were_encoded(path, splits):
    store = LogitStore.open(path)
    codec = find_codec("affine8", CLASSES)
    for view in range(VIEWS):
        parts = [logits_of(ShardId("train", view, b), n) for b, n in ((0, 8), (1, 8), (2, 7))]
        expected = codec.decode(codec.encode(torch.cat(parts)))
        assert torch.equal(store.view(view), expected)


def test_zarr_alone_can_read_it(path):
    """The format as the README explains it, without this library."""
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
    digests = splits["train"].digests.copy()
    digests[4] ^= np.uint64(1)
    with pytest.raises(MismatchError, match="'train/4' has other content"):
        LogitStore.open(path).rows_of(replace(splits["train"], digests=digests))


def test_summary_has_the_agreed_keys(path):
    summary = LogitStore.open(path).summary()
    assert list(summary) == [
        *("schema", "complete", "n_samples", "n_views", "n_classes", "codec", "bytes"),
        *("bytes_per_sample_view", "shards", "fingerprint", "fidelity", "teacher_top1"),
    ]
    assert summary["shards"] == {"total": 3 * VIEWS + 2, "done": 3 * VIEWS + 2}
    files = [f for f in path.glob("*/*/c/**/*") if f.is_file() and f.parts[-5] != "keys"]
    sizes = sum(f.stat().st_size for f in files if f.relative_to(path).parts[1] in ("codes", "scale"))
    assert summary["bytes"] == sizes
    assert set(summary["fidelity"]) == {"kl_t1_mean", "kl_t1_p99", "kl_t4_mean", "top1_agreement"}


def test_the_manifest_holds_no_clock_host_or_path(path, tmp_path):
    text = (path / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert __import__("socket").gethostname() not in text
    assert not (path / "records").exists()


def test_resuming_knows_what_is_done(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    first = open_writer(folder, splits)
    missing = first.missing()
    write(first, missing[:4])
    second = open_writer(folder, splits)
    assert second.missing() == missing[4:]


def test_a_shard_that_lost_its_file_is_made_again(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    first = open_writer(folder, splits)
    missing = first.missing()
    write(first, missing[:4])
    (folder / first.layout.shard_file(missing[1], "codes")).write_bytes(b"short")
    second = open_writer(folder, splits)
    assert second.missing() == [missing[1], *missing[4:]]
    write(second, second.missing())
    second.complete_with(second.manifest({}))
    assert LogitStore.open(folder).n_views == VIEWS


def test_leftovers_are_swept(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    first = open_writer(folder, splits)
    write(first, first.missing()[:2])
    orphan = folder / first.layout.shard_file(first.missing()[3], "codes")
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"half a shard")
    partial = orphan.with_name("0.abc.partial")
    partial.write_bytes(b"x")
    open_writer(folder, splits)
    assert not orphan.exists()
    assert not partial.exists()


@pytest.mark.parametrize("part", ["dataset", "teacher", "views", "codec"])
def test_another_fingerprint_is_refused_and_named(path, splits, part):
    other = replace(FINGERPRINT, **{part: "other"})
    with pytest.raises(MismatchError, match=f"another {part} .*new dump name.*rm -r"):
        open_writer(path, splits, fingerprint=other)
    LogitStore.open(path)


def test_an_unfinished_store_is_refused(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = open_writer(folder, splits)
    write(writer, writer.missing())
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
    with pytest.raises(StoreError, match="schema 99; this program reads 1"):
        LogitStore.open(path)


def test_a_swapped_shard_is_refused_when_its_view_is_read(path):
    files = sorted(path.glob("train/codes/c/*/0/0"))
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    store = LogitStore.open(path)
    store.view(2)
    with pytest.raises(CorruptStoreError, match="other bytes than were written"):
        store.view(0)


def test_a_run_killed_while_it_creates_the_store_can_be_gone_on_with(tmp_path, splits, monkeypatch):
    folder = tmp_path / "main.zarr"

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_create_section", killed)
        with pytest.raises(KeyboardInterrupt):
            open_writer(folder, splits)
    assert folder.exists()
    writer = open_writer(folder, splits)
    write(writer, writer.missing())
    writer.complete_with(writer.manifest({"test": 0.5}))
    LogitStore.open(folder).view(VIEWS - 1)


def test_records_that_outlived_completion_are_removed(tmp_path, splits, monkeypatch):
    folder = tmp_path / "main.zarr"
    writer = open_writer(folder, splits)
    write(writer, writer.missing())
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.writer.shutil.rmtree", lambda *a, **k: None)
        writer.complete_with(writer.manifest({"test": 0.5}))
    assert not verify(folder).ok
    open_writer(folder, splits)
    assert verify(folder).ok


def test_a_shard_of_zeros_is_a_shard(tmp_path, splits):
    folder = tmp_path / "main.zarr"
    writer = open_writer(folder, splits)
    shard = writer.missing()[0]
    rows = writer.layout.rows(shard)
    count = rows.stop - rows.start
    arrays = {"codes": np.zeros((count, CLASSES), np.uint8), "scale": np.zeros(count, np.float16)}
    writer.write(shard, arrays, fidelity=Fidelity(), labelled=0, correct=0)
    assert shard not in writer.missing()
