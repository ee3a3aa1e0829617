"""Several writers of one store without a lock between them: no shard is lost, and none is wrong."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.core.errors import MismatchError
from pipeline.core.hashing import bytes_digest
from pipeline.places.folder import at
from pipeline.places.location import Location
from pipeline.places.objects import ObjectPlace
from pipeline.store import writer as writing
from pipeline.store.frame import build_frame
from pipeline.store.index import SampleIndex
from pipeline.store.ledger import Records
from pipeline.store.manifest import Manifest
from pipeline.store.writer import StoreWriter
from tests.pipeline.store.test_store import header, splits, write

__all__ = ["splits"]


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path, splits):
    path = tmp_path / "main.zarr" if request.param == "folder" else ObjectPlace.in_memory() / "main.zarr"
    index = {name: SampleIndex.of(images) for name, images in splits.items()}
    build_frame(path, header(), index=index, state={})
    return path


def wrong_shards(root) -> list[str]:
    """The files of finished shards that their records do not tell."""
    writer, place = StoreWriter(root, header()), at(root)
    return [
        writer.layout.shard_name(shard, array)
        for shard, finished in writer.done().items()
        for array, (_, digest) in finished.files.items()
        if bytes_digest(place.get(writer.layout.shard_name(shard, array))) != digest
    ]


def test_equal_writers_write_the_same_shards(root):
    def make(seed: int) -> None:
        writer = StoreWriter(root, header())
        shards = list(writer.layout.shards())
        write(writer, random.Random(seed).sample(shards, len(shards)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    writer = StoreWriter(root, header())
    assert not writer.missing(writer.layout.shards())
    assert wrong_shards(root) == []


def test_of_different_writers_no_wrong_shard_remains_and_one_is_told(root, monkeypatch):
    monkeypatch.setattr(writing, "_OTHERS_SECONDS", 0.05)
    monkeypatch.setattr(writing, "_POLL_SECONDS", 0.01)

    def make(seed: int) -> list[str]:
        refused, writer = [], StoreWriter(root, header())
        shards = random.Random(seed).sample(list(writer.layout.shards()), writer.layout.n_shards)
        for shard in shards:
            try:
                write(writer, [shard], seed)
            except MismatchError as error:
                refused.append(str(error))
        return refused

    with ThreadPoolExecutor(4) as pool:
        refused = [message for messages in pool.map(make, range(4)) for message in messages]
    assert refused
    assert all("another process has written shard" in message for message in refused)
    assert wrong_shards(root) == []
    writer = StoreWriter(root, header())
    write(writer, writer.missing(writer.layout.shards()))
    assert len(writer.done()) == writer.layout.n_shards
    assert wrong_shards(root) == []


def test_a_record_that_a_complete_store_loses_meanwhile_is_no_other_writers(root, monkeypatch):
    first, late = StoreWriter(root, header()), StoreWriter(root, header())
    shard, *_ = shards = list(first.layout.shards())
    write(first, shards)
    place, get = type(at(root)), type(at(root)).get

    def completed(self, name, *rest):
        """Another process completes the store between the record that is found and its content."""
        if name == f"records/{shard}.record":
            monkeypatch.setattr(place, "get", get)
            first.complete_with(first.manifest({}))
        return get(self, name, *rest)

    monkeypatch.setattr(place, "get", completed)
    write(late, [shard])
    manifest = Manifest.read(Location(root))
    assert manifest.shards[shard].files == Records(root).read(header(), [shard])[shard].files


def test_a_file_that_is_replaced_right_after_its_record_was_written_is_put_back(root, monkeypatch):
    monkeypatch.setattr(writing, "_OTHERS_SECONDS", 0)
    first, second = StoreWriter(root, header()), StoreWriter(root, header())
    shard = next(first.layout.shards())
    place, replace = type(at(root)), type(at(root)).put_if_match

    def late(self, name, content, tag):
        """The first writer finishes the shard between the look at its record and the replacement."""
        monkeypatch.setattr(place, "put_if_match", replace)
        write(first, [shard])
        return replace(self, name, content, tag)

    write(first, [shard])
    first._records.drop([shard])
    monkeypatch.setattr(place, "put_if_match", late)
    with pytest.raises(MismatchError, match="another process has written shard"):
        write(second, [shard], 1)
    assert list(first.done([shard])) == [shard]
    assert wrong_shards(root) == []


def test_a_file_of_another_machine_that_was_killed_is_replaced(root, monkeypatch):
    monkeypatch.setattr(writing, "_OTHERS_SECONDS", 0.05)
    writer = StoreWriter(root, header())
    shard = next(writer.layout.shards())
    at(root).put(writer.layout.shard_name(shard, "codes"), b"other bytes")
    write(writer, [shard])
    assert list(writer.done()) == [shard]
    assert wrong_shards(root) == []


def test_a_late_writer_of_other_bytes_leaves_a_complete_store_as_it_is(root, monkeypatch):
    """Its records are gone by then."""
    monkeypatch.setattr(writing, "_OTHERS_SECONDS", 0.05)
    first, late = StoreWriter(root, header()), StoreWriter(root, header())
    shard, *_ = shards = list(first.layout.shards())
    write(first, shards)
    first.complete_with(first.manifest({}))
    there = at(root).get(first.layout.shard_name(shard, "codes"))
    with pytest.raises(MismatchError, match="another process has written shard"):
        write(late, [shard], 1)
    assert at(root).get(first.layout.shard_name(shard, "codes")) == there
