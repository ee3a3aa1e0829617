"""What is used is what was asked for: data, teachers and stores against params.yaml, at every start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.modalities.images import options
from pipeline.samples.description import DECISIVE
from stages.data_params import DataParams
from tests.stages.conftest import make_images, run

STORE = Path("data/logits/main.zarr")
STUDENT = ("train-student", "pupil", "kd", 0, "--dump", "main")
READERS = [
    ("train-teacher", "tutor"),
    ("cache-logits", "main"),
    ("train-student", "pupil", "scratch", 0),
    ("plan", "main"),
    ("report",),
]


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Run a command that must be refused in one line, and return the line."""

    def check(*command: object) -> str:
        capsys.readouterr()
        assert run(*command) == 1
        told = capsys.readouterr().err.splitlines()
        assert sum(line.startswith("pipeline: ") for line in told) == 1, told
        assert told[-1].startswith("pipeline: ")
        return told[-1].removeprefix("pipeline: ")

    return check


@pytest.fixture
def told(capsys) -> Callable[..., str]:
    """Run a command that must succeed, and return what it told on stderr."""

    def check(*command: object) -> str:
        capsys.readouterr()
        assert run(*command) == 0
        return str(capsys.readouterr().err)

    return check


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# Prepared data


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_data_of_another_source_is_refused_by_every_command_that_reads_it(project, edit, refused, command):
    shutil.copy("data.npz", "other.npz")
    edit({"data": {"source": "npz:other.npz", "watch": "other.npz"}})
    expected = (
        "data/prepared was prepared from npz:data.npz, but params.yaml asks for npz:other.npz; run: "
        "pipeline prepare"
    )
    assert refused(*command) == expected


@pytest.mark.parametrize(
    ("key", "value"), [("validation", 0.5), ("seed", 7), ("channels", 1), ("short_side", 64)]
)
def test_data_made_with_other_values_is_refused_by_both(project, edit, refused, key, value):
    was = yaml.safe_load(Path("params.yaml").read_text())["data"][key]
    edit({"data": {key: value}})
    assert refused("plan", "main") == (
        f"data/prepared was prepared from npz:data.npz with {key} {was}, but params.yaml asks for "
        f"npz:data.npz with {key} "
        f"{value}; run: pipeline prepare"
    )
    assert run("prepare") == 0
    assert run("plan", "main") == 0


def test_what_decides_no_content_is_not_compared(project, edit, told):
    here = Path.cwd()
    for source in ("npz:./data.npz", f"npz:{here}/data.npz"):
        edit({"data": {"source": source, "watch": "elsewhere", "root": "elsewhere", "labels_per_class": 3}})
        told("plan", "main")


def test_what_is_compared_is_what_dvc_prepares_again_for():
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert {f"data.{key}" for key in (*DECISIVE, *options.DECISIVE)} == set(stages["prepare"]["params"])
    assert {*DECISIVE, *options.DECISIVE} < set(DataParams().asked())


def test_a_bit_that_flipped_in_pixels_is_named_by_whatever_reads_them(project, refused):
    path = Path("data/prepared/test.pixels")
    flip(path, 10_000)
    for command in (READERS[0], READERS[1], READERS[2]):
        line = refused(*command)
        assert line.startswith(f"{path}: image 'test/13' has changed since it was prepared")
        assert line.endswith("run: pipeline prepare")
    # Both look at images without a store.
    export = ("export", "models/teachers/tutor.pt", "--format", "pt2", "--out", "tutor.pt2")
    for command in (("report",), export):
        assert "image 'test/13' has changed since it was prepared" in refused(*command)
    assert run("prepare") == 0
    assert run("cache-logits", "main") == 0


# verify --data


def test_prepared_data_is_checked_alone_or_beside_a_store(project, capsys):
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("verify", "--data") == 0
    assert "data/prepared: 10 files checked, 140 samples compared" in capsys.readouterr().out
    assert run("verify", STORE, "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert run("verify", STORE, "--data", "--json") == 0
    both = json.loads(capsys.readouterr().out)
    assert set(both) == {"ok", "checked", "bad", "replayed", "replay_max_abs_diff", "replay_kl_mean"}
    assert (both["ok"], both["checked"], both["bad"]) == (True, alone["checked"] + 10, [])


def test_what_is_bad_in_prepared_data_is_listed(project, capsys):
    flip(Path("data/prepared/train.pixels"), 0)
    flip(Path("data/prepared/test.pixels"), 768 * 3)
    Path("data/prepared/validation.names").unlink()
    assert run("verify", "--data") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "train.pixels: image" in lines[0]
    assert lines[1] == "data/prepared/validation.names: missing; run: pipeline prepare"
    assert "test.pixels: image 'test/3'" in lines[2]
    assert lines[3].endswith("3 bad; next: pipeline prepare")
    assert run("verify", "--data", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], len(found["bad"])) == (False, 3)


