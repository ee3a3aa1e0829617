"""The benchmarks of several writers and of stores in buckets: their network, and what they count."""

from __future__ import annotations

import boto3

from pipeline.places.objects import ObjectPlace
from tests.benchmarks import far_store, writers
from tests.benchmarks.s3_server import serving


def test_a_server_fails_as_often_as_asked_and_readers_get_whole_objects():
    contents = {f"main.zarr/train/codes/c/0/{n}": bytes([n]) * 1000 for n in range(20)}
    contents["main.zarr/train/keys/c/0"] = b"keys" * 100
    with serving() as server:
        boto3.client("s3").create_bucket(Bucket="bucket")
        place = ObjectPlace.open("s3://bucket")
        for name, content in contents.items():
            place.put(name, content)
        server.behave(failing=0.2)
        assert {name: place.get(name) for name in contents} == contents
        counts = server.counts()
        assert counts["requests"] - counts["failed"] == len(contents)
        assert counts["failed"] > 0
        assert 20 * 1000 <= counts["bytes of train shards"] < counts["bytes"]
        server.behave()
        assert server.counts() == {}


def test_shards_are_counted_by_their_writer():
    one = {"zarr.json": "z", **{f"train/{array}/c/0/{n}/0": "a" for array in "xy" for n in range(3)}}
    other = {**one, **{name: "b" for name in one if "/c/" in name}}
    found = {**one, "train/x/c/0/1/0": "b", "train/y/c/0/1/0": "b", "train/x/c/0/2/0": "b"}
    assert writers.whose(found, one, other) == {"of_one": 1, "of_the_other": 1, "of_neither": 1}


def test_failed_runs_have_no_figures():
    far = {"stall_fraction": 0.5, "weights": "w", "bytes": 500, "bytes of train shards": 400}
    near = {"stall_fraction": 0.25, "weights": "w"}
    counts = {"requests": 9, "failed": 1}
    runs = [{"near": near, "far": {**far, **counts}}, {"near": near, "far": {"exit_status": 1, **counts}}]
    found = far_store.summary(runs, epochs=2, view=100)
    assert (found["failed_runs"], found["equal_weights"]) == (1, 1)
    assert found["views_per_epoch"]["median"] == 2
    assert found["once_bytes"]["max"] == 100
