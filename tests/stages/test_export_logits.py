"""`pipeline export-logits`: the command writes a dump's outputs and says what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.stages.conftest import VIEWS, run
from tests.stages.projects import DUMPED


@pytest.fixture
def dumped(projects, tmp_path, monkeypatch) -> Path:
    """A copy of a project with a dump, as the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(projects.after(*DUMPED), folder)
    monkeypatch.chdir(folder)
    return folder


def refused(capsys, *arguments: object) -> str:
    """Run a command that must fail in one line, and return that."""
    capsys.readouterr()
    assert run("export-logits", *arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pipeline:")]
    return line


def test_a_dump_is_exported_by_name_or_by_place(dumped, capsys):
    assert run("export-logits", "main", "--format", "wds", "--out", "out", "--fp16") == 0
    card = json.loads(Path("out/card.json").read_text())
    count = card["samples"]["train"]
    said = capsys.readouterr().out
    assert f"out: {VIEWS} views of {count} training samples, un-augmented validation {100 - count}" in said
    assert "4 outputs each in float16" in said
    assert run("export-logits", "data/logits/main.zarr", "--format", "wds", "--out", "other", "--fp16") == 0
    assert json.loads(Path("other/card.json").read_text()) == card


def test_a_name_is_looked_up_in_the_place_of_stores(dumped, edit, capsys):
    form = ("--format", "wds", "--out")
    assert run("export-logits", "main", *form, "before") == 0
    edit({"places": {"logits": "big"}})
    Path("data/logits").rename("big")
    assert "main.json: is missing" in refused(capsys, "main", *form, "out")
    assert run("cache-logits", "main") == 0
    assert run("export-logits", "main", *form, "out") == 0
    assert Path("out/card.json").read_text() == Path("before/card.json").read_text()
    Path("other.yaml").write_text("places: {logits: empty}")
    Path("params.yaml").rename("away.yaml")
    assert "params.yaml: no such file" in refused(capsys, "main", *form, "more")
    assert "main.json points to" in refused(capsys, "main", *form, "more", "--params", "other.yaml")
    assert run("export-logits", "big/main.zarr", *form, "more") == 0


def test_what_cannot_be_exported_is_one_line(dumped, capsys):
    assert "nothing.zarr" in refused(capsys, "nothing", "--format", "wds", "--out", "out")
    like = refused(capsys, "main", "--format", "parquet", "--out", "out", "--like", "a.tar")
    assert "--like is for --format wds" in like
    assert "runs: exists already" in refused(capsys, "main", "--format", "wds", "--out", "runs")
    assert not Path("out").exists()