@pytest.mark.parametrize("command", [[], ["--json"], ["--data", "--replay", "3"], ["--data", "--repair"]])
def test_without_a_store_only_data_is_checked(project, capsys, command):
    assert run("verify", *command) == 2
    assert "Missing argument 'STORE'" in capsys.readouterr().err


# Stores without their teacher's checkpoint


@pytest.fixture
def dumped(project):
    """The project with its dump."""
    assert run("cache-logits", "main") == 0


def test_a_store_of_another_teacher_is_refused_without_its_checkpoint(dumped, edit, refused):
    edit({"teachers": {"prof": {"model": "resnet32"}}, "dumps": {"main": {"teacher": "prof"}}})
    shutil.rmtree("models/teachers")
    for command in (STUDENT, ("report",)):
        line = refused(*command)
        assert line.startswith(
            f"{STORE} was made by teacher 'tutor' (resnet8), but params.yaml asks for 'prof' (resnet32): "
        )
        assert "set dumps.main.teacher: tutor" in line
        assert line.endswith("run: pipeline cache-logits main")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet20"}, "teachers.tutor.model was resnet8, is resnet20"),
        ({"stem_stride": 4}, "teachers.tutor.stem_stride was"),
        ({"channels": 1}, "teachers.tutor.channels was 3, is 1"),
        ({"options": {"width": 9}}, "teachers.tutor.options.width was None, is 9"),
        ({"preprocessing": {"crop_fraction": 0.5}}, "teachers.tutor.preprocessing.crop_fraction was"),
        ({"preprocessing": {"size": 32}}, "teachers.tutor.preprocessing.size was 16, is 32"),
    ],
)
@pytest.mark.parametrize("at_hand", [True, False])
def test_a_teacher_of_another_spec_is_refused(dumped, edit, refused, change, message, at_hand):
    edit({"teachers": {"tutor": change}})
    if not at_hand:
        shutil.rmtree("models/teachers")
    assert message in refused(*STUDENT)
    if at_hand:
        line = refused("cache-logits", "main")
        assert line.startswith("models/teachers/tutor.pt: does not match params.yaml")
        assert message in line
        assert "run: pipeline train-teacher tutor" in line


def test_another_precision_is_refused_without_the_checkpoint(dumped, refused):
    shutil.rmtree("models/teachers")
    line = refused(*STUDENT, "--set", "dumps.main.precision=bf16")
    assert "dumps.main.precision was fp32, is bf16" in line


def test_a_complete_dump_whose_files_are_not_there_is_not_called_complete(dumped, refused, told):
    assert "complete, no shard is missing" in told("cache-logits", "main")
    shard = next(file for file in sorted((STORE / "train/codes/c").rglob("*")) if file.is_file())
    whole, name = shard.read_bytes(), shard.relative_to(STORE)
    shard.write_bytes(whole[:-1])
    found = f"{STORE}: {name} has {len(whole) - 1} bytes, expected {len(whole)}; expected a compl"
    assert refused("cache-logits", "main").startswith(found)
    shard.unlink()
    assert (
        f"{name} is missing; expected a complete dump as it was written; run: pipeline verify "
        in refused("cache-logits", "main")
    )
    assert run("verify", STORE, "--repair") == 0
    assert shard.read_bytes() == whole


