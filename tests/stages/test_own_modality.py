"""A modality of the user's own code goes through every command by being named in params.yaml."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import LogitStore
from pipeline.core.errors import ConfigError
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import MODALITIES
from pipeline.tasks.table import TASKS
from tests.stages.conftest import run

PARAMS = {
    "data": {"modality": "waves:WAVES", "source": "tones", "tones": 3, "validation": 0.2},
    "training": {"epochs": 12, "batch_size": 16, "learning_rate": 0.1, "views": {"seed": 3}},
    "teachers": {"tutor": {"model": "waves:ears", "options": {"width": 32}}},
    "dumps": {"main": {"teacher": "tutor", "views": {"count": 3, "seed": 3, "farthest": 5}}},
    "students": {"pupil": {"model": "waves:ears", "preprocessing": {"size": 48}}},
    "recipes": {"scratch": {"loss": "scratch"}, "kd": {"loss": "kd"}},
    "sweep": {"dumps": ["main"], "students": ["pupil"], "recipes": ["kd"], "baselines": ["scratch"]},
}


@pytest.fixture
def waves(tmp_path, monkeypatch) -> Iterator[Path]:
    """A project of waveforms, whose modality is a module in its folder."""
    shutil.copy(Path(__file__).with_name("waves.py"), tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    MODALITIES.forget()
    TASKS.forget()


def test_every_command_takes_a_modality_that_params_yaml_names(waves, capsys):
    assert run("prepare") == 0
    assert "train 73, validation 23, test 30 samples" in capsys.readouterr().out
    described = json.loads(Path("data/prepared/dataset.json").read_text())
    assert (described["modality"], described["dtype"], described["axes"]) == ("waves:WAVES", "int16", 1)
    data = PreparedData.open(Path("data/prepared"))
    assert data.train.array(4).dtype == np.int16
    assert {len(data.train.array(row)) for row in range(len(data.train))} == {64, 65, 66, 67, 68}

    assert run("train-teacher", "tutor") == 0
    assert run("plan", "main") == 0
    assert run("cache-logits", "main") == 0
    store = LogitStore.open(Path("data/logits/main.zarr"))
    assert (store.n_views, store.n_classes) == (3, 3)
    assert store.teacher["modality"] == "waves:WAVES"

    capsys.readouterr()
    assert run("verify", "data/logits/main.zarr", "--replay", "40", "--trust-code", "waves", "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert audit["ok"]
    assert (audit["replayed"], audit["replay_max_abs_diff"] < 0.1) == (40, True)
    assert run("train-student", "pupil", "kd", "0", "--dump", "main") == 0
    assert run("train-student", "pupil", "scratch", "0") == 0
    assert run("report") == 0
    results = json.loads(Path("reports/results.json").read_text())
    assert all(row["top1"] > 0.5 for row in results["students"])
    assert "data:image/svg+xml" in Path("reports/index.html").read_text()
    assert run("verify", "--data") == 0
    assert run("inspect", "data/logits/main.zarr") == 0


def test_a_file_alone_runs_no_modality(waves, capsys):
    assert run("prepare") == 0
    assert run("train-teacher", "tutor") == 0
    assert run("cache-logits", "main") == 0
    MODALITIES.forget()
    with pytest.raises(ConfigError, match="'waves:WAVES' is user code"):
        PreparedData.open(Path("data/prepared"))
    capsys.readouterr()
    # Its bytes can be looked at.
    assert run("inspect", "data/logits/main.zarr") == 0
    assert run("verify", "data/logits/main.zarr") == 0
    assert run("export", "models/teachers/tutor.pt", "--format", "pt2", "--out", "x.pt2") == 1
    assert "add --trust-code waves:WAVES" in capsys.readouterr().err
    export = "export", "models/teachers/tutor.pt", "--format", "pt2", "--out", "x.pt2"
    assert run(*export, "--trust-code", "waves") == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("data.modality=waves:EARS", "waves has no 'EARS'"),
        ("data.modality=waves:ears", "modality waves:ears is a function"),
        ("data.modality=waving", "modality 'waving' is unknown"),
        ("data.tunes=3", "unknown key data.tunes; expected one of"),
        (
            "training.views.furthest=3",
            "training.views.furthest; expected one of seed, farthest",
        ),
        ("dumps.main.views.farthest=far", "dumps.main.views.farthest is 'far'"),
        ("students.pupil.preprocessing.louder=3", "unknown key students.pupil.preprocessing.louder"),
        ("data.image_size=3", "unknown key data.image_size; expected one of"),
    ],
)
def test_what_params_yaml_says_of_it_is_checked_by_its_classes(waves, capsys, value, message):
    assert run("prepare", "--set", value) == 1
    assert message in capsys.readouterr().err


GRADES = """
from pipeline.tasks.classes import Classes

class Grades(Classes):
    name = "grades:GRADES"
    accuracy = "passed"

GRADES = Grades()
"""


def test_a_task_may_be_ones_own_too(waves, capsys):
    (waves / "grades.py").write_text(GRADES)
    (waves / "params.yaml").write_text(
        yaml.safe_dump({**PARAMS, "data": {**PARAMS["data"], "task": "grades:GRADES"}})
    )
    for command in ("prepare", "train-teacher tutor", "cache-logits main"):
        assert run(*command.split()) == 0
    assert json.loads(Path("data/prepared/dataset.json").read_text())["task"] == "grades:GRADES"
    capsys.readouterr()
    assert run("inspect", "data/logits/main.zarr") == 0
    assert "teacher's passed 1.0000" in capsys.readouterr().out
    TASKS.forget()
    assert run("inspect", "data/logits/main.zarr") == 0
    assert "teacher's correct 1.0000" in capsys.readouterr().out
    assert run("prepare", "--set", "data.task=grading") == 1
    known = "classes, multilabel, embedding, scores, next_item, or module:NAME"
    assert f"task 'grading' is unknown; expected {known}" in capsys.readouterr().err
