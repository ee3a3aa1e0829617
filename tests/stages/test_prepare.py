"""`pipeline prepare` as a command: killed and resumed, on a full disk, and files that stay encoded."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.store.reader import LogitStore
from tests import patience
from tests.stages.conftest import PARAMS, make_images, run

# Many checkpoints, and images that take their time, so that a kill comes in between.
SLOW = """
import time
from pipeline.modalities.images.intake import ImageIntake
from pipeline.samples import draft
from stages.cli import main

draft.SECONDS_BETWEEN_CHECKPOINTS = 0.05
decode = ImageIntake._pixels
ImageIntake._pixels = lambda *arguments: time.sleep(0.01) or decode(*arguments)
main()
"""
PREPARE = [sys.executable, "-c", SLOW, "prepare", "--workers", "2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
PREPARED, STATE = Path("data/prepared"), Path("runs/.state/prepare")


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """A project whose images are JPEG files in class folders, and its parameters."""
    folder = tmp_path_factory.mktemp("album")
    for split, count, seed in (("train", 100, 0), ("test", 40, 1)):
        for number, (image, label) in enumerate(zip(*make_images(count, seed), strict=True)):
            path = folder / "photos" / split / f"class{label}" / f"{number:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            larger = np.kron(image, np.ones((2, 2, 1), np.uint8))[: 24 + number % 9]
            Image.fromarray(larger).save(path, quality=95)
    data = {**PARAMS["data"], "source": "folder:photos", "watch": "photos", "image_size": 16}
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "data": data}))
    return folder


@pytest.fixture
def project(album, tmp_path, monkeypatch) -> Path:
    folder = shutil.copytree(album, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def content() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(PREPARED.iterdir())}


def kept_images() -> int:
    """How many images the checkpoints hold."""
    total = 0
    for path in STATE.glob("*.json"):
        with suppress(FileNotFoundError, ValueError):
            total += json.loads(path.read_text()).get("rows", 0)
    return total


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_stopped_at_a_random_moment_and_resumed_equals_uninterrupted(project, capsys, number, status):
    assert run("prepare") == 0
    expected = content()
    shutil.rmtree(PREPARED)
    after = random.Random(number).randrange(5, 100)
    with subprocess.Popen(PREPARE, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        patience.until(lambda: kept_images() >= after, process, pause_seconds=0.002)
        process.send_signal(number)
    assert process.returncode == status
    kept = kept_images()
    assert after <= kept < 140
    # DVC does so before it runs a stage.
    shutil.rmtree(PREPARED)
    capsys.readouterr()
    assert run("prepare") == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert sum(int(words[1]) for words in lines if words[0] == "resuming:") == kept
    assert content() == expected
    assert not STATE.exists()


@pytest.fixture
def small_disk(project) -> Iterator[Path]:
    """Half a megabyte for everything that is unfinished."""
    folder = project / "runs/.state"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_what_is_done_and_another_file_system_gets_a_copy(
    project, small_disk, capsys, monkeypatch
):
    monkeypatch.setattr("pipeline.samples.draft.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert run("prepare") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device; free some space" in message
    kept = kept_images()
    assert 10 < kept < 100
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert run("prepare") == 0
    assert f"resuming: {kept} of" in capsys.readouterr().err
    resumed = content()
    assert run("prepare") == 0
    assert content() == resumed


def test_corrupt_files_are_counted_named_and_listed(project, capsys):
    bad = ["photos/train/class0/000.jpg", "photos/train/class3/003.jpg", "photos/test/class1/001.jpg"]
    for name in bad:
        Path(name).write_bytes(b"no picture")
    assert run("prepare") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("pipeline: ")] == lines[-1:]
    assert "3 of 140 images cannot be read: " in lines[-1]
    assert f"the full list is in {STATE}/unreadable.txt" in lines[-1]
    listed = (STATE / "unreadable.txt").read_text().splitlines()
    assert sorted(line.partition(":")[0] for line in listed) == sorted(bad)
    for name in bad:
        Path(name).unlink()
    assert run("prepare") == 0
    assert "test 39 images" in capsys.readouterr().out
    assert not STATE.exists()


def test_both_kinds_train_the_same_student(project):
    common = ["--set", "data.short_side=20", "--set", "dumps.main.allow_poor_teacher=true"]
    common += ["--set", "teachers.tutor.epochs=1"]
    seen = []
    for keep in ("pixels", "encoded"):
        asked = [*common, "--set", f"data.keep={keep}"]
        assert run("prepare", *asked) == 0
        assert (PREPARED / "train.pixels").exists() == (keep == "pixels")
        assert run("train-teacher", "tutor", *asked) == 0
        assert run("cache-logits", "main", *asked) == 0
        assert run("train-student", "pupil", "kd", 0, "--dump", "main", *asked) == 0
        logits = LogitStore.open("data/logits/main.zarr").view(1)
        metrics = json.loads(Path("runs/main-pupil-kd-0/metrics.json").read_text())
        seen.append((logits, {name: metrics[name] for name in ("top1", "nll", "kl_to_teacher")}))
        shutil.rmtree("data/logits")
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


def test_a_student_refuses_a_file_that_changed_since(project, capsys):
    asked = ["--set", "data.keep=encoded"]
    assert run("prepare", *asked) == 0
    shutil.copy("photos/train/class1/001.jpg", "photos/train/class2/002.jpg")
    assert run("train-student", "pupil", "scratch", 0, *asked) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "photos/train/class2/002.jpg" in message
    assert "has changed since it was prepared; restore the file" in message
    assert "run: pipeline prepare" in message


def test_encoded_data_is_refused_by_a_store_of_packed_ones(project, capsys):
    assert run("prepare") == 0
    assert run("train-teacher", "tutor", "--set", "teachers.tutor.epochs=1") == 0
    poor = ["--set", "dumps.main.allow_poor_teacher=true"]
    assert run("cache-logits", "main", *poor) == 0
    encoded = ["--set", "data.keep=encoded"]
    assert run("prepare", *encoded) == 0
    assert run("cache-logits", "main", *poor, *encoded) == 1
    assert "has different content in the store" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.short_side=15", ["short_side is 15", "expected 16 to 4096"]),
        ("data.short_side=5000", ["short_side is 5000", "expected 16 to 4096"]),
        ("data.short_side=big", ["data.short_side is 'big'"]),
        ("data.max_pixels=0", ["max_pixels is 0", "expected at least 1"]),
        ("data.damaged=maybe", ["data.damaged is 'maybe'", "'warn' or 'refuse'"]),
        ("data.keep=jpeg", ["data.keep is 'jpeg'", "'pixels' or 'encoded'"]),
        ("data.kep=pixels", ["unknown key data.kep", "did you mean 'keep'"]),
    ],
)
def test_parameters_that_cannot_be(project, capsys, setting, words):
    assert run("prepare", "--set", setting) == 1
    (message,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in message


def test_images_of_too_many_pixels_are_refused_by_name(project, capsys):
    assert run("prepare", "--set", "data.max_pixels=900") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 140 images cannot be read" in message
    listed = (STATE / "unreadable.txt").read_text().splitlines()
    assert all("pixels, according to its header; expected at most 900 in total" in line for line in listed)


@pytest.mark.parametrize("source", ["fashion-mnist-10k", "npz:x.npz", "torchvision:CIFAR10"])
def test_only_files_can_stay_encoded(project, capsys, source):
    assert run("prepare", "--set", "data.keep=encoded", "--set", f"data.source={source}") == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert f"keep is encoded, but source is '{source}'; only folder, wds, parquet, hf, csv" in message
