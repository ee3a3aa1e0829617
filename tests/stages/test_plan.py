"""`pipeline plan` against what the dump then is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dump import forecast, preflight
from pipeline.places.location import Location
from pipeline.store.manifest import Manifest
from tests.stages.conftest import CLASSES, SIZE, VIEWS, make_images, run

STORE = Path("data/logits/main.zarr")
KEYS = {"bytes_total", "bytes_per_sample_view", "files", "teacher_forwards", "seconds_estimate"}
ROOM = {"disk_needed_bytes", "disk_free_bytes", "memory_bytes", "memory_free_bytes"}


def plan(capsys, *arguments) -> dict:
    capsys.readouterr()
    assert run("plan", "main", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("codec", ["affine8", "topk-2", "auto", "features"])
def test_the_dump_is_as_foretold(project, capsys, codec):
    chosen = ("--set", f"dumps.main.codec={codec}")
    expected = plan(capsys, *chosen)
    assert expected.keys() >= KEYS | ROOM
    assert expected["disk_needed_bytes"] == expected["bytes_total"]
    assert not STORE.exists()
    assert run("cache-logits", "main", *chosen) == 0
    files = [file for file in STORE.rglob("*") if file.is_file()]
    assert expected["files"] == len(files)
    manifest = Manifest.read(Location(STORE))
    assert expected["codec"] == manifest.layout.codec
    samples = {name: section.n_samples for name, section in manifest.layout.sections.items()}
    assert (
        expected["teacher_forwards"] == VIEWS * samples["train"] + samples["validation"] + samples["test"]
    )
    figures = manifest.fidelity().summary()
    for key in ("kl_t1_mean", "kl_t4_mean"):
        assert expected[key] == pytest.approx(figures[key], rel=0.5, abs=1e-9)


def test_bytes_are_those_of_the_store(project, capsys):
    """With chunks that are full, as those of real data are."""
    whole = ("--set", "dumps.main.shard_rows=80", "--set", "dumps.main.codec=fp16")
    expected = plan(capsys, *whole)
    assert run("cache-logits", "main", *whole) == 0
    manifest = Manifest.read(Location(STORE))
    train = [record for shard, record in manifest.shards.items() if shard.section == "train"]
    actual = sum(record.bytes for record in train) / sum(record.rows for record in train)
    assert expected["bytes_per_sample_view"] == pytest.approx(actual, rel=0.2)
    metadata = sum(file.stat().st_size for file in STORE.rglob("zarr.json"))
    size = sum(file.stat().st_size for file in STORE.rglob("*") if file.is_file())
    # A small shard has a shorter histogram of its cost than the pilot.
    assert expected["bytes_total"] == pytest.approx(size - metadata, rel=0.4)


def test_what_is_done_needs_no_forward_passes(project, capsys):
    assert run("cache-logits", "main") == 0
    done = plan(capsys)
    assert done["teacher_forwards"] == 0
    assert done["seconds_estimate"] == 0
    assert done["disk_needed_bytes"] == 0
    more = plan(capsys, "--set", f"dumps.main.views.count={VIEWS + 2}")
    assert 0 < more["disk_needed_bytes"] < more["bytes_total"]
    assert more["teacher_forwards"] == 2 * Manifest.read(Location(STORE)).layout.sections["train"].n_samples


def test_a_sample_foretells_the_whole(project, capsys):
    assert run("cache-logits", "main") == 0
    foretold = plan(capsys, "--samples", 1000)
    images, labels = make_images(1000, 0)
    data = dict(np.load("data.npz"))
    np.savez("data.npz", **{**data, "train_images": images, "train_labels": labels})
    assert run("prepare") == 0
    whole = plan(capsys, "--out", "other.zarr")
    assert foretold["samples"] == whole["samples"] == 1040
    assert foretold["image_bytes"] == whole["image_bytes"] == 1040 * SIZE * SIZE * 3
    # Each image is drawn for the validation split or not: the sample's share is not quite the whole's.
    assert foretold["teacher_forwards"] == pytest.approx(whole["teacher_forwards"], rel=0.05)
    assert foretold["files"] == pytest.approx(whole["files"], rel=0.1)
    assert foretold["bytes_total"] == pytest.approx(whole["bytes_total"], rel=0.2)


def test_images_that_stay_encoded_take_nothing(project, capsys, edit):
    for split in ("train", "test"):
        for label in range(CLASSES):
            folder = Path("photos", split, str(label))
            folder.mkdir(parents=True)
            for number, image in enumerate(make_images(8, label)[0]):
                Image.fromarray(image).save(folder / f"{number}.png")
    edit({"data": {"source": "folder:photos", "watch": "photos"}})
    edit({"dumps": {"main": {"allow_poor_teacher": True}}})
    for keep, size in (("encoded", 0), ("pixels", 64 * SIZE * SIZE * 3)):
        assert run("prepare", "--set", f"data.keep={keep}") == 0
        assert plan(capsys, "--set", f"data.keep={keep}")["image_bytes"] == size


def test_a_plan_is_for_people_too(project, capsys):
    assert run("plan", "main") == 0
    printed = capsys.readouterr().out
    assert "affine8" in printed
    assert "forward passes" in printed


def test_views_that_no_student_reaches_are_told(project, capsys):
    assert run("plan", "main", "--set", "students.pupil.epochs=1") == 0
    told = capsys.readouterr().err
    assert f"dump 'main': {VIEWS} views, but the students of sweep train for at most 1 epoch" in told
    assert f"{VIEWS - 1} of them would never be used; lower dumps.main.views.count" in told
    assert run("plan", "main", "--set", f"students.pupil.epochs={VIEWS}") == 0
    assert "never be used" not in capsys.readouterr().err


@pytest.fixture
def full(monkeypatch):
    """A disk with 100 bytes."""
    for module in (forecast, preflight):
        monkeypatch.setattr(module, "free_disk_bytes", lambda path: 100)


def test_a_plan_tells_that_the_disk_is_too_small(project, full, capsys):
    assert run("plan", "main") == 0
    assert "100 bytes free, " in (printed := capsys.readouterr().out)
    assert "short: the dump will be refused" in printed


def test_a_dump_that_the_disk_cannot_hold_writes_nothing(project, full, capsys):
    assert run("cache-logits", "main", "--set", "dumps.main.codec=auto") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pipeline: ")
    assert "but the disk has 100 bytes free; free some space" in error
    assert not STORE.exists()


def test_a_codec_without_a_pilot_is_measured_on_the_held_out_splits(project, full, monkeypatch, capsys):
    """Which are made first; when there is room, nothing of them is made again."""
    assert run("cache-logits", "main") == 1
    assert "but the disk has 100 bytes free" in capsys.readouterr().err
    made = {file for file in STORE.rglob("*") if "train" not in file.parts and file.is_file()}
    times = {file: file.stat().st_mtime_ns for file in made if "/c/" in str(file)}
    assert times
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert run("cache-logits", "main") == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert "231 forward passes of training views to do, 1.4 kB of " in capsys.readouterr().err
