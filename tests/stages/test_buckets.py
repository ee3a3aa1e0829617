"""A project whose stores lie in object storage: the same commands, and the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import boto3
import pytest

from pipeline.core.errors import ConfigError
from pipeline.places.objects import ObjectPlace
from pipeline.store import waiting
from stages.params import PlacesParams
from tests.stages.conftest import run
from tests.stages.projects import content


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


def test_a_student_follows_a_dump_in_a_bucket(project, bucket, edit, monkeypatch, capsys):
    edit({"places": {"logits": f"{bucket}/logits"}})
    student = ("train-student", "pupil", "kd", 0, "--dump", "main")
    # The dump makes its next step whenever the student looks in vain: view 0, then all the rest.
    steps = [("--shards", "0/6"), ("--shards", "3/6"), ("--by-view",)]

    class Clock:
        monotonic = staticmethod(waiting.time.monotonic)

        @staticmethod
        def sleep(_: float) -> None:
            assert run("cache-logits", "main", *steps.pop(0)) == 0

    monkeypatch.setattr(waiting, "time", Clock)
    assert run(*student, "--follow") == 0
    told = capsys.readouterr().err
    expected = ["waiting for the dump to begin", "waiting for view 0, 1 of 2 shards missing", "epoch 1/2"]
    places = [told.index(text) for text in (*expected, "waiting for view 1", "epoch 2/2")]
    assert places == sorted(places)
    followed = content(Path(), ("models/students", "runs/main"))
    for folder in ("models/students", "runs"):
        shutil.rmtree(folder)
    # The store is complete and behind its pointer; the student reads the same labels again.
    assert run(*student) == 0
    assert content(Path(), ("models/students", "runs/main")) == followed
    place = ObjectPlace.open(f"{bucket}/logits/main.zarr")
    place.delete(place.sizes())
    assert run(*student, "--follow") == 1
    assert "points to a complete store; restore it" in capsys.readouterr().err
    Path("data/logits/main.json").unlink()
    assert run(*student, "--follow", "--follow-timeout", 0) == 1
    assert "waited for the dump to begin, but no shard was added for 0 s" in capsys.readouterr().err


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
