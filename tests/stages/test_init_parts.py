"""`pipeline init` begins a project for tars, Parquet, saved datasets and CSV files of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stages.params_file import load_params
from tests.pipeline.modalities.images.sources.packing import (
    members,
    of_split,
    pictures,
    write_csv,
    write_folder,
    write_parquet,
    write_saved,
    write_tar,
    write_tars,
)
from tests.stages.conftest import run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def decisive() -> list[str]:
    """Return the keys of `data` on which the stage `prepare` depends."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    return [name.removeprefix("data.") for name in stages["prepare"]["params"]]


def test_a_folder_of_tars_is_prepared(capsys):
    write_tars(Path("../shards"), pictures())
    assert run("init", "../shards") == 0
    assert "2 classes; train 12, test 12 images" in capsys.readouterr().out
    data = load_params(Path("params.yaml")).data
    assert (data.source, data.watch, data.options.label) == ("wds:../shards", "../shards", None)
    assert not {"image", "label", "id", "test_files"} & set(decisive())
    assert run("prepare") == 0
    assert "wds:../shards: 2 classes, train 12, validation 0, test 12 images" in capsys.readouterr().out
    assert run("prepare", "--set", "data.keep=encoded") == 0
    assert run("verify", "--data") == 0


def test_a_label_elsewhere_is_found_and_watched():
    some = [pair for pair in members(pictures()) if not pair[0].endswith(".cls")]
    write_tar(Path("shards/a.tar"), some[: len(some) // 2])
    assert run("init", "shards") == 0
    assert load_params(Path("params.yaml")).data.options.label == "json:label"
    assert "label" in decisive()
    assert run("prepare") == 0


def test_tables_are_recognised_by_their_columns(capsys):
    pytest.importorskip("pyarrow")
    some = pictures()
    write_parquet(Path("../a/train.parquet"), of_split(some, "train"))
    assert run("init", "../a/train.parquet") == 0
    options = load_params(Path("params.yaml")).data.options
    assert (options.image, options.label, options.id) == (None, None, "id")
    assert "id" in decisive()


@pytest.mark.parametrize(
    ("kind", "source"),
    [("hf", "hf:../data"), ("csv", "csv:../data/metadata.csv"), ("none", "folder:../data")],
)
def test_other_folders_are_what_they_hold(kind, source):
    some = pictures()
    if kind == "hf":
        pytest.importorskip("pyarrow")
        write_saved(Path("../data"), some)
    else:
        write_folder(Path("../data"), some)
    if kind == "csv":
        write_csv(Path("../data/metadata.csv"), some)
    assert run("init", "../data") == 0
    assert load_params(Path("params.yaml")).data.source == source


def test_tars_without_a_label_are_one_line(capsys):
    write_tar(Path("shards/train-0.tar"), [("a.png", b""), ("a.xml", b"")])
    assert run("init", "shards") == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("pipeline:")]
    assert "has members .png, .xml or" not in line
    assert "shards/train-0.tar: has members" in line
    assert "expected .cls, .txt or .json with label or labels or class" in line
    assert not Path("params.yaml").exists()
