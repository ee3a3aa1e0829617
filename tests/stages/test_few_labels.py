"""Students with few labels, and images that have none, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import write_png

from pipeline.core.errors import PipelineError
from pipeline.modalities.prepared import PreparedData
from pipeline.training import loop
from stages import paths
from tests.stages.conftest import CLASSES, make_images, run
from tests.stages.test_interruption import content

STORE = paths.store("main")
FEW = ("--set", "data.labels_per_class=3")
KD = ("train-student", "pupil", "kd", 0, "--dump", "main")
SCRATCH = ("train-student", "pupil", "scratch", 0)


@pytest.fixture
def labels_seen(monkeypatch) -> dict[int, int]:
    """From a training sample's row to the label that a student was told of it, and `steps`."""
    seen: dict[int, int] = {}
    original = loop._Training._next

    def spy(self, batches):
        batch = original(self, batches)
        seen.update(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
        seen["steps"] = seen.get("steps", 0) + 1
        return batch

    monkeypatch.setattr(loop._Training, "_next", spy)
    return seen


def metrics(name: str) -> dict:
    return json.loads((paths.RUNS / name / "metrics.json").read_text())


def test_a_students_hidden_labels_are_none_and_the_dump_serves_all(project, labels_seen):
    assert run("cache-logits", "main") == 0
    before, train = content(STORE), PreparedData.open(paths.PREPARED).train
    assert len(train) == 77
    assert run(*KD, *FEW, "--set", "students.pupil.batch_size=11") == 0
    del labels_seen["steps"]
    known = {row: label for row, label in labels_seen.items() if label != -1}
    assert sorted(labels_seen) == list(range(77))
    assert sorted(known.values()) == [label for label in range(CLASSES) for _ in range(3)]
    assert all(label == train.labels[row] for row, label in known.items())
    told = metrics("main-pupil-kd-0")
    assert told["labelled_images"] == 3 * CLASSES
    assert told["validation_top1"] is not None
    assert content(STORE) == before
    assert run(*KD) == 0
    assert metrics("main-pupil-kd-0")["labelled_images"] == 77


def test_a_baseline_sees_labelled_images_alone_in_as_many_steps(project, labels_seen):
    assert run(*SCRATCH) == 0
    steps = labels_seen.pop("steps")
    labels_seen.clear()
    assert run(*SCRATCH, *FEW) == 0
    # Twelve images are no whole batch of sixteen, and as many steps as the whole split has.
    assert labels_seen.pop("steps") == steps
    assert sorted(labels_seen.values()) == [label for label in range(CLASSES) for _ in range(3)]
    assert metrics("baseline-pupil-scratch-0")["labelled_images"] == 3 * CLASSES


def test_a_run_of_another_number_of_labels_is_not_gone_on_with(project, monkeypatch, capsys):
    def stop(self, step):
        if self._run.epoch:
            raise PipelineError("stopped")

    monkeypatch.setattr(loop._Training, "_set_learning_rate", stop)
    assert run(*SCRATCH, *FEW) == 1
    monkeypatch.undo()
    monkeypatch.chdir(project)
    saved = (paths.STATE / "baseline-pupil-scratch-0.pt").read_bytes()
    for labels, said in (
        (2, "starting over: training samples or labels changed (lesson"),
        (3, "resuming after epoch 1 of 2"),
    ):
        (paths.STATE / "baseline-pupil-scratch-0.pt").write_bytes(saved)
        capsys.readouterr()
        assert run(*SCRATCH, "--set", f"data.labels_per_class={labels}") == 0
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [SCRATCH, KD], ids=["baseline", "student"])
def test_more_labels_than_the_smallest_class_has(project, capsys, command):
    assert run("cache-logits", "main") == 0
    counts = np.bincount(PreparedData.open(paths.PREPARED).train.labels)
    smallest = f"class '{counts.argmin()}' has only {counts.min()} labelled training samples"
    assert run(*command, "--set", "data.labels_per_class=1000") == 1
    assert smallest in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def photos(project, edit) -> Path:
    """A project whose images are files, 40 of which are of no class."""
    for split, count, seed in (("train", 100, 0), ("test", 40, 1)):
        images, labels = make_images(count, seed)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            few = split == "train" and row >= 60
            folder = Path("photos") / split / ("unlabelled/deeper" if few else f"class{label}")
            folder.mkdir(parents=True, exist_ok=True)
            write_png(torch.from_numpy(image).permute(2, 0, 1), str(folder / f"{row}.png"))
    edit({"data": {"source": "folder:photos", "watch": "photos", "image_size": 16}})
    edit({"dumps": {"main": {"allow_poor_teacher": True}}})
    return Path("photos")


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_unlabelled_images_go_from_a_folder_to_students(photos, capsys, labels_seen, edit, keep):
    edit({"data": {"keep": keep}})
    assert run("prepare") == 0
    data, out = PreparedData.open(paths.PREPARED), capsys.readouterr().out
    assert f"{CLASSES} classes, train {len(data.train)} (40 unlabelled), validation" in out
    assert (data.train.labels == -1).sum() == 40
    assert (data.validation.labels >= 0).all()

    labelled = len(data.train) - 40
    assert run("train-teacher", "tutor") == 0
    assert f"training on {labelled} samples" in capsys.readouterr().err
    assert set(labels_seen) <= {"steps", *range(labelled)}
    # Once an epoch: what a teacher learns does not depend on images that it is not shown.
    assert labels_seen.pop("steps") == 4 * (labelled // 16)
    labels_seen.clear()

    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("inspect", STORE) == 0
    samples = f"{len(data.train)} x 3 views, {CLASSES} classes, {labelled} labelled samples"
    assert samples in capsys.readouterr().out
    assert run("verify", STORE, "--replay", 8) == 0
    assert ": the same outputs\n" in capsys.readouterr().out

    assert run(*KD) == 0
    assert labels_seen.pop("steps") == 2 * (len(data.train) // 16)
    assert {row for row, label in labels_seen.items() if label == -1} <= set(
        np.flatnonzero(data.train.labels == -1).tolist()
    )
    assert -1 in labels_seen.values()
    labels_seen.clear()
    assert run(*SCRATCH) == 0
    assert labels_seen.pop("steps") == 2 * (len(data.train) // 16)
    assert -1 not in labels_seen.values()
    for name in ("main-pupil-kd-0", "baseline-pupil-scratch-0"):
        assert metrics(name)["labelled_images"] == labelled

    assert run("report") == 0
    found = json.loads((paths.REPORTS / "results.json").read_text())["dumps"]["main"]["label_errors"]
    assert found["checked"] == labelled + len(data.validation) + len(data.test)


def test_images_without_any_label_teach_students_of_a_dump_alone(photos, capsys, edit):
    """Classes are folders that are empty then."""
    assert run("prepare") == 0
    assert run("train-teacher", "tutor") == 0
    for file in [file for label in range(CLASSES) for file in photos.glob(f"train/class{label}/*")]:
        file.rename(photos / "train/unlabelled" / file.name)
    capsys.readouterr()
    assert run("prepare") == 1
    assert "0 skips validation" in capsys.readouterr().err
    edit({"data": {"validation": 0}})
    assert run("prepare") == 0
    assert f"{CLASSES} classes, train 100 (100 unlabelled)" in capsys.readouterr().out
    assert run("cache-logits", "main") == 0
    assert run(*KD) == 0
    assert metrics("main-pupil-kd-0")["labelled_images"] == 0
    for command in (SCRATCH, ("train-teacher", "tutor")):
        capsys.readouterr()
        assert run(*command) == 1
        assert "none of the 100 training samples is labelled" in capsys.readouterr().err.splitlines()[-1]
