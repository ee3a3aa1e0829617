"""Stores that somebody made up: each use ends well or in one line, soon and without much memory."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from google_crc32c import value as crc32c
from numcodecs.zstd import Zstd

from pipeline.codecs.blend import Blend
from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, PipelineError, StoreError
from pipeline.dump.average import write_ensemble
from pipeline.dump.repair import repair
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.loading.feed import Feed
from pipeline.loading.targets import Targets
from pipeline.modalities.table import preprocessing_of, views_of
from pipeline.report.results import dump_figures
from pipeline.store.catalogue import Catalogue
from pipeline.store.index import read_index
from pipeline.store.layout import Span
from pipeline.store.ledger import Records, seal_line
from pipeline.store.opening import open_logits
from pipeline.store.reader import LogitStore
from pipeline.store.records import RenderChecksums
from pipeline.store.summary import inspect
from tests.pipeline.store.forging import (
    forge,
    forge_catalogue,
    forge_file,
    nested,
    places,
    put,
    seal,
    seal_record,
)

VALUES = (
    *(None, True, -1, 0, 1, 2**31, 10**13, 10**400, 0.5, float("nan"), float("inf"), 1e308),
    *("", "x" * 100_000, "\x1b[31mred\n", "../../etc/passwd", "/etc/passwd", "\ud800", "10"),
    *([], {}, [[0, 1]], nested(400), {"a\x1b": "\x1b"}, ["x"] * 1000),
)
SHORT = 80


@pytest.fixture(scope="module")
def made(context, teacher, make_spec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logits")
    cache_logits(context, teacher, make_spec("affine8", view_count=2), folder / "main.zarr")
    cache_logits(context, teacher, make_spec("topk-1", view_count=1, shard_rows=40), folder / "few.zarr")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "logits"))


@pytest.fixture
def store(folder) -> Path:
    return folder / "main.zarr"


def targets(store: Path, context) -> None:
    opened = open_logits(store)
    feed = Feed(context.data.train, views_of(opened), preprocessing_of(opened), device=torch.device("cpu"))
    Targets(opened, feed).load(0)


def uses(store: Path, context) -> dict[str, Callable[[], object]]:
    return {
        "inspect": lambda: json.dumps(inspect(store).summary),
        "verify": lambda: verify(store),
        "view": lambda: open_logits(store).view(0),
        "held out": lambda: open_logits(store).held_out("test", context.data.test),
        "report": lambda: dump_figures(open_logits(store).summary(), open_logits(store).teacher_names),
        "targets": lambda: targets(store, context),
    }


def require_one_line_each(store: Path, context, where: str) -> int:
    """Use a store in every way; return how many refused it. Anything but a line of the project's fails."""
    refused = 0
    for name, use in uses(store, context).items():
        try:
            use()
        except PipelineError as error:
            refused += 1
            text = str(error)
            assert "\n" not in text, (where, name, text)
            assert "\x1b" not in text, (where, name, text)
            assert len(text) < 1000, (where, name, len(text))
        except Exception as error:
            raise AssertionError(f"{where}, {name}: {error!r}") from error
    return refused