def test_a_dump_that_changed_is_no_output_of_dvc(dumped, refused, told, monkeypatch):
    shard = next(file for file in sorted((STORE / "train/codes/c").rglob("*")) if file.is_file())
    flip(shard, len(shard.read_bytes()) // 2)
    monkeypatch.setenv("DVC_STAGE", "cache-logits@main")
    assert (
        f"{shard.relative_to(STORE)} has changed since it was written; expected a complete dump"
        in refused("cache-logits", "main")
    )
    assert run("verify", STORE, "--repair") == 0
    assert "complete, no shard is missing" in told("cache-logits", "main")


def test_damage_is_found_beside_growth_and_a_file_of_the_users_is_none(dumped, refused, told, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "cache-logits@main")
    (STORE / ".DS_Store").write_bytes(b"mine")
    assert "complete, no shard is missing" in told("cache-logits", "main")
    shard = next(file for file in sorted((STORE / "train/codes/c").rglob("*")) if file.is_file())
    flip(shard, len(shard.read_bytes()) // 2)
    more = refused("cache-logits", "main", "--set", "dumps.main.views.count=4")
    assert "has changed since it was written; expected a complete dump as it was written; run: pip" in more


def test_a_store_that_is_as_asked_trains_without_the_checkpoint(dumped, told):
    shutil.rmtree("models/teachers")
    shutil.rmtree("runs/teacher-tutor")
    told(*STUDENT)


def test_a_teacher_that_was_renamed_is_told_by_its_weights(dumped, edit, told, refused):
    edit({"dumps": {"main": {"teacher": "prof"}}, "teachers": {"prof": {"model": "resnet8", "epochs": 4}}})
    for suffix in ("pt", "json"):
        Path(f"models/teachers/tutor.{suffix}").rename(f"models/teachers/prof.{suffix}")
    assert "teacher 'prof' is named 'tutor' in the store; the weights are the same" in told(*STUDENT)
    shutil.rmtree("models/teachers")
    assert "provide models/teachers/prof.pt to compare its weights" in refused(*STUDENT)


def test_members_of_an_ensemble_are_compared_one_by_one(dumped, edit, refused):
    params = yaml.safe_load(Path("params.yaml").read_text())
    edit({"dumps": {"other": {**params["dumps"]["main"], "precision": "bf16"}}})
    assert run("cache-logits", "other") == 0
    edit({"ensembles": {"both": {"of": ["main", "other"]}}})
    edit({"teachers": {"prof": {"model": "resnet32"}}, "dumps": {"other": {"teacher": "prof"}}})
    shutil.rmtree("models/teachers")
    assert "other.zarr was made by teacher 'tutor'" in refused("cache-logits", "both")
    edit({"dumps": {"other": {"teacher": "tutor"}}})
    assert run("cache-logits", "both") == 0
    edit({"dumps": {"other": {"teacher": "prof"}}, "sweep": {"dumps": ["both"]}})
    for command in (("train-student", "pupil", "kd", 0, "--dump", "both"), ("report",)):
        assert "other.zarr was made by teacher 'tutor'" in refused(*command)


# Teachers and runs that params.yaml has left behind


def test_training_values_that_changed_since_are_told(dumped, edit, told):
    line = "models/teachers/tutor.pt: params.yaml has changed since it was trained: "
    assert line not in told(*STUDENT)
    edit({"teachers": {"tutor": {"epochs": 30, "seed": 2}}, "data": {"image_size": 16}})
    for command in (("plan", "main"), ("cache-logits", "main"), STUDENT):
        expected = (
            f"{line}data.image_size was None, is 16; teachers.tutor.seed was 0, is 2; "
            "teachers.tutor.epochs was 4, is 30; run: pipeline train-teacher tutor"
        )
        assert expected in told(*command)


def test_other_weights_are_another_teacher(project, edit, refused):
    shutil.copy("models/teachers/tutor.pt", "start.pt")
    shutil.copy("models/teachers/tutor.json", "start.json")
    edit({"teachers": {"tutor": {"weights": "start.pt"}}})
    line = refused("cache-logits", "main")
    assert "teachers.tutor.weights was None, is start.pt" in line
    assert run("train-teacher", "tutor") == 0
    assert run("cache-logits", "main") == 0


@pytest.mark.parametrize("metrics", [None, "{", "[]", '{"made_with": "x"}', '{"made_with": 3}', "{}"])
def test_a_teacher_of_which_no_making_is_known_is_used(project, told, metrics):
    path = Path("runs/teacher-tutor/metrics.json")
    path.unlink()
    if metrics is not None:
        path.write_text(metrics)
    told("plan", "main", "--set", "teachers.tutor.epochs=30")


def test_a_run_of_other_data_is_told_by_the_report(dumped, told):
    assert run("train-student", "pupil", "scratch", 0) == 0
    assert run(*STUDENT) == 0
    assert "different data" not in told("report") + told("cache-logits", "main")
    train, test = make_images(100, 0), make_images(40, 1)
    test[0][0, 0, 0, 0] ^= 1
    np.savez(
        "data.npz", train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1]
    )
    assert run("prepare") == 0
    assert run("train-student", "pupil", "scratch", 0) == 0
    shutil.rmtree(STORE)
    assert "teacher tutor: trained on different data than data/prepared holds now" in told(
        "cache-logits", "main"
    )
    said = told("report")
    assert (
        "main-pupil-kd-0: trained on different data than data/prepared holds now; run: dvc repro, or the "
        "commands of its teacher, its dump and the student in turn" in said
    )
    assert "baseline-pupil-scratch-0: trained on different data" not in said


def test_under_dvc_no_teacher_is_trained_towards_a_refusal(dumped, refused, told, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train-teacher@tutor")
    warning = f"{STORE}: made by tutor before this training"
    assert warning in told("train-teacher", "tutor")  # the data are the same
    train, test = make_images(100, 0), make_images(40, 1)
    train[0][0, 0, 0, 0] ^= 1
    np.savez(
        "data.npz", train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1]
    )
    assert run("prepare") == 0
    line = refused("train-teacher", "tutor")
    assert f"{STORE}: the data have changed since tutor made it" in line
    assert f"remove the store with: rm -r {STORE}; then run: dvc repro" in line
    monkeypatch.delenv("DVC_STAGE")
    assert warning in told("train-teacher", "tutor")
