"""Several teachers by params.yaml alone: dumps of the same views, averaged, and a student of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages.conftest import PARAMS, run

BOTH = {"ensembles": {"both": {"of": ["main", "other"], "weights": [1, 2]}}}
MANIFEST = Path("data/logits/both.zarr/manifest.json")


@pytest.fixture
def dumps(project, edit):
    """Two dumps of the same views, by one teacher at two precisions: enough to be told apart."""
    other = {**PARAMS["dumps"]["main"], "precision": "bf16"}
    edit({"dumps": {"other": other}, **BOTH})
    assert run("cache-logits", "main") == run("cache-logits", "other") == 0


def test_a_student_learns_from_several_teachers(dumps, edit, capsys):
    assert run("cache-logits", "both") == 0
    assert "both: main, other, 3 views; top-1 on test 0." in capsys.readouterr().out
    assert run("inspect", "data/logits/both.zarr", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["codec"], summary["n_views"], summary["complete"]) == ("ensemble", 3, True)
    assert summary["fingerprint"].keys() == {"dataset", "teacher", "views", "codec"}
    assert run("train-student", "pupil", "kd", 0, "--dump", "both") == 0
    metrics = json.loads(Path("runs/both-pupil-kd-0/metrics.json").read_text())
    assert 0 <= metrics["agreement"] <= 1
    edit({"sweep": {"dumps": ["both"], "baselines": []}})
    assert run("report") == 0
    results = json.loads(Path("reports/results.json").read_text())
    assert results["dumps"]["both"]["teacher"] == "tutor + tutor"
    assert results["dumps"]["both"]["teacher_top1"] == json.loads(MANIFEST.read_text())["teacher_top1"]


def test_other_parameters_than_it_was_made_with_are_refused(dumps, edit, capsys):
    assert run("cache-logits", "both") == 0
    edit({"ensembles": {"both": {"weights": [1, 1]}}})
    assert run("train-student", "pupil", "kd", 0, "--dump", "both") == 1
    assert "rebuild it with: pipeline cache-logits both" in capsys.readouterr().err


def test_one_that_was_not_made_is_named_with_the_command(dumps, capsys):
    assert run("train-student", "pupil", "kd", 0, "--dump", "both") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "both.zarr: no such ensemble; create it with: pipeline cache-logits both" in told
    assert run("plan", "both") == 1
    assert "'both' is an ensemble, which costs next to nothing; plan its dumps instead: main" in (
        capsys.readouterr().err
    )


def test_a_missing_member_is_named(project, edit, capsys):
    edit({"dumps": {"other": PARAMS["dumps"]["main"]}, **BOTH})
    assert run("cache-logits", "both") == 1
    assert "main.zarr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"both": {"of": ["main"]}}, "of is ['main']; expected two or more different dumps"),
        ({"both": {"of": ["main", "mian"]}}, "did you mean 'main'?"),
        ({"both": {"of": ["main", "other"], "weights": [1]}}, "weights are [1.0]; expected 2"),
        ({"both": {"of": ["main", "other"], "average": "max"}}, "'probabilities' or 'logits'"),
        ({"main": {"of": ["main", "other"]}}, "'main' is both a dump and an ensemble"),
    ],
)
def test_parameters_that_make_no_ensemble_are_refused(project, edit, capsys, change, message):
    edit({"dumps": {"other": PARAMS["dumps"]["main"]}, "ensembles": change})
    assert run("cache-logits", "main") == 1
    assert message in capsys.readouterr().err


def test_what_an_ensemble_does_not_have_is_refused(dumps, capsys):
    assert run("cache-logits", "both") == 0
    assert run("verify", "data/logits/both.zarr") == 1
    assert "verify its members instead: main.zarr and other.zarr" in capsys.readouterr().err
    assert run("cache-logits", "both", "--shards", "1/2") == 1
    assert "--shards does not apply to ensemble" in capsys.readouterr().err