@pytest.mark.parametrize(
    "count", [SHORT, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("complete", [True, False])
def test_any_value_of_a_manifest_or_header_ends_in_one_line(store, context, count, complete):
    manifest = json.loads((store / "manifest.json").read_text())
    before = {name: (store / name).read_bytes() for name in ("manifest.json", "zarr.json")}
    trials = [(place, value) for place in places(manifest) if place for value in VALUES]
    order = np.random.default_rng(5).permutation(len(trials))[:count]
    assert len(trials) > 2000
    refused = 0
    for place, value in (trials[number] for number in order):
        forge(store, lambda content, place=place, value=value: put(content, place, value))
        if not complete:
            (store / "manifest.json").unlink()
        refused += bool(require_one_line_each(store, context, f"{place} = {str(value)[:40]}"))
        for name, content in before.items():
            (store / name).write_bytes(content)
    kind = "complete" if complete else "unfinished"
    print(f"{kind}: {len(order)} values, {refused} stores refused in a line")
    assert refused > len(order) // 2
    assert verify(store).ok


@pytest.mark.parametrize("name", ["train/codes/zarr.json", "train/keys/zarr.json", "train/zarr.json"])
def test_any_value_of_an_arrays_metadata_ends_in_one_line(store, context, name):
    metadata, before = json.loads((store / name).read_text()), (store / "manifest.json").read_bytes()
    trials = [(place, value) for place in places(metadata) if place for value in VALUES]
    order = np.random.default_rng(6).permutation(len(trials))[:6]
    for place, value in (trials[number] for number in order):
        changed = json.loads(json.dumps(metadata))
        put(changed, place, value)
        forge_file(store, name, json.dumps(changed).encode())
        require_one_line_each(store, context, f"{name}: {place} = {str(value)[:40]}")
        (store / "manifest.json").write_bytes(before)


def test_an_array_of_another_form_than_the_layouts_is_not_decoded(store):
    metadata = json.loads((store / "train/codes/zarr.json").read_text())
    metadata["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    forge_file(store, "train/codes/zarr.json", json.dumps(metadata).encode())
    with pytest.raises(CorruptStoreError, match="differs from the store's layout in codecs"):
        LogitStore.open(store).view(0)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "null", "[]", '{"schema": NaN}', '{"schema": 3}', "\x00\xff"]
)
@pytest.mark.parametrize("name", ["manifest.json", "zarr.json"])
def test_what_is_no_json_of_a_store_ends_in_one_line(store, context, name, text):
    if name == "zarr.json":
        (store / "manifest.json").unlink()
    (store / name).write_text(text)
    assert require_one_line_each(store, context, text[:20]) == 6


@pytest.mark.parametrize("section", ["train", "validation", "test"])
@pytest.mark.parametrize("extents", [[], [[0, 0]], [[0, 10**13]], [[16, 56]], [[0, -1]], [[0, 8], [8, 8]]])
def test_a_store_without_rows_or_of_impossible_ones_is_bad(store, context, section, extents):
    forge(store, lambda m: m["layout"]["sections"][section].update(extents=extents))
    assert require_one_line_each(store, context, str(extents)) == 6
    (store / "manifest.json").unlink()
    with pytest.raises(StoreError):
        inspect(store)


def test_samples_that_the_index_cannot_tell_apart_are_not_allocated(store, monkeypatch):
    """10^9 rows in blocks that have all the records they need."""

    def grow(manifest):
        manifest["layout"]["shard_rows"] = 4096 * 256
        checksums = RenderChecksums((0,) * 64, np.zeros((64, 4), np.uint8))
        record = next(iter(Records(store).read().values())).record
        record = replace(record, rows=4096 * 256, checksums=checksums)
        manifest["catalogues"] = {}
        for name, section in manifest["layout"]["sections"].items():
            section["extents"] = [[0, 4096 * 256]]
            for view in range(section["views"]):
                span = Span(name, view, 0, 1)
                content = Catalogue.of(span, [record], inspect(store).header.origin).to_bytes()
                manifest["catalogues"][str(span)] = forge_catalogue(store, content)

    forge(store, grow)
    opened = LogitStore.open(store)
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("allocated"))
    with pytest.raises(CorruptStoreError, match="1,048,576 samples, expected eight per sample"):
        opened.view(0)


NAMES = [
    "../../victim.txt",
    "{victim}",
    "train/../../../victim.txt",
    "train//codes",
    "link/victim.txt",
    "NOTES.md",
]


@pytest.mark.parametrize(("name", "there"), [*((name, True) for name in NAMES), (NAMES[0], False)])
def test_a_name_that_is_none_of_the_layouts_is_refused(store, context, teacher, tmp_path, name, there):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    name = name.format(victim=victim)
    forge(store, lambda manifest: manifest["metadata"].update({name: "0" * 64}))
    if not there:
        (store / "manifest.json").rename(store / "manifest.json.old")
        shutil.rmtree(store / "catalogues")
    with pytest.raises(StoreError, match="which is not a file of this layout" if there else "not complete"):
        verify(store)
    repair(store, context, teacher)
    assert victim.read_text() == "mine"
    assert verify(store).ok


def test_figures_that_are_none_of_the_layouts_measures_are_refused(store):
    def rename(manifest):
        for totals in manifest["totals"].values():
            told = totals["fidelity"]
            told["cosine"], told["histogram_cosine"] = told.pop("kl_t4"), told.pop("histogram_t4")

    forge(store, rename)
    with pytest.raises(CorruptStoreError, match=r"different fidelity measures than the layout.*cosine"):
        LogitStore.open(store)


