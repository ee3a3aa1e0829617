"""Dumps in object storage: the bytes of a local dump, however many writers there are and whoever dies."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
import torch

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, MismatchError
from pipeline.dump.repair import repair
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.places.folder import LocalPlace
from pipeline.places.objects import ObjectPlace
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from pipeline.store.summary import inspect


@pytest.fixture(scope="module")
def local(context, teacher, make_spec, tmp_path_factory):
    """The files of a local dump, by name."""
    path = tmp_path_factory.mktemp("logits") / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), path)
    return files_of(LocalPlace(path))


@pytest.fixture
def place():
    return ObjectPlace.in_memory("memory://bucket").below("main.zarr")


def files_of(place):
    return {name: place.get(name) for name in place.sizes()}


def together(work, writers=4):
    """Call a function by so many threads that start at once."""
    barrier = threading.Barrier(writers)

    def begin(_: int) -> None:
        barrier.wait()
        work()

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(begin, range(writers)))


def test_a_bucket_gets_the_bytes_of_a_folder(context, teacher, make_spec, local, s3_server):
    bucket = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    place = ObjectPlace.open(f"s3://{bucket}/logits/main.zarr")
    cache_logits(context, teacher, make_spec("affine8"), place)
    assert files_of(place) == local
    assert verify(place).ok
    store = LogitStore.open(str(place))
    assert torch.equal(store.view(1), LogitStore.open(place).view(1))
    assert inspect(str(place)).summary["complete"]


def test_parts_and_resumed_writers_make_the_same_store(context, teacher, make_spec, local, place):
    spec = make_spec("affine8")
    cache_logits(context, teacher, spec, place, part=Slice(0, 2), completes=False)
    assert not inspect(place).summary["complete"]
    with pytest.raises(IncompleteStoreError, match=r"not complete \(manifest.json is missing\)"):
        LogitStore.open(place)
    shards = [name for name in place.sizes("train") if "/c/1/" in name]
    place.delete([shards[0], f"records/{sorted(place.names('records'))[-1]}"])
    cache_logits(context, teacher, spec, place)
    assert files_of(place) == local


def test_records_of_an_unfinished_store_are_read_at_the_same_time(
    context, teacher, make_spec, place, monkeypatch
):
    cache_logits(context, teacher, make_spec("affine8"), place, completes=False)
    expected = inspect(place).summary
    reads, together, get = Counter(), threading.Event(), ObjectPlace.get

    def waiting(self, name, *rest):
        """The first record that is read for its sums waits for the second one."""
        reads[name] += name.startswith("records/train.")
        summed = [name for name, count in reads.items() if count > 1]
        if len(summed) > 1:
            together.set()
        assert not summed or together.wait(60)
        return get(self, name, *rest)

    monkeypatch.setattr(ObjectPlace, "get", waiting)
    assert inspect(place).summary == expected
    assert together.is_set()


def test_many_writers_that_start_at_once_make_one_store(context, teacher, make_spec, local, place):
    together(lambda: cache_logits(context, teacher, make_spec("affine8"), place))
    assert files_of(place) == local


def test_a_header_without_its_frame_is_completed(context, teacher, make_spec, local, place):
    place.put("zarr.json", local["zarr.json"])
    cache_logits(context, teacher, make_spec("affine8"), place)
    assert files_of(place) == local


def test_a_different_writer_is_refused_by_name(context, teacher, make_spec, local, place):
    place.put("zarr.json", local["zarr.json"])
    with pytest.raises(MismatchError, match=r"memory://bucket/main.zarr: .*codec"):
        cache_logits(context, teacher, make_spec("fp16"), place)
    assert files_of(place) == {"zarr.json": local["zarr.json"]}


def test_a_store_in_a_bucket_grows(context, teacher, make_spec, place, tmp_path):
    for root in (place, tmp_path / "main.zarr"):
        cache_logits(context, teacher, make_spec("affine8", view_count=2), root)
    more = make_spec("affine8", view_count=4)
    cache_logits(context, teacher, more, place, part=Slice(1, 3), completes=False)
    assert inspect(place).summary["growing"]["n_views"] == 4
    assert LogitStore.open(place).n_views == 2
    for root in (place, tmp_path / "main.zarr"):
        cache_logits(context, teacher, more, root)
    assert files_of(place) == files_of(LocalPlace(tmp_path / "main.zarr"))


def test_a_store_in_a_bucket_is_repaired(context, teacher, make_spec, local, place):
    for name, content in local.items():
        place.put(name, content)
    place.put("train/codes/c/1/0/0", local["train/codes/c/1/0/0"][:-1])
    with pytest.raises(CorruptStoreError, match=r"memory://bucket/main.zarr: train/codes/c/1/0/0 has"):
        LogitStore.open(place).view(1)
    place.put("notes.md", b"mine")
    place.delete(["train/scale/c/0/1", "train/keys/c/0"])
    assert set(verify(place).files) == {
        *("train/codes/c/1/0/0", "train/scale/c/0/1", "train/keys/c/0", "notes.md")
    }
    assert "rewritten: train/scale/c/0/1, which was missing" in repair(place, context, teacher)
    assert files_of(place) == local
    assert next(place.parents()).get("main.zarr.strays/notes.md") == b"mine"


@pytest.mark.parametrize("refused", [None, errno.ENOLCK])
def test_a_folder_without_working_locks_loses_nothing(
    context, teacher, make_spec, local, tmp_path, monkeypatch, refused
):
    def flock(*_):
        if refused:
            raise OSError(refused, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    together(lambda: cache_logits(context, teacher, make_spec("affine8"), tmp_path / "main.zarr"))
    assert files_of(LocalPlace(tmp_path / "main.zarr")) == local
