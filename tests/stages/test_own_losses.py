"""Losses of the user's own code, through the commands; whose names run code, and whose do not."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from pipeline.report.metrics import with_digests
from tests.stages.conftest import run

CODE = """
import pathlib
pathlib.Path("executed").touch()

from pipeline.losses import kd

def half(student, labels, teacher, *, weight=1.0):
    return weight * kd(student, labels, teacher)

class Baseline:
    needs_teacher = False
    def __call__(self, student, labels, teacher):
        return student.square().mean()

def rows(student, labels, teacher):
    return student
"""
RUN = ("train-student", "pupil", "own", 0, "--dump", "main")


@pytest.fixture
def own(project, edit, monkeypatch):
    """The project with a loss of one's own in params.yaml, and its dump."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(CODE)
    importlib.invalidate_caches()
    edit({"training": {"epochs": 1}, "recipes": {"own": {"loss": "mine:half", "weight": 0.5}}})
    edit({"sweep": {"recipes": ["kd", "own"]}})
    assert run("cache-logits", "main") == 0
    yield project
    sys.modules.pop("mine", None)


def test_a_student_learns_by_a_loss_of_ones_own(own, edit):
    assert not Path("executed").exists()  # other commands read params.yaml, too
    assert run(*RUN) == 0
    edit({"recipes": {"theirs": {"loss": "kd", "ce_weight": 0.05, "kd_weight": 0.45}}})
    assert run("train-student", "pupil", "theirs", 0, "--dump", "main") == 0
    ours, theirs = (
        json.loads(Path(f"runs/main-pupil-{recipe}-0/metrics.json").read_text())
        for recipe in ("own", "theirs")
    )
    assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-4)


def test_a_loss_that_is_0_in_each_step_is_told(own, edit, capsys):
    edit({"recipes": {"own": {"weight": 0}}})
    assert run(*RUN) == 0
    told = "nothing is learnt: the loss was exactly 0 in every step so far; expected a term above 0"
    assert capsys.readouterr().err.count(told) == 1
    edit({"training": {"epochs": 3}, "recipes": {"kd": {"ce_weight": 0, "kd_weight": 0}}})
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert capsys.readouterr().err.count(told) == 2
    edit({"recipes": {"kd": {"kd_weight": {"from": 0, "to": 1, "epochs": 1}}}})
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert told not in capsys.readouterr().err


def test_a_baseline_of_ones_own_takes_no_dump(own, edit, capsys):
    edit({"recipes": {"own": {"loss": "mine:Baseline"}}})
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("    weight: 0.5\n", ""))
    assert run(*RUN) == 1
    assert "recipe 'own' is a baseline and reads no logits" in capsys.readouterr().err
    assert run(*RUN[:4]) == 0


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("mine:rows", "loss 'mine:rows' has no setting 'weight'; expected none"),
        ("mine:other", "loss mine:other: mine has no 'other'; expected a callable"),
        ("yours:half", "loss yours:half: no module 'yours' in"),
    ],
)
def test_what_is_wrong_with_it_is_one_line_and_other_commands_go_on(own, edit, capsys, loss, said):
    edit({"recipes": {"own": {"loss": loss}}})
    capsys.readouterr()
    assert run(*RUN) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"pipeline: {said}")
    assert run("plan", "main") == 0


def test_what_a_step_gives_is_looked_at(own, edit, capsys):
    edit({"recipes": {"own": {"loss": "mine:rows"}}})
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("    weight: 0.5\n", ""))
    assert run(*RUN) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "loss 'mine:rows' returns a tensor of shape (16, 4) and type torch.float32" in line


def test_a_runs_record_of_a_loss_runs_nothing(own, capsys):
    """Figures, history and states of runs are data, whatever they say of a loss."""
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert run("train-student", "pupil", "scratch", 0) == 0
    path = Path("runs/main-pupil-kd-0/metrics.json")
    metrics = json.loads(path.read_text())
    assert '"loss":"kd"' in metrics["made_with"]
    metrics["made_with"] = metrics["made_with"].replace('"loss":"kd"', '"loss":"mine:half"')
    history = path.with_name("history.csv").read_text()
    metrics = {name: value for name, value in metrics.items() if name != "digests"}
    path.write_text(json.dumps(with_digests(metrics | {"loss": "mine:half"}, history)))
    card = Path("models/students/main-pupil-kd-0.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"loss": "mine:half"}))
    report = ["report", "--set", "sweep.recipes=[kd]"]
    for command in (report, ["verify", "data/logits/main.zarr"], ["inspect", "data/logits/main.zarr"]):
        assert run(*command) == 0
    assert "was mine:half, is kd" in capsys.readouterr().err
    assert "mine" not in sys.modules
    assert not Path("executed").exists()
