"""Augmentations of the user's own code, through the commands: a dump, its proof, and a student."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.modalities.images import augmentations, own_code
from tests.stages.conftest import PARAMS, run

CODE = """
def fog(pixels, words, *, density):
    light = words[0] % 100
    return ((pixels.astype("uint16") * (100 - density) + light * density) // 100).astype("uint8")

fog.version = 1
"""
STORE = Path("data/logits/main.zarr")


@pytest.fixture
def fogged(project, monkeypatch):
    """The project with fog in the views of its dump, which is made."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(augmentations, "_NAMED", {})
    own_code._found.cache_clear()
    Path("mine.py").write_text(CODE)
    importlib.invalidate_caches()
    views = PARAMS["dumps"]["main"]["views"]
    own = {"code": "mine:fog", "version": 1, "settings": {"density": 40}}
    params = {**PARAMS, "training": {**PARAMS["training"], "epochs": 1}}
    params["dumps"] = {"main": {**PARAMS["dumps"]["main"], "views": {**views, "own": own}}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert run("cache-logits", "main") == 0
    yield project
    own_code._found.cache_clear()
    sys.modules.pop("mine", None)


def _forget(monkeypatch) -> None:
    monkeypatch.setattr(augmentations, "_NAMED", {})
    monkeypatch.setattr(augmentations, "_TRUSTED", set())
    own_code._found.cache_clear()
    sys.modules.pop("mine", None)


def test_a_dump_of_ones_own_augmentation_is_proven_and_learnt_from(fogged, capsys):
    capsys.readouterr()
    assert run("verify", STORE, "--replay", 32, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    # Half a step of affine8 over the logits of a small teacher, whose range differs between machines.
    assert (found["ok"], found["replayed"], found["replay_max_abs_diff"] < 0.05) == (True, 32, True)
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0


def test_other_pixels_of_the_same_version_are_noticed(fogged, monkeypatch, capsys):
    Path("mine.py").write_text(CODE.replace("% 100", "% 90"))
    importlib.invalidate_caches()
    shutil.rmtree("__pycache__", ignore_errors=True)
    _forget(monkeypatch)
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 1
    assert "main.zarr" in capsys.readouterr().err.splitlines()[-1]


def test_a_store_whose_code_params_do_not_name_runs_nothing(fogged, monkeypatch, capsys):
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS))
    _forget(monkeypatch)
    capsys.readouterr()
    assert run("verify", STORE) == 0
    assert run("inspect", STORE) == 0
    assert run("verify", STORE, "--replay", 8) == 1
    assert "'mine:fog' is user code, which a store alone may not run" in capsys.readouterr().err
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 1
    assert "mine" not in sys.modules


def test_a_new_process_replays_a_store_whose_code_is_trusted(fogged, monkeypatch, capsys):
    _forget(monkeypatch)
    assert run("verify", STORE, "--replay", 8, "--trust-code", "mine") == 0
