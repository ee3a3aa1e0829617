"""Parameter files to start from: they are there, they load, and none is written over another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torchvision
import yaml

from pipeline.models.architecture import source_of
from stages.params_file import load_params
from stages.preset import presets
from stages.render import stages_of
from tests.stages.conftest import run
from tests.stages.dvc_projects import call

IMAGENET = "imagenet-1k"


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """The preset for ImageNet as params.yaml of the working folder."""
    monkeypatch.chdir(tmp_path)
    assert run("preset", IMAGENET, "--out", "params.yaml") == 0
    return tmp_path / "params.yaml"


def test_all_are_listed_by_their_first_line(capsys):
    assert run("preset") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    assert any("ResNet-50 teaches MobileNetV2 and ResNet-18" in line for line in lines)


def test_what_is_printed_is_what_is_written(written, capsys):
    capsys.readouterr()
    assert run("preset", IMAGENET) == 0
    assert capsys.readouterr().out == written.read_text()


def test_nothing_is_overwritten(written, capsys):
    written.write_text("mine: 1\n")
    assert run("preset", IMAGENET, "--out", "params.yaml") == 1
    assert "params.yaml: already exists; choose a different name" in capsys.readouterr().err
    assert written.read_text() == "mine: 1\n"


def test_the_stages_are_written_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("preset", "audio", "--dvc") == 2
    assert run("preset", "audio", "--out", "params.yaml", "--dvc") == 0
    said = "params.yaml, dvc.yaml: wrote preset audio; next: dvc init --no-scm && dvc repro\n"
    assert capsys.readouterr().out == said
    tree = yaml.safe_load(Path("dvc.yaml").read_text())
    assert "data.sample_rate" in tree["stages"]["prepare"]["params"]
    assert "data.clip_seconds" in tree["stages"]["train-teacher"]["do"]["params"]
    Path("params.yaml").unlink()
    capsys.readouterr()
    assert run("preset", "audio", "--out", "params.yaml", "--dvc") == 1
    assert "dvc.yaml: already exists" in capsys.readouterr().err
    assert not Path("params.yaml").exists()


@pytest.mark.parametrize("name", ["audio", "items", "text"])
def test_dvc_knows_what_to_run_right_away(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("preset", name, "--out", "params.yaml", "--dvc") == 0
    call("dvc", "init", "--no-scm", "-q")
    assert {"prepare", "cache-logits@main", "report"} <= set(
        call("dvc", "stage", "list", "--name-only").split()
    )
    assert "Running stage 'prepare'" in call("dvc", "repro", "--dry", "prepare")


def test_an_unknown_name_is_one_clear_line(capsys):
    assert run("preset", "imagnet-1k") == 1
    error = capsys.readouterr().err
    assert error.startswith("pipeline: no preset 'imagnet-1k'; expected one of audio, imagenet-1k")
    assert "did you mean 'imagenet-1k'?" in error
    assert error.count("\n") == 1


def test_a_file_without_a_preset_is_wrong_usage(tmp_path, capsys):
    assert run("preset", "--out", tmp_path / "params.yaml") == 2
    assert "needs the NAME of a preset; add it" in capsys.readouterr().err
    assert not (tmp_path / "params.yaml").exists()


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_ready_to_run(name, tmp_path):
    """Models and weights are known without a network, and dvc.yaml finds every key that it names."""
    path = tmp_path / "params.yaml"
    path.write_text(presets()[name])
    params = load_params(path)
    for model in (*params.teachers.values(), *params.students.values()):
        assert source_of(model.model).knows(model.model)
    for dump in params.sweep.dumps:
        teacher = params.teacher(params.dump(dump).teacher)
        weights = teacher.weights
        assert weights is None or weights in torchvision.models.get_model_weights(teacher.model).__members__
    tree = yaml.safe_load(presets()[name])
    stages = stages_of(params.data.kind)
    for key in re.findall(r"- (data\.\w+|training|sweep)$", stages, re.MULTILINE):
        section, _, leaf = key.partition(".")
        assert section in tree, key
        assert not leaf or leaf in tree[section], key
    # What is built in cannot change; DVC needs a file to watch.
    assert params.data.watch == (params.data.source.partition(":")[2] or ".dvcignore")


def test_imagenet_is_the_recipe_that_it_says(written):
    params = load_params(written)
    dump = params.dump("main")
    assert (params.data.options.size, dump.views.count, dump.codec) == (224, 50, "auto")
    assert dump.views.mixes
    assert dump.views.spec.mixup.probability + dump.views.spec.cutmix.probability == 1
    assert {params.student(name).model for name in params.sweep.students} == {"mobilenet_v2", "resnet18"}
    for student in params.students.values():
        assert student.training.epochs % dump.views.count == 0  # every view is seen equally often
    assert not params.training.views.mixes
