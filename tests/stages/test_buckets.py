"""A project whose stores lie in object storage: the same commands, and the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import boto3
import pytest

from pipeline.core.errors import ConfigError
from pipeline.places.objects import ObjectPlace
from stages.params import PlacesParams
from tests.stages.conftest import run


@pytest.fixture
def bucket(s3_server) -> str:
    """The address of an empty bucket."""
    name = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"


def test_all_commands_work_on_a_bucket(project, bucket, edit, capsys):
    edit({"places": {"logits": f"{bucket}/logits"}})
    assert run("plan", "main") == 0
    assert run("cache-logits", "main") == 0
    assert run("cache-logits", "main", "--out", "here.zarr") == 0
    place, here = ObjectPlace.open(f"{bucket}/logits/main.zarr"), Path("here.zarr")
    assert {name: place.get(name) for name in place.sizes()} == {
        str(file.relative_to(here)): file.read_bytes() for file in here.rglob("*") if file.is_file()
    }
    assert json.loads(Path("data/logits/main.json").read_text())["place"] == str(place)
    capsys.readouterr()
    assert run("inspect", place, "--json") == 0
    assert json.loads(capsys.readouterr().out)["complete"]
    assert run("train-student", "pupil", "kd", "0", "--dump", "main") == 0
    assert run("train-student", "pupil", "scratch", "0") == 0
    assert run("report") == 0
    place.delete(["train/codes/c/0/0/0"])
    assert run("verify", place) == 1
    assert f"{place}: " in capsys.readouterr().out
    assert run("verify", place, "--repair", "--replay", "4") == 0


def test_what_is_wrong_with_a_bucket_is_told_in_one_line(project, bucket, capsys):
    for out, status, message in (
        ("s3://no-such-bucket/main.zarr", 1, "the bucket does not exist"),
        ("ftp://host/main.zarr", 2, "is not an address of object storage; expected a folder, or s3://"),
        ("s3://key:hunter2@bucket/main.zarr", 2, "has credentials or a port in it"),
    ):
        assert run("cache-logits", "main", "--out", out) == status
        told = capsys.readouterr().err
        assert message in told
        assert "hunter2" not in told
        assert "Traceback" not in told


@pytest.mark.parametrize("place", ["", "ftp://host/logits", "s3://key:hunter2@bucket/logits"])
def test_a_place_is_a_folder_or_an_address(place):
    with pytest.raises(ConfigError) as caught:
        PlacesParams(logits=place)
    assert "hunter2" not in str(caught.value)
