"""Where stores can be made, and whose files in them are touched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stages.conftest import PARAMS, run
from tests.stages.test_interruption import STORE, content


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def complete(project) -> dict[str, str]:
    """The bytes of a complete dump, which is there."""
    assert run("cache-logits", "main") == 0
    return content(STORE)


def test_a_users_file_is_named_and_left_alone(complete, capsys):
    (STORE / "manifest.json").unlink()
    for name in ("NOTES.md", "train/.zarr.json.swp", "records/mine.txt"):
        (STORE / name).parent.mkdir(exist_ok=True)
        (STORE / name).write_text("mine")
    (STORE / "records/.train.v00000.b00000.json.k3x_90ab").write_text("half")
    (STORE / "train/codes/c/0/.0.k3x_90ab").write_text("half")
    assert run("cache-logits", "main") == 0
    assert (
        "NOTES.md, train/.zarr.json.swp are not part of the store; left unchanged"
        in capsys.readouterr().err
    )
    mine = {name for name in content(STORE) if name not in complete}
    assert mine == {"NOTES.md", "train/.zarr.json.swp", "records/mine.txt"}
    assert run("verify", STORE) == 1
    assert "NOTES.md is not part of the store" in capsys.readouterr().out


def test_a_repair_moves_a_users_files_out_of_the_store(complete, capsys):
    for name in ("NOTES.md", "inner.zarr/zarr.json"):
        (STORE / name).parent.mkdir(exist_ok=True)
        (STORE / name).write_text("mine")
    assert run("verify", STORE, "--repair") == 0
    told = capsys.readouterr().err
    assert f"moved to {STORE}.strays: NOTES.md, which was not part of the store" in told
    assert Path(f"{STORE}.strays/NOTES.md").read_text() == "mine"
    assert Path(f"{STORE}.strays/inner.zarr/zarr.json").read_text() == "mine"
    assert content(STORE) == complete


def test_what_killed_writers_left_in_a_complete_store_goes_and_is_not_bad(complete):
    for name in (
        ".manifest.json.k3x_90ab",
        "train/codes/zarr.0123.partial",
        "records/train.v00000.b00000.json",
    ):
        (STORE / name).parent.mkdir(exist_ok=True)
        (STORE / name).write_text("half")
    assert run("verify", STORE) == 0
    before = Path("data/logits/.main.zarr.partial/train")
    before.mkdir(parents=True)
    assert run("verify", STORE, "--repair") == 0
    assert content(STORE) == complete
    assert not before.exists()


@pytest.mark.parametrize("out", [STORE / "inner", STORE / "train/codes/c/deep/inner"])
def test_a_store_inside_a_store_is_refused(complete, capsys, monkeypatch, out):
    monkeypatch.setattr("pipeline.models.teacher.Teacher.output", None)
    assert run("cache-logits", "main", "--out", out) == 1
    assert "is inside another store" in last_line(capsys)
    assert content(STORE) == complete
    assert run("plan", "main", "--out", out) == 1


def test_a_store_around_stores_is_refused(complete, capsys):
    assert run("cache-logits", "main", "--out", STORE.parent) == 1
    assert "contains files but no zarr.json" in last_line(capsys)
    assert content(STORE) == complete


def test_an_ensemble_has_a_place_of_its_own(complete, edit, capsys):
    edit({"dumps": {"other": {**PARAMS["dumps"]["main"], "precision": "bf16"}}})
    edit({"ensembles": {"both": {"of": ["main", "other"]}}})
    assert run("cache-logits", "other") == 0
    for out, reason in (
        (STORE / "inner", "is inside another store"),
        ("data/prepared", "contains other files"),
    ):
        assert run("cache-logits", "both", "--out", out) == 1
        assert reason in last_line(capsys)
    both = Path("data/logits/both.zarr")
    assert run("cache-logits", "both") == 0
    before = content(both)
    (both / ".manifest.json.k3x_90ab").write_text("half")
    assert run("cache-logits", "both") == 0
    assert content(both) == before
    assert run("cache-logits", "main", "--out", both) == 1
    assert "is an ensemble" in last_line(capsys)
    assert run("cache-logits", "main", "--out", both / "inner") == 1
    assert "is inside another store" in last_line(capsys)


@pytest.mark.parametrize("there", [True, False])
def test_a_stores_place_may_be_a_link(complete, tmp_path, there):
    shutil.rmtree(STORE)
    target = tmp_path / "scratch"
    if there:
        target.mkdir()
    STORE.symlink_to(target)
    assert run("cache-logits", "main") == 0
    assert STORE.is_symlink()
    assert content(target) == complete
    (target / "train/codes/c/0/0/0").write_bytes(b"?")
    assert run("verify", STORE, "--repair") == 0
    assert content(target) == complete


def test_a_stores_place_may_be_the_root_of_a_disk(complete, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        (disk / "lost+found").mkdir()
        # A kill left this of a store that was being made.
        (disk / "train").mkdir()
        (disk / "train/zarr.json").write_text("{}")
        assert run("cache-logits", "main", "--out", disk) == 0
        assert content(disk) == complete
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_teacher_that_is_refused_takes_no_users_file_along(project, capsys, edit):
    edit({"teachers": {"tutor": {"model": "resnet8", "epochs": 4}}})
    shutil.copytree("models", "good")
    assert run("cache-logits", "main", "--shards", "1/2") == 0
    shutil.rmtree(STORE)
    STORE.mkdir(parents=True)
    poor = ("--set", "teachers.poor.model=resnet8", "--set", "teachers.poor.epochs=1")
    spec = ("--set", "dumps.main.teacher=poor", "--set", "teachers.poor.learning_rate=1e-9")
    assert run("train-teacher", "poor", *poor, "--set", "teachers.poor.learning_rate=1e-9") == 0
    assert run("cache-logits", "main", *poor, *spec) == 1
    assert "at least" in last_line(capsys)
    assert not (STORE / "zarr.json").exists()
    assert run("cache-logits", "main") == 0
