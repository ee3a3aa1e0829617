"""A store read from an S3-speaking s3_server on this machine, through zarr's own store classes."""

from __future__ import annotations

import json

import boto3
import pytest
import torch
from zarr.storage import FsspecStore

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError
from pipeline.dump.run import cache_logits
from pipeline.places.cache import FOLDER, machine_cache
from pipeline.places.location import Location
from pipeline.store.labels import LabelChanges
from pipeline.store.reader import LogitStore
from pipeline.store.summary import inspect
from stages.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def local(context, teacher, make_spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("logits") / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), path)
    return path


@pytest.fixture
def bucket(s3_server, local, request):
    """The store in a bucket of its own."""
    client = boto3.client("s3", endpoint_url=s3_server)
    name = f"b-{abs(hash(request.node.name))}"
    client.create_bucket(Bucket=name)
    for file in local.rglob("*"):
        if file.is_file():
            client.put_object(
                Bucket=name, Key=f"main.zarr/{file.relative_to(local)}", Body=file.read_bytes()
            )
    return client, name


def test_a_url_reads_like_a_folder(s3_server, local, bucket, context):
    remote = LogitStore.open(f"s3://{bucket[1]}/main.zarr", endpoint_url=s3_server)
    here = LogitStore.open(local)
    for view in range(here.n_views):
        assert torch.equal(remote.view(view), here.view(view))
    assert remote.rows_of(context.data.train).tolist() == here.rows_of(context.data.train).tolist()
    assert remote.summary() == here.summary()


def test_a_zarr_store_is_a_place_too(s3_server, local, bucket):
    store = FsspecStore.from_url(
        f"s3://{bucket[1]}/main.zarr", storage_options={"endpoint_url": s3_server}, read_only=True
    )
    assert torch.equal(LogitStore.open(store).view(1), LogitStore.open(local).view(1))


def test_a_whole_view_costs_a_request_a_shard_file(s3_server, bucket, monkeypatch):
    remote = LogitStore.open(f"s3://{bucket[1]}/main.zarr", endpoint_url=s3_server)
    remote.view(0)
    asked = []
    original = type(remote.location).find
    monkeypatch.setattr(
        type(remote.location), "find", lambda o, n, *m: asked.append(n) or original(o, n, *m)
    )
    remote.view(1)
    layout = remote.manifest.layout
    # One more of each catalogue: the view's blocks are of one.
    assert len(asked) == len(layout.blocks("train")) * len(layout.arrays) + 1


def test_with_a_cache_each_file_is_fetched_once_a_machine(s3_server, local, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    machine_cache.cache_clear()
    asked, find = [], Location.find
    monkeypatch.setattr(Location, "find", lambda o, name, *most: asked.append(name) or find(o, name, *most))
    for _ in range(2):  # of two processes, or epochs
        remote = LogitStore.open(f"s3://{bucket[1]}/main.zarr", endpoint_url=s3_server)
        assert torch.equal(remote.view(1), LogitStore.open(local).view(1))
    layout = remote.manifest.layout
    shards = [shard for shard in layout.shards() if (shard.section, shard.view) == ("train", 1)]
    files = {str(layout.shard_file(shard, array)) for shard in shards for array in layout.arrays}
    assert len(files) > 3
    # Twice the local files, once those of the bucket.
    assert {name: asked.count(name) for name in files} == dict.fromkeys(files, 3)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.write_bytes(b"damaged")
    assert torch.equal(remote.view(1), LogitStore.open(local).view(1))
    machine_cache.cache_clear()


def test_changed_bytes_are_refused(s3_server, bucket):
    client, name = bucket
    key = "main.zarr/train/codes/c/1/0/0"
    content = bytearray(client.get_object(Bucket=name, Key=key)["Body"].read())
    content[7] ^= 1
    client.put_object(Bucket=name, Key=key, Body=bytes(content))
    store = LogitStore.open(f"s3://{name}/main.zarr", endpoint_url=s3_server)
    store.view(0)
    with pytest.raises(CorruptStoreError, match="has changed since it was written"):
        store.view(1)


def test_an_unfinished_store_is_refused(s3_server, bucket):
    client, name = bucket
    client.delete_object(Bucket=name, Key="main.zarr/manifest.json")
    with pytest.raises(IncompleteStoreError, match="not complete"):
        LogitStore.open(f"s3://{name}/main.zarr", endpoint_url=s3_server)


def test_what_is_not_there_is_said_in_one_line(s3_server, bucket):
    with pytest.raises(IncompleteStoreError, match="no such store"):
        LogitStore.open(f"s3://{bucket[1]}/other.zarr", endpoint_url=s3_server)
    with pytest.raises(StoreError):
        LogitStore.open("s3://no-such-bucket/main.zarr", endpoint_url=s3_server)
    with pytest.raises(StoreError, match=r"gopher://x: .*expected a folder or an address"):
        LogitStore.open("gopher://x")


def test_inspect_takes_an_address(s3_server, local, bucket, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["inspect", f"s3://{bucket[1]}/main.zarr", "--json"])
    # Without prepared data in the working folder, nothing is known of its labels.
    unknown = LabelChanges().to_dict()
    assert json.loads(capsys.readouterr().out) == {**inspect(local).summary, **unknown}
