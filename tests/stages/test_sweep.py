"""`pipeline sweep` without an engine: the missing runs alone, one after the other, and the report."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stages import sweep
from tests.stages.conftest import run

KD, SCRATCH = "main-pupil-kd-0", "baseline-pupil-scratch-0"


@pytest.fixture
def dumped(project) -> Path:
    assert run("cache-logits", "main") == 0
    return project


@pytest.fixture
def record(monkeypatch) -> Callable[[], list[Sequence[str]]]:
    """Return a function that lists the arguments of a sweep's commands, which do nothing from then on."""

    def start() -> list[Sequence[str]]:
        commands: list[Sequence[str]] = []

        def command_line(arguments: Sequence[str]) -> list[str]:
            commands.append(arguments)
            return [sys.executable, "-c", ""]

        monkeypatch.setattr(sweep, "command_line", command_line)
        return commands

    return start


def test_the_missing_runs_are_trained_and_compared(dumped, edit, capfd, record):
    assert run("train-student", "pupil", "scratch", "0") == 0
    before = Path("runs", SCRATCH, "metrics.json").read_bytes()
    assert run("sweep") == 0
    assert Path("runs", SCRATCH, "metrics.json").read_bytes() == before
    told = capfd.readouterr()
    assert "1 of 2 runs to train" in told.err
    assert f"{KD}: test top-1" in told.out
    assert "dvc commit" not in told.out
    students = json.loads(Path("reports/results.json").read_text())["students"]
    assert {student["recipe"] for student in students} == {"kd", "scratch"}
    # All are there; DVC is told of them.
    asked = record()
    Path(".dvc").mkdir()
    Path("dvc.yaml").touch()
    assert run("sweep") == 0
    told = capfd.readouterr()
    assert "0 of 2 runs to train" in told.err
    assert "dvc commit --force train-student train-baseline report" in told.out
    assert asked == []
    # A run that other parameters made is missing too.
    edit({"recipes": {"kd": {"temperature": 2}}})
    assert run("sweep", "--device", "cpu", "--workers", "1") == 0
    (arguments,) = asked
    assert arguments[:6] == ["train-student", "pupil", "kd", "0", "--dump", "main"]
    assert arguments[6:10] == ["--workers", "1", "--device", "cpu"]


def test_a_run_of_a_dump_that_was_made_again_is_missing(dumped, edit, record, capfd):
    assert run("train-student", "pupil", "scratch", "0") == 0
    assert run("train-student", "pupil", "kd", "0", "--dump", "main") == 0
    asked = record()
    assert run("sweep") == 0
    assert asked == []
    shutil.rmtree("data/logits/main.zarr")
    edit({"dumps": {"main": {"codec": "fp16"}}})
    assert run("cache-logits", "main") == 0
    capfd.readouterr()
    assert run("sweep") == 0
    (arguments,) = asked
    assert arguments[:4] == ["train-student", "pupil", "kd", "0"]
    told = f"{KD}: dump main has been made again or grown since it was trained; run: pipeline"
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "was", "now"), [("metrics.json", '"top1": 0', '"top1": 1'), ("history.csv", "\n1,", "\n7,")]
)
def test_a_run_whose_files_changed_is_refused_and_trained_again(dumped, record, capfd, name, was, now):
    assert run("train-student", "pupil", "scratch", "0") == 0
    assert run("train-student", "pupil", "kd", "0", "--dump", "main") == 0
    assert run("report") == 0
    path = Path("runs", KD, name)
    before = path.read_text()
    assert was in before
    path.write_text(before.replace(was, now, 1))
    capfd.readouterr()
    assert run("report") == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"pipeline: runs/{KD}/{name}: changed after the run wrote it")
    assert line.endswith("or train again with: pipeline train-student pupil kd 0 --dump main")
    asked = record()
    assert run("sweep") == 1
    assert f"{KD}: is trained again: runs/{KD}/{name}: changed" in capfd.readouterr().err
    (arguments,) = asked
    assert arguments[:4] == ["train-student", "pupil", "kd", "0"]


def test_a_module_of_the_working_folder_takes_no_part(dumped, capfd):
    Path("click.py").write_text("raise SystemExit('the wrong click')")
    assert run("sweep") == 0
    assert "2 of 2 runs done" in capfd.readouterr().err


def test_a_run_that_fails_stops_no_other_and_is_named_at_the_end(dumped, monkeypatch, capfd):
    monkeypatch.setattr(sweep, "command_line", lambda _: [sys.executable, "-c", "raise SystemExit(1)"])
    assert run("sweep") == 1
    told = capfd.readouterr().err
    assert "2 of 2 runs done" in told
    assert f"2 of 2 runs failed: {SCRATCH}, {KD}" in told
    assert "Traceback" not in told


def test_an_unfinished_dump_is_told_before_any_training(project, record, capfd):
    asked = record()
    assert run("sweep") == 1
    assert "run: pipeline cache-logits main" in capfd.readouterr().err
    assert asked == []
