"""Another kernel or decoder than the teacher's: commands refuse, or go on and say what it costs."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.rendering import crops
from tests.stages.conftest import run

STORE = "data/logits/main.zarr"
STUDENT = ("train-student", "pupil", "kd", 0, "--dump", "main", "--set", "students.pupil.epochs=1")


@pytest.fixture(autouse=True)
def _drifted(project, monkeypatch):
    """A dump, and after it a kernel that is one level brighter where it can be."""
    assert run("cache-logits", "main") == 0
    right = crops.crop_and_resize

    def wrong(*arguments):
        pixels = right(*arguments)
        return torch.where(pixels < 255, pixels + 1, pixels)

    monkeypatch.setattr(crops, "crop_and_resize", wrong)


def test_a_student_refuses_drift(capsys):
    assert run(*STUDENT) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "witnesses look otherwise than the teacher saw them, first 'train/" in message
    assert "differ by 1.00 on average and 1 at most" in message
    assert "--allow-drift" in message


def test_a_student_goes_on_when_told_to_and_says_what_it_costs(capsys):
    assert run(*STUDENT, "--allow-drift") == 0
    noted = capsys.readouterr().err
    assert "witnesses look otherwise" in noted
    assert "mean KL(teacher || cached) " in noted


def test_a_replay_finds_drift(capsys):
    assert run("verify", STORE) == 0
    capsys.readouterr()
    assert run("verify", STORE, "--replay", 8, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert "witnesses look otherwise" in found["bad"][0]


def test_a_replay_measures_what_drift_costs(capsys):
    run("verify", STORE, "--replay", 8, "--allow-drift")
    drift, replayed = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "witnesses look otherwise" in drift
    assert float(replayed.split("mean KL ")[1]) > 0


def test_a_dump_that_is_to_grow_refuses_drift(capsys):
    assert run("cache-logits", "main", "--set", "dumps.main.views.count=4") == 1
    assert "witnesses look otherwise" in capsys.readouterr().err