def test_an_arrays_name_is_no_path(store, context, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()

    def lead_out(manifest):
        arrays = manifest["layout"]["arrays"]
        arrays["../../../victim"] = arrays.pop("codes")

    forge(store, lead_out)
    assert require_one_line_each(store, context, "array") == 6
    with pytest.raises(CorruptStoreError, match="should match pattern"):
        verify(store)


@pytest.mark.parametrize(
    "shard", ["train.v00000.b00009", "../x.v00000.b00000", "train.v٠٠٠٠٠.b00000", "train.v0.b0"]
)
def test_records_of_other_shards_count_as_none(store, shard):
    """In the lines of schema 3."""
    header, shards = inspect(store).header, LogitStore.open(store).manifest.shards
    records = [json.loads(seal_line(*item)) for item in shards.items()]
    expected = set(header.layout.shards()) - {next(iter(shards))}
    records[0]["shard"] = shard
    (store / "records.jsonl").write_bytes(b"\n".join(seal_record(record) for record in records))
    (store / "manifest.json").unlink()
    shutil.rmtree(store / "catalogues")
    assert set(Records(store).read(header)) == expected
    assert inspect(store).summary["shards"]["done"] == len(expected)


def test_a_linked_folder_is_neither_read_nor_mended_nor_emptied(store, context, teacher, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(store / "train" / "codes", outside)
    (outside / "mine.txt").write_text("mine")
    (store / "train" / "codes").symlink_to(outside)
    with pytest.raises(CorruptStoreError, match="train/codes is a link to a folder"):
        LogitStore.open(store)
    audit = verify(store)
    assert not audit.ok
    assert any("is a link to a folder" in problem for problem in audit.bad)
    before = sorted(outside.rglob("*"))
    with pytest.raises(CorruptStoreError, match="is a link to a folder"):
        repair(store, context, teacher)
    (store / "manifest.json").unlink()
    with pytest.raises(CorruptStoreError, match="is a link to a folder"):
        repair(store, context, teacher)
    assert sorted(outside.rglob("*")) == before


@pytest.mark.parametrize("linked", ["growth", "records", "validation"])
def test_no_writer_follows_a_linked_folder(store, context, teacher, make_spec, tmp_path, linked):
    outside = tmp_path / "outside"
    shutil.copytree(store / "train", outside / "train")
    (outside / "empty").mkdir()
    for name in ("zarr.json", "records.jsonl", "train.v00000.b00000.json"):
        (outside / name).write_text("{}")
    shutil.rmtree(store / linked, ignore_errors=True)
    (store / linked).symlink_to(outside)
    before = {file: file.read_bytes() if file.is_file() else None for file in outside.rglob("*")}
    for view_count in (2, 3):
        with pytest.raises(CorruptStoreError, match="is a link to a folder"):
            cache_logits(context, teacher, make_spec("affine8", view_count=view_count), store)
    with pytest.raises(CorruptStoreError, match="is a link to a folder"):
        repair(store, context, teacher)
    assert {file: file.read_bytes() if file.is_file() else None for file in outside.rglob("*")} == before


@pytest.mark.parametrize("name", [".manifest.json.partial", "train/codes/zarr.json", "train/extra"])
def test_a_fifo_in_an_unfinished_store_is_refused_at_once(store, context, teacher, make_spec, name):
    (store / "manifest.json").unlink()
    (store / name).unlink(missing_ok=True)
    os.mkfifo(store / name)
    with pytest.raises(CorruptStoreError, match=f"{name} is a FIFO, expected a file; remove it"):
        cache_logits(context, teacher, make_spec("affine8", view_count=2), store)
    with pytest.raises(CorruptStoreError, match="is a FIFO"):
        repair(store, context, teacher)


def test_an_unfinished_stores_arrays_are_those_of_its_layout(store, context, teacher, make_spec):
    (store / "manifest.json").unlink()
    (store / "train/codes/c/1/0/0").unlink()
    file = store / "train/codes/zarr.json"
    metadata = json.loads(file.read_text())
    other = {"name": "gzip", "configuration": {"level": 5}}
    metadata["codecs"][0]["configuration"]["codecs"] = [{"name": "bytes"}, other]
    file.write_text(json.dumps(metadata))
    with pytest.raises(CorruptStoreError, match="differs from the store's layout in codecs"):
        cache_logits(context, teacher, make_spec("affine8", view_count=2), store)


def test_linked_files_are_read_and_mending_them_leaves_what_they_lead_to(store, context, teacher, tmp_path):
    """As DVC lays a store out with `cache.type symlink`."""
    expected, cache = LogitStore.open(store).view(0), tmp_path / "cache"
    cache.mkdir()
    for number, file in enumerate(file for file in sorted(store.rglob("*")) if file.is_file()):
        shutil.move(file, cache / str(number))
        file.symlink_to(cache / str(number))
    assert torch.equal(LogitStore.open(store).view(0), expected)
    assert verify(store).ok
    shard = store / "train/codes/c/0/0/0"
    damaged = shard.resolve()
    damaged.write_bytes(b"damaged")
    repair(store, context, teacher)
    assert damaged.read_bytes() == b"damaged"
    assert not shard.is_symlink()
    assert torch.equal(LogitStore.open(store).view(0), expected)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


@pytest.mark.parametrize("make", [make_fifo, make_socket, link_to_zeros, make_hole, Path.mkdir])
@pytest.mark.parametrize(
    "name", ["manifest.json", "zarr.json", "train/keys/c/0", "train/codes/zarr.json", "train/codes/c/0/0/0"]
)
def test_what_is_no_file_is_refused_without_being_read(store, context, name, make):
    (store / name).unlink()
    make(store / name)
    assert require_one_line_each(store, context, name) >= 1
    with pytest.raises(StoreError):
        open_logits(store).view(0)
    if name != "manifest.json":
        assert not verify(store).ok


def test_a_fifo_among_the_records_is_passed_over(store):
    (store / "manifest.json").unlink()
    (store / "records").mkdir()
    os.mkfifo(store / "records" / "train.v00000.b00000.json")
    assert inspect(store).summary["shards"]["done"] == inspect(store).summary["shards"]["total"]


def zstd_frame(content_bytes: int, *, told: int | None) -> bytes:
    """Return a frame of blocks that repeat a zero; `told` is the size in its header, None for none."""
    blocks, head = [], b"\x28\xb5\x2f\xfd"
    head += b"\x00\x38" if told is None else b"\xc0\x38" + told.to_bytes(8, "little")
    for start in range(0, content_bytes, 1 << 17):
        size, last = min(1 << 17, content_bytes - start), start + (1 << 17) >= content_bytes
        blocks.append(struct.pack("<I", size << 3 | 1 << 1 | last)[:3] + b"\0")
    return head + b"".join(blocks)


def shard_of(*frames: bytes) -> bytes:
    frame = b"".join(frames)
    index = struct.pack("<QQ", 0, len(frame))
    return frame + index + struct.pack("<I", crc32c(index))


BOMB = 100 << 17  # packed in 414 bytes
LARGE_BOMB = 1 << 28


@pytest.fixture
def unpacked(monkeypatch) -> list[int]:
    """Sizes of what is unpacked from now on."""
    sizes, original = [], Zstd.decode

    def decode(self, content, out=None):
        values = original(self, content, out)
        sizes.append(memoryview(values).nbytes)
        return values

    monkeypatch.setattr(Zstd, "decode", decode)
    return sizes


@pytest.mark.parametrize(
    "frames",
    [
        [zstd_frame(BOMB, told=BOMB)],
        [zstd_frame(BOMB, told=None)],
        [zstd_frame(BOMB, told=48)],
        [zstd_frame(48, told=48), zstd_frame(BOMB, told=BOMB)],
        [b"\x50\x2a\x4d\x18\x04\0\0\0skip", zstd_frame(BOMB, told=BOMB)],
    ],
    ids=["told", "untold", "told wrongly", "second frame", "skippable frame"],
)
def test_a_bomb_is_not_unpacked(store, unpacked, frames):
    forge_file(store, "train/codes/c/0/0/0", shard_of(*frames))
    with pytest.raises(CorruptStoreError, match="train/codes cannot be read"):
        LogitStore.open(store).view(0)
    audit = verify(store)
    assert not audit.ok
    assert len(audit.bad) == 1
    assert 0 < max(unpacked) < 1 << 20


def test_a_shard_larger_than_its_rows_can_be_is_not_even_read(store):
    forge_file(store, "train/codes/c/0/0/0", shard_of(zstd_frame(LARGE_BOMB, told=LARGE_BOMB)))
    with pytest.raises(CorruptStoreError, match="codes has 8,226 bytes, expected at most 580"):
        LogitStore.open(store).view(0)


@pytest.mark.parametrize("column", ["keys", "digests"])
def test_a_bomb_among_the_keys_is_not_unpacked(store, unpacked, column):
    forge_file(store, f"train/{column}/c/0", zstd_frame(LARGE_BOMB, told=LARGE_BOMB))
    with pytest.raises(CorruptStoreError, match="unpacks to 268,435,456 bytes, expected 524,288"):
        _ = LogitStore.open(store).sections["train"].index
    (store / "manifest.json").unlink()
    with pytest.raises(CorruptStoreError, match="unpacks to 268,435,456 bytes, expected 524,288"):
        read_index(store, inspect(store).header)
    assert max(unpacked) == 524_288


def test_an_index_beyond_the_classes_ends_in_one_line(folder, context):
    """Of `topk`: on a GPU it would end the process."""
    store = folder / "few.zarr"
    opened = LogitStore.open(store)
    shard = next(s for s in opened.manifest.shards if s.section == "train" and s.view == 0)
    name = str(opened.manifest.layout.shard_file(shard, "gaps"))
    array = zarr.open_array(store / "train/gaps", mode="r+")
    array[0, : opened.manifest.layout.n_rows(shard)] = 255
    forge_file(store, name, (store / name).read_bytes())
    with pytest.raises(CorruptStoreError, match="values that codec topk-1 never writes"):
        LogitStore.open(store).view(0)
    assert not verify(store).ok
    encoded = {n: torch.from_numpy(a) for n, a in LogitStore.open(store).encoded_view(0).items()}
    assert opened.codec.decode(encoded).shape == (opened.n_samples, 3)


@pytest.mark.parametrize(
    "member",
    ["../main.zarr", "/etc", "a/b.zarr", ".zarr", "main", "main.zarr\n", "x" * 65 + ".zarr", "é.zarr"],
)
def test_members_are_folders_beside_an_ensemble(folder, context, member):
    manifest = forged_ensemble(folder, context)
    manifest["members"][member] = manifest["members"].pop("few.zarr")
    (folder / "both.zarr" / "manifest.json").write_text(seal(manifest))
    with pytest.raises(CorruptStoreError, match="should match pattern"):
        open_logits(folder / "both.zarr")


def test_an_ensemble_is_no_member_of_one(folder, context):
    manifest = forged_ensemble(folder, context)
    manifest["members"]["both.zarr"] = manifest["members"].pop("few.zarr")
    (folder / "both.zarr" / "manifest.json").write_text(seal(manifest))
    assert require_one_line_each(folder / "both.zarr", context, "itself") == 6
    with pytest.raises(StoreError, match=r"both\.zarr: is an ensemble, which stores no logits"):
        open_logits(folder / "both.zarr")


@pytest.mark.parametrize("key", ["schema", "members", "average", "weights", "teacher_top1"])
def test_any_value_of_an_ensemble_ends_in_one_line(folder, context, key):
    manifest = forged_ensemble(folder, context)
    for value in VALUES:
        (folder / "both.zarr" / "manifest.json").write_text(seal({**manifest, key: value}))
        require_one_line_each(folder / "both.zarr", context, f"{key} = {str(value)[:40]}")


def forged_ensemble(folder: Path, context) -> dict:
    write_ensemble(folder / "both.zarr", ["main.zarr", "few.zarr"], Blend(weights=(1, 1)), context)
    return json.loads((folder / "both.zarr" / "manifest.json").read_text())


def test_a_teacher_of_an_old_name_is_still_read(store, context):
    forge(store, lambda manifest: manifest["teacher"].update(name="v1.0 (final)"))
    assert LogitStore.open(store).teacher_names == ("v1.0 (final)",)
    assert verify(store).ok
    targets(store, context)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["views"].update(flip="sideways"), "views"),
        (lambda m: m["views"].update(semantics=99), "semantics 99"),
        (lambda m: m["teacher"]["preprocessing"].update(std=[0.2, 0.2]), "preprocessing"),
        (lambda m: m["teacher"]["preprocessing"].pop("size"), "preprocessing"),
    ],
)
def test_views_and_preprocessing_that_are_none_are_bad(store, change, told):
    forge(store, change)
    (line,) = verify(store).bad
    assert told in line


def test_a_root_that_describes_another_store_is_bad(store):
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["batch_size"] += 1
    forge_file(store, "zarr.json", json.dumps(root).encode())
    assert "zarr.json and manifest.json describe different stores" in verify(store).bad


def test_keys_that_are_not_the_fingerprints_are_bad(store):
    forge_file(store, "train/keys/c/0", (store / "train/digests/c/0").read_bytes())
    assert verify(store).bad == ["the samples' keys, digests and labels do not match the header's digests"]


def test_a_place_is_fixed_when_it_is_opened(store, monkeypatch, tmp_path):
    monkeypatch.chdir(store.parent)
    opened = LogitStore.open("main.zarr")
    ensemble = Path("few.zarr")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(opened.view(1), LogitStore.open(store).view(1))
    assert str(opened.location) == "main.zarr"
    with pytest.raises(IncompleteStoreError):
        LogitStore.open(ensemble)
