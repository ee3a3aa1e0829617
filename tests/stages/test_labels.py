"""A label that was corrected after the dump: told by every command, refused by none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.core.files import read_json
from pipeline.dump.spec import splits_of
from pipeline.modalities.prepared import PreparedData
from pipeline.store.reader import LogitStore
from tests.pipeline.store.older import to_schema_3
from tests.stages.conftest import VIEWS, run
from tests.stages.test_interruption import STORE

STUDENT = ("train-student", "pupil", "kd", 0, "--dump", "main")


def correct(train: int, test: int) -> None:
    """Give so many training and test samples the label of another class, and prepare the data again."""
    arrays = dict(np.load("data.npz"))
    for name, count in (("train", train), ("test", test)):
        arrays[f"{name}_labels"][:count] = (arrays[f"{name}_labels"][:count] + 1) % 4
    np.savez("data.npz", **arrays)
    assert run("prepare") == 0


def inspected(capsys) -> dict:
    capsys.readouterr()
    assert run("inspect", STORE, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_corrected_label_is_told_and_never_refused(project, capsys):
    assert run("cache-logits", "main") == 0
    before = inspected(capsys)
    assert (before["labels_changed"], before["n_labels_changed"]) == (False, 0)
    figures = read_json(STORE / "manifest.json")["teacher_top1"]
    correct(1, 2)
    after = inspected(capsys)
    assert {**after, "labels_changed": False, "n_labels_changed": 0} == before
    assert (after["labels_changed"], after["n_labels_changed"]) == (True, 3)
    for command in (("inspect", STORE), ("verify", STORE, "--replay", 4), STUDENT):
        assert run(*command) == 0
        told = capsys.readouterr()
        assert "3 of 140 labels have changed since the dump" in told.out + told.err
    assert run("train-student", "pupil", "scratch", 0) == 0
    assert run("report") == 0
    assert read_json(Path("reports/results.json"))["dumps"]["main"]["n_labels_changed"] == 3
    assert "3 labels of the data changed since the dump" in Path("reports/index.html").read_text()
    # More views: the figures stay those by the labels of the dump, which the store still tells.
    assert run("cache-logits", "main", "--set", f"dumps.main.views.count={VIEWS + 1}") == 0
    assert LogitStore.open(STORE).n_views == VIEWS + 1
    assert read_json(STORE / "manifest.json")["teacher_top1"] == figures
    assert inspected(capsys)["n_labels_changed"] == 3
    assert run("verify", STORE) == 0


def test_an_older_store_refuses_it_until_it_is_upgraded(project, capsys):
    assert run("cache-logits", "main") == 0
    to_schema_3(STORE, splits_of(PreparedData.open(Path("data/prepared"))))
    correct(1, 0)
    assert inspected(capsys)["labels_changed"] is None
    assert run(*STUDENT) == 1
    assert f"run: pipeline verify {STORE} --upgrade" in capsys.readouterr().err
    assert run("verify", STORE, "--upgrade") == 0
    assert "still cover labels" not in capsys.readouterr().err
    assert inspected(capsys)["n_labels_changed"] == 1
    assert run(*STUDENT) == 0
