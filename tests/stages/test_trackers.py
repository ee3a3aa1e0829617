"""`training.log`: commands tell trackers of parameters, epochs and test figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.stages.conftest import run

OWN = """
import json
from pathlib import Path

class Lines:
    id = "lines"

    def __init__(self, run):
        self.path = Path("lines.jsonl")
        self.tell(begin=run.name, epoch=run.epoch, continues=run.continues, parameters=run.parameters)

    def tell(self, **values):
        with self.path.open("a") as file:
            file.write(json.dumps(values) + chr(10))

    def epoch(self, number, figures):
        if Path("stop").exists() and number == 2:
            raise KeyboardInterrupt
        self.tell(epoch=number, figures=figures)

    def end(self, figures):
        self.tell(end=figures)
"""
STUDENT = ("train-student", "pupil", "scratch", "0")


def lines() -> list[dict]:
    found = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    Path("lines.jsonl").unlink()
    return found


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def table(name: str) -> list[dict[str, str]]:
    return rows(f"logs/csv/{name}.csv")


def test_a_student_tells_parameters_epochs_and_test_figures(project, edit, capsys):
    Path("own_lines.py").write_text(OWN)
    assert run(*STUDENT) == 0
    made_with = json.loads(Path("runs/baseline-pupil-scratch-0/metrics.json").read_text())["made_with"]
    assert not Path("logs").exists()
    edit({"training": {"log": ["csv", "own_lines:Lines"]}, "students": {"pupil": {"workers": 2}}})
    assert run(*STUDENT) == 0
    metrics = json.loads(Path("runs/baseline-pupil-scratch-0/metrics.json").read_text())
    # Trackers and workers decide nothing: a run keeps its parameters, and the report stays silent.
    assert metrics["made_with"] == made_with
    begin, *epochs, end = lines()
    assert (begin["begin"], begin["epoch"], begin["continues"]) == ("baseline-pupil-scratch-0", 0, None)
    assert begin["parameters"]["recipes.scratch"] == {"loss": "scratch", "settings": {}}
    assert (begin["parameters"]["seed"], begin["parameters"]["dump"]) == (0, None)
    history = rows("runs/baseline-pupil-scratch-0/history.csv")
    assert [str(line["figures"]["train/loss"]) for line in epochs] == [row["loss"] for row in history]
    assert {name for line in epochs for name in line["figures"]} == {
        *("train/loss", "train/learning_rate", "train/images_per_second", "train/skipped_steps"),
        *("train/stall_fraction", "validation/top1", "validation/nll"),
    }
    assert end["end"]["test/top1"] == metrics["top1"]
    assert end["end"]["test/best_epoch"] == metrics["best_epoch"]
    columns = {"epoch": "epoch", "train/loss": "loss", "validation/nll": "validation_nll"}
    told = [{new: row[new] for new in columns} for row in table("baseline-pupil-scratch-0")]
    assert told == [{new: row[old] for new, old in columns.items()} for row in history]


def test_an_interrupted_student_continues_its_trackers(project, edit):
    Path("own_lines.py").write_text(OWN)
    edit({"training": {"log": ["csv", "own_lines:Lines"]}})
    Path("stop").touch()
    assert run(*STUDENT) == 130
    assert lines()[-1] == {"end": None}
    Path("stop").unlink()
    assert run(*STUDENT) == 0
    begin, second, end = lines()
    assert (begin["epoch"], begin["continues"]) == (1, "lines")
    assert second["epoch"] == 2
    assert end["end"]
    assert [row["epoch"] for row in table("baseline-pupil-scratch-0")] == ["1", "2"]
    assert not list(Path("runs/.state").glob("*.json"))


def test_a_teacher_has_trackers_too_and_a_given_one_has_no_epochs(project, edit):
    Path("own_lines.py").write_text(OWN)
    edit({"teachers": {"tutor": {"log": ["own_lines:Lines"], "epochs": 1}}})
    assert run("train-teacher", "tutor") == 0
    begin, epoch, end = lines()
    assert begin["begin"] == "teacher-tutor"
    assert begin["parameters"]["teachers.tutor"]["training"]["epochs"] == 1
    assert (epoch["epoch"], "test/top1" in end["end"]) == (1, True)
    Path("models/teachers/tutor.pt").rename("given.pt")
    Path("models/teachers/tutor.json").rename("given.json")
    edit({"teachers": {"tutor": {"weights": "given.pt"}}})
    assert run("train-teacher", "tutor") == 0
    assert [sorted(line)[0] for line in lines()] == ["begin", "end"]


def test_a_missing_library_is_told_before_any_work(project, edit, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.log.find_spec", lambda name: None)
    edit({"training": {"log": ["wandb"]}})
    for command in (STUDENT, ("train-teacher", "tutor")):
        assert run(*command) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert "tracker wandb needs the library wandb, which is not installed; run: pip install" in said
        assert "[wandb]" in said
    assert not Path("runs/baseline-pupil-scratch-0").exists()


def test_an_unknown_tracker_is_refused_when_params_yaml_is_read(project, edit, capsys):
    edit({"training": {"log": ["tensorbord"]}})
    assert run("report") == 1
    assert "training: log lists 'tensorbord'; expected csv, tensorboard" in capsys.readouterr().err
    edit({"training": {"log": "csv"}})
    assert run("report") == 1
    assert "training.log is 'csv'; expected a list" in capsys.readouterr().err
