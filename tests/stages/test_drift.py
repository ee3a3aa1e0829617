"""Another kernel or decoder than the teacher's: commands refuse, or go on and say what it costs."""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.rendering import cpu
from pipeline.modalities.images.sources import arrays
from tests.stages.conftest import run

STORE = "data/logits/main.zarr"
STUDENT = ("train-student", "pupil", "kd", 0, "--dump", "main", "--set", "students.pupil.epochs=1")


@pytest.fixture(autouse=True)
def _dumped(project):
    assert run("cache-logits", "main") == 0


@pytest.fixture
def _brighter(_dumped, monkeypatch):
    """A kernel that is, after the dump, one level brighter where it can be."""
    right = cpu.crop_and_resize

    def wrong(*arguments):
        pixels = right(*arguments)
        return torch.where(pixels < 255, pixels + 1, pixels)

    monkeypatch.setattr(cpu, "crop_and_resize", wrong)


@pytest.mark.usefixtures("_brighter")
def test_a_student_refuses_drift(capsys):
    assert run(*STUDENT) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checksummed samples render differently than they did for the teacher, first 'train/" in message
    assert "differ by 1.00 on average and 1 at most" in message
    assert "--allow-drift" in message


@pytest.mark.usefixtures("_brighter")
def test_a_student_goes_on_when_told_to_and_says_what_it_costs(capsys):
    assert run(*STUDENT, "--allow-drift") == 0
    noted = capsys.readouterr().err
    assert "checksummed samples render differently" in noted
    assert "mean KL(teacher || cached) " in noted
    drift = json.loads(Path("runs/main-pupil-kd-0/metrics.json").read_text())["drift"]
    assert drift["kl_mean"] > 0
    assert drift["witnesses"]["differing"] == drift["witnesses"]["checked"] > 0


def test_without_the_teacher_drift_is_measured_in_pixels_alone(capsys):
    Path("models/teachers/tutor.pt").unlink()
    assert run(*STUDENT, "--allow-drift") == 0
    assert "cannot be measured without the teacher" in capsys.readouterr().err


def test_a_baseline_has_no_drift_to_allow(capsys):
    assert run("train-student", "pupil", "scratch", 0, "--allow-drift") == 1
    assert "--allow-drift concerns a dump's samples" in capsys.readouterr().err


@pytest.mark.usefixtures("_brighter")
def test_a_replay_finds_drift(capsys):
    assert run("verify", STORE) == 0
    capsys.readouterr()
    assert run("verify", STORE, "--replay", 8, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert "checksummed samples render differently" in found["bad"][0]


@pytest.mark.usefixtures("_brighter")
def test_a_replay_measures_what_drift_costs(capsys):
    run("verify", STORE, "--replay", 8, "--allow-drift")
    drift, replayed = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "checksummed samples render differently" in drift
    assert float(replayed.split("mean KL ")[1].partition(";")[0]) > 0


@pytest.mark.usefixtures("_brighter")
def test_a_dump_that_is_to_grow_refuses_drift_and_keeps_what_it_has(capsys):
    assert run("cache-logits", "main", "--set", "dumps.main.views.count=4") == 1
    message = capsys.readouterr().err
    assert "checksummed samples render differently" in message
    assert "--allow-drift" not in message
    assert run("verify", STORE) == 0


@pytest.mark.usefixtures("_brighter")
def test_a_store_that_is_to_be_mended_refuses_drift_and_is_not_touched(capsys):
    shard = next(Path(STORE, "train", "codes", "c").rglob("0"))
    shard = shard if shard.is_file() else next(f for f in shard.rglob("*") if f.is_file())
    shard.write_bytes(b"damaged")
    assert run("verify", STORE, "--repair") == 1
    assert "checksummed samples render differently" in capsys.readouterr().err
    assert Path(STORE, "manifest.json").exists()
    assert shard.read_bytes() == b"damaged"


def test_another_decoder_is_refused_with_what_it_changes(capsys, monkeypatch):
    right = arrays._array_samples

    def decoded_otherwise(images, *arguments):
        noisy = images.copy()
        noisy[:, ::3, ::3] ^= 1
        return right(noisy, *arguments)

    monkeypatch.setattr(arrays, "_array_samples", decoded_otherwise)
    other = partialmethod(ImageSource.__init__, decoder="torchvision 9.9")
    monkeypatch.setattr(ImageSource, "__init__", other)
    assert run("prepare") == 0
    assert run(*STUDENT) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checksummed samples render differently than they did for the teacher" in message
    assert "dumped with decoder none" in message
    assert "here decoder torchvision 9.9" in message
    assert "--allow-drift" in message
    assert run(*STUDENT, "--allow-drift") == 0
    assert "mean KL(teacher || cached) " in capsys.readouterr().err
