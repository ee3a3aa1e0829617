"""`pipeline report` after what it is of: metrics, results and the page say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.stages.conftest import CLASSES, PARAMS, run

STORE = Path("data/logits/main.zarr")
CONTRACT = (
    "student recipe seed dump top1 top5 nll ece agreement kl_to_teacher parameters images_per_second "
    "best_epoch"
)


def test_students_and_teachers_are_judged_alike(project, capsys):
    assert run("cache-logits", "main") == 0
    assert run("train-student", "pupil", "scratch", 0) == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    assert run("report") == 0
    results = json.loads(Path("reports/results.json").read_text())
    metrics = json.loads(Path("runs/main-pupil-kd-0/metrics.json").read_text())
    teacher = json.loads(Path("runs/teacher-tutor/metrics.json").read_text())
    scratch, kd = results["students"]
    assert set(CONTRACT.split()) <= set(kd) == set(scratch)
    assert all(metrics[name] == value for name, value in kd.items())
    for figures in (metrics, teacher):
        assert sum(of_class["support"] for of_class in figures["classes"]) == 40
        assert len(figures["classes"]) == CLASSES
        assert 0.01 <= figures["temperature"] <= 100
        assert figures["macs"] > 1e5
        assert figures["cpu_latency_ms"] > 0
    assert (scratch["agreement"], "agreement" in teacher) == (None, False)
    assert results["teachers"]["tutor"] == {
        name: value
        for name, value in teacher.items()
        if name not in ("classes", "confusions", "made_with", "dataset", "digests", "written_by")
    } | {"model": PARAMS["teachers"]["tutor"]["model"], "weights": None, "fine_tune": False}
    assert results["outdated"] == {}
    assert results["dumps"]["main"]["label_errors"]["checked"] == 140
    page = Path("reports/index.html").read_text()
    assert "Per class" in page
    assert "Labels that the teacher contradicts" in page
    assert f"{PARAMS['teachers']['tutor']['model']}, trained from scratch" in page

    printed, told = capsys.readouterr()
    assert printed.endswith("\nwrote reports/index.html, results.json and results.csv\n")
    assert "params.yaml has changed" not in told
    assert "a different teacher" not in told

    more = ["--set", "students.pupil.learning_rate=0.01", "--set", "data.labels_per_class=3"]
    assert run("report", *more) == 0
    told = capsys.readouterr().err
    changed = "data.labels_per_class was None, is 3; students.pupil.learning_rate was 0.05, is 0.01"
    for name in ("baseline-pupil-scratch-0", "main-pupil-kd-0"):
        because = f"params.yaml has changed since it was trained: {changed}"
        assert f"{name}: {because}" in told
        assert json.loads(Path("reports/results.json").read_text())["outdated"][name] == [because]
        assert f"{name}: {because}." in Path("reports/index.html").read_text()
    assert run("report", "--set", "teachers.tutor.epochs=9") == 0
    because = "params.yaml has changed since it was trained: teachers.tutor.epochs was 4, is 9"
    assert f"teacher tutor: {because}; to retrain it, run: pipeline" in capsys.readouterr().err
    found = json.loads(Path("reports/results.json").read_text())
    assert found["outdated"] == {"teacher-tutor": [because]}
    assert found["networks"] == {"pupil": {"model": "resnet8", "weights": None, "fine_tune": False}}
    assert run("train-teacher", "tutor", "--set", "teachers.tutor.epochs=1") == 0
    told = capsys.readouterr().err
    assert f"{STORE}: made by tutor before this training" in told
    assert "give dump 'main' a new name in params.yaml, or remove the store with: rm -r" in told
    assert run("report") == 0
    assert "written by a different teacher" in capsys.readouterr().err

    shutil.rmtree(STORE / "train/codes/c")
    assert run("report") == 0
    assert "its logits are not on this machine" in capsys.readouterr().err
    assert json.loads(Path("reports/results.json").read_text())["dumps"]["main"]["label_errors"] is None
