"""Tars in a bucket: the pixels of local ones, each chunk asked for once a machine."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pytest

from pipeline.core.errors import ConfigError, DataError, StoreError
from pipeline.modalities.images.encoded import ContainedSplit
from pipeline.modalities.prepared import PreparedData
from pipeline.places import chunks
from pipeline.places.cache import FOLDER, GIGABYTES, machine_cache
from pipeline.places.objects import ObjectPlace
from tests.pipeline.modalities.images.sources.packing import (
    members,
    of_split,
    pictures,
    write_tar,
    write_tars,
)
from tests.pipeline.modalities.images.sources.test_parts import KEEP, prepared

# Less than most pictures, so that many lie in two chunks.
CHUNK_BYTES = 1000


class Bucket:
    """A bucket of tars.

    Args:
        server: its address.
    """

    def __init__(self, server: str) -> None:
        self._client, self._name = boto3.client("s3", endpoint_url=server), f"bucket-{os.urandom(4).hex()}"
        self._client.create_bucket(Bucket=self._name)
        self.url = f"s3://{self._name}"

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._name, Key=key, Body=content)

    def copy(self, folder: Path, prefix: str) -> None:
        """Copy the tars of a folder."""
        for path in folder.glob("*.tar"):
            self.put(f"{prefix}/{path.name}", path.read_bytes())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty working folder, and an empty cache in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK_BYTES)
    machine_cache.cache_clear()
    yield tmp_path / "cache"
    settle()
    machine_cache.cache_clear()


@pytest.fixture
def bucket(s3_server) -> Bucket:
    return Bucket(s3_server)


@pytest.fixture
def asked(monkeypatch) -> Counter[tuple[str, int]]:
    """How often each part of an object was asked for, by name and first byte."""
    counts: Counter[tuple[str, int]] = Counter()

    def get(place, name, first=0, count=None, *, get=ObjectPlace.get, **further):
        counts[f"{place}/{name}", first] += 1
        return get(place, name, first, count, **further)

    monkeypatch.setattr(ObjectPlace, "get", get)
    return counts


def settle() -> None:
    """Wait until no chunk is read ahead."""
    chunks._fetchers().shutdown()
    chunks._fetchers.cache_clear()


def empty(cache: Path) -> None:
    """Remove all chunks."""
    settle()
    for path in [path for path in cache.rglob("*") if path.is_file()]:
        path.unlink()


def pixels(data: PreparedData, split: str = "train") -> list[np.ndarray]:
    some = getattr(data, split)
    return [some.array(row) for row in range(len(some))]


@KEEP
def test_tars_in_a_bucket_are_those_of_a_folder(bucket, keep):
    tars = write_tars(Path("tars"), pictures())
    bucket.copy(tars, "some/tars")
    local = prepared("wds:tars", folder="local")
    held = {"test_files": f"{bucket.url}/some/tars/test-*.tar"}
    for number, (source, given) in enumerate(
        [
            (f"wds:{bucket.url}/some/tars", {}),
            (f"wds:{bucket.url}/some/tars/train-{{000..001}}.tar", held),
            (f"wds:{bucket.url}/some/tars/train-00?.tar", held),
        ]
    ):
        data = prepared(source, folder=f"out-{number}", keep=keep, **given)
        assert isinstance(data.train, ContainedSplit) == (keep == "encoded")
        for split in ("train", "test"):
            ours, theirs = getattr(data, split), getattr(local, split)
            assert list(ours.names) == list(theirs.names)
            np.testing.assert_array_equal(ours.keys, theirs.keys)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            for mine, other in zip(pixels(data, split), pixels(local, split), strict=True):
                np.testing.assert_array_equal(mine, other)


def test_every_chunk_is_asked_for_once_and_kept(bucket, asked, cache):
    tars = write_tars(Path("tars"), pictures(), shards=3)
    bucket.copy(tars, "tars")
    data = prepared(f"wds:{bucket.url}/tars", keep="encoded")
    for _ in range(3):
        pixels(data)
    settle()
    sizes = {f"{bucket.url}/tars/{path.name}": path.stat().st_size for path in tars.glob("*.tar")}
    expected = {(name, first) for name, size in sizes.items() for first in range(0, size, CHUNK_BYTES)}
    assert set(asked) == expected
    assert set(asked.values()) == {1}
    # Another process of this machine, and a dataset that is opened again, find the chunks.
    machine_cache.cache_clear()
    settle()
    pixels(PreparedData.open(Path("out")))
    assert sum(asked.values()) == len(expected)
    # The cache may go at any time.
    before = pixels(data)
    empty(cache)
    for mine, other in zip(pixels(data), before, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_damage_in_the_cache_is_read_again_and_damage_in_the_bucket_is_named(bucket, cache):
    tar = write_tar(Path("tars/train-000.tar"), members(pictures(8, ("train",))))
    bucket.copy(tar.parent, "tars")
    train = prepared(f"wds:{bucket.url}/tars", keep="encoded").train
    whole = train.array(3)
    settle()
    for path in [path for path in cache.rglob("*") if path.is_file()]:
        path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(train.array(3), whole)
    empty(cache)
    content = tar.read_bytes()
    for other in (bytes(len(content)), content[:CHUNK_BYTES]):
        bucket.put("tars/train-000.tar", other)
        with pytest.raises(DataError, match=r"train-000.tar: has changed since it was listed"):
            train.array(3)
        settle()
    bucket.put("tars/train-000.tar", content)
    np.testing.assert_array_equal(train.array(3), whole)


def test_a_tar_that_was_written_again_is_read_again(bucket, asked):
    some = of_split(pictures(), "train")
    bucket.copy(write_tar(Path("tars/train-000.tar"), members(some)).parent, "tars")
    source = f"wds:{bucket.url}/tars"
    before = list(prepared(source).train.names)
    count = sum(asked.values())
    prepared(source)
    assert sum(asked.values()) == count
    more = [*some, some[0]._replace(name="cat/added")]
    bucket.copy(write_tar(Path("tars/train-000.tar"), members(more)).parent, "tars")
    data = prepared(source)
    assert {*data.train.names, *data.test.names} > {*before}
    assert "cat/added" in {*data.train.names, *data.test.names}


@pytest.mark.parametrize(
    ("source", "given", "words"),
    [
        ("wds:{}/tars/train-{{000..004}}.tar", {}, r"train-002.tar, .*no such file \(3 names of"),
        ("wds:{}/nothing", {}, r"nothing: its \*.tar files are none"),
        ("wds:{}/tars/train-*.tar", {"test_files": "tars/test-*.tar"}, "is not in s3://.* one bucket"),
        ("wds:s3://no-such-bucket-at-all/tars", {}, "bucket does not exist"),
        ("parquet:{}/tables", {}, "is no local path; expected files on this machine"),
    ],
)
def test_what_is_not_there_is_one_line(bucket, source, given, words):
    bucket.copy(write_tars(Path("tars"), pictures()), "tars")
    with pytest.raises((DataError, ConfigError, StoreError), match=words) as told:
        prepared(source.format(bucket.url), **given)
    assert "\n" not in str(told.value)


def test_a_cut_tar_is_refused(bucket):
    content = write_tar(Path("whole.tar"), members(pictures(splits=("train",)))).read_bytes()
    bucket.put("tars/train-000.tar", content[: len(content) // 2])
    with pytest.raises(DataError, match=r"s3://.*train-000.tar: (ends|not a whole tar)"):
        prepared(f"wds:{bucket.url}/tars")


def test_a_cache_that_cannot_be_used_is_one_line(bucket, monkeypatch):
    bucket.copy(write_tars(Path("tars"), pictures()), "tars")
    Path("file").write_text("no folder")
    monkeypatch.setenv(FOLDER, "file/cache")
    machine_cache.cache_clear()
    with pytest.raises(StoreError, match=r"file/cache: cannot keep what .* set PIPELINE_CACHE to one"):
        prepared(f"wds:{bucket.url}/tars")
    monkeypatch.setenv(GIGABYTES, "many")
    machine_cache.cache_clear()
    with pytest.raises(ConfigError, match="PIPELINE_CACHE_GB is 'many'; expected gigabytes"):
        prepared(f"wds:{bucket.url}/tars")
