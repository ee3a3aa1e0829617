"""A digest file stands for the source's files: it changes when they do, and DVC watches it alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import boto3
import pytest
import yaml

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.images.options import ImageOptions
from stages.data_params import DataParams
from stages.watch import is_kept, keep, look
from tests.stages.dvc_projects import call
from tests.stages.test_dvc_stores import fails

pytestmark = pytest.mark.usefixtures("preloaded")

DATA = DataParams(source="folder:texts", watch="texts.watch")


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "texts" / split / name
            folder.mkdir(parents=True)
            for row in range(4):
                (folder / f"{row}.txt").write_text(f"{name} text of {split}, number {row}")
    return tmp_path / "texts"


def added(texts: Path) -> None:
    (texts / "train" / "a" / "9.txt").write_text("one more")


def removed(texts: Path) -> None:
    (texts / "train" / "a" / "1.txt").unlink()


def renamed(texts: Path) -> None:
    (texts / "train" / "a" / "1.txt").rename(texts / "train" / "a" / "7.txt")


def longer(texts: Path) -> None:
    (texts / "train" / "a" / "1.txt").write_text("longer than before, which the size tells")


def touched(texts: Path) -> None:
    os.utime(texts / "train" / "a" / "1.txt", ns=(1, 1))


def dangling(texts: Path) -> None:
    (texts / "train" / "a" / "link.txt").symlink_to("nowhere")


@pytest.mark.parametrize("change", [added, removed, renamed, longer, touched, dangling])
def test_every_change_of_the_files_changes_the_digest(texts, change):
    assert is_kept(DATA)
    before = look(DATA)
    assert before["files"] == 16
    assert look(DATA) == before
    change(texts)
    assert look(DATA)["digest"] != before["digest"]


def test_a_link_that_leads_back_is_followed_once(texts):
    (texts / "train" / "again").symlink_to(texts)
    assert look(DATA)["files"] < 100


def test_the_file_is_written_only_if_it_differs(texts):
    seen = look(DATA)
    assert keep(DATA, seen)
    stamp = Path("texts.watch").stat().st_mtime_ns
    assert not keep(DATA, seen)
    assert Path("texts.watch").stat().st_mtime_ns == stamp
    Path("texts.watch").write_text("{")
    assert keep(DATA, seen)
    assert json.loads(Path("texts.watch").read_text()) == seen


def test_a_source_without_files_is_refused(texts):
    with pytest.raises(ConfigError, match="has none; expected a file or folder"):
        look(DataParams(watch="x.watch"))
    with pytest.raises(DataError, match="away: no such file or folder"):
        look(DataParams(source="folder:away", watch="x.watch"))


def test_the_command_keeps_the_file(texts):
    params = {"data": {"modality": "text", "source": "folder:texts", "watch": "texts.watch"}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert "16 files of folder:texts have changed" in call("pipeline", "prepare", "--look")
    assert "are unchanged" in call("pipeline", "prepare", "--look")
    added(texts)
    call("pipeline", "prepare")
    assert json.loads(Path("texts.watch").read_text())["files"] == 17
    params["data"]["watch"] = "texts"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert "--look expects the name of a digest file" in fails("pipeline", "prepare", "--look")


def test_tars_in_a_bucket_have_a_digest_too(s3_server, texts):
    client, name = boto3.client("s3", endpoint_url=s3_server), f"bucket-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=name)
    for key in ("tars/train-000.tar", "tars/train-001.tar", "elsewhere/a.tar"):
        client.put_object(Bucket=name, Key=key, Body=key.encode())
    of_folder = DataParams(source=f"wds:s3://{name}/tars", watch="tars.watch")
    of_pattern = DataParams(source=f"wds:s3://{name}/tars/train-{{000..001}}.tar", watch="tars.watch")
    before = look(of_folder)
    assert before["files"] == 2
    assert look(of_folder) == look(of_pattern) == before
    client.put_object(Bucket=name, Key="tars/notes.txt", Body=b"no tar")
    assert look(of_folder) == before
    with pytest.raises(DataError, match="nothing"):
        look(DataParams(source=f"wds:s3://{name}/nothing", watch="tars.watch"))
    client.put_object(Bucket=name, Key="tars/train-001.tar", Body=b"another")
    assert look(of_folder)["digest"] != before["digest"]


def test_files_of_patterns_have_a_digest(texts):
    options = ImageOptions(test_files="texts/test/*/*.txt")
    data = DataParams(source="csv:texts/train/{a,b}/*.txt", watch="x.watch", options=options)
    before = look(data)
    assert before["files"] == 16
    renamed(texts)
    assert look(data)["digest"] != before["digest"]
