"""A run's files: one process at a time, no leftovers, and a failure that the same command gets over."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.errors import TrainingError
from pipeline.store.lock import gate
from stages.outputs import require_numbers
from tests.stages.conftest import run

STUDENT = ("train-student", "pupil", "scratch", 0)
RUN = "baseline-pupil-scratch-0"
TEACHER = ("train-teacher", "tutor")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
RIGHT_IN_TRAINING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, classes)

    def forward(self, images):
        logits = self.head(images.mean((2, 3)))
        return logits if self.training else logits * FACTOR


def net(num_classes=4):
    return Net(num_classes)
"""


def fast(*arguments: object) -> int:
    return run(*arguments, "--set", "training.epochs=1", "--set", "training.warmup_epochs=0")


def files(*folders: str) -> set[str]:
    found = (path for folder in folders for path in Path(folder).rglob("*"))
    return {str(path) for path in found if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize(("command", "name"), [(STUDENT, RUN), (TEACHER, "teacher-tutor")])
def test_a_run_that_another_process_trains_is_refused_at_once(project, capsys, command, name):
    begun = [sys.executable, "-c", "from stages.cli import main; main()", *map(str, command)]
    long = ["--set", "training.epochs=10000", "--set", "teachers.tutor.epochs=10000"]
    other = subprocess.Popen([*begun, *long], env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        state = Path(f"runs/.state/{name}.pt")
        while not state.exists() and other.poll() is None:
            time.sleep(0.05)
        assert fast(*command) == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{name} is locked by process {other.pid} on " in told
    # A killed one holds nothing.
    assert fast(*command) == 0


def test_runs_of_other_names_do_not_wait_for_each_other(project):
    with gate(Path("runs/.state") / RUN, 1):
        assert fast("train-student", "pupil", "scratch", 1) == 0


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (STUDENT, [f"models/students/.{RUN}{end}" for end in (".pt", ".json", ".last.pt", ".last.json")]),
        (STUDENT, [f"runs/{RUN}/.metrics.json", f"runs/{RUN}/.history.csv", f"runs/.state/.{RUN}.pt"]),
        (TEACHER, ["models/teachers/.tutor.pt", "runs/.state/.teacher-tutor.pt"]),
    ],
)
def test_the_same_run_takes_over_what_killed_writers_left(project, command, left):
    assert fast(*command) == 0
    whole = files("models", "runs")
    for path in left:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{path}.partial").write_bytes(b"half")
    assert len(files("models", "runs")) == len(whole) + len(left)
    assert fast(*command) == 0
    assert files("models", "runs") == whole


@pytest.mark.parametrize("command", [STUDENT, TEACHER])
@pytest.mark.parametrize("validation", [0.2, 0.0])
def test_a_model_that_is_bad_in_evaluation_ends_in_one_line_and_trains_when_mended(
    project, edit, capsys, monkeypatch, command, validation
):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    edit({"students": {"pupil": {"model": "own_net:net"}}, "teachers": {"tutor": {"model": "own_net:net"}}})
    edit({"data": {"validation": validation}})
    assert run("prepare") == 0
    before = files("models")
    split = "validation" if validation else "test"
    for factor, status in ((math.nan, 1), (math.inf, 1), (1.0, 0)):
        Path("own_net.py").write_text(RIGHT_IN_TRAINING.replace("FACTOR", f"float('{factor}')"))
        sys.modules.pop("own_net", None)
        capsys.readouterr()
        assert fast(*command) == status
        if status:
            told = capsys.readouterr().err.strip().splitlines()[-1]
            assert re.match(r"pipeline: after epoch \d: logits of ", told)
            assert f"{split} samples (100.0%) are not finite" in told
            assert files("models") == before


def test_skipped_steps_are_in_the_metrics_and_the_history(project, edit):
    edit(
        {
            "recipes": {"hot": {"loss": "kd", "temperature": 4, "kd_weight": 1e4}},
            "training": {"precision": "fp16"},
        }
    )
    assert run("cache-logits", "main") == 0
    learning = ["--set", "training.epochs=6", "--set", "training.learning_rate=0.00001"]
    assert run("train-student", "pupil", "hot", 0, "--dump", "main", *learning) == 0
    folder = Path("runs/main-pupil-hot-0")
    with (folder / "history.csv").open() as file:
        rows = [int(row["skipped_steps"]) for row in csv.DictReader(file)]
    skipped = json.loads((folder / "metrics.json").read_text())["skipped_steps"]
    assert skipped == sum(rows) > 0
    assert rows[0] > 0


def test_a_run_whose_every_step_was_skipped_is_an_error(project, edit, capsys):
    edit(
        {
            "recipes": {"hot": {"loss": "kd", "temperature": 4, "kd_weight": 1e4}},
            "training": {"precision": "fp16"},
        }
    )
    assert run("cache-logits", "main") == 0
    assert fast("train-student", "pupil", "hot", 0, "--dump", "main") == 1
    assert "pipeline: nothing was learnt: " in capsys.readouterr().err
    assert not Path("models/students/main-pupil-hot-0.pt").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_named(value):
    with pytest.raises(TrainingError, match=f"run: nll is {value}; expected a finite number"):
        require_numbers("run", {"top1": 0.5, "top5": None, "seed": 3, "nll": value})
