"""Models by params.yaml alone, through the real stages: own code, class maps, fine-tuning, downstream."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.core.trust import Trust
from pipeline.evaluation.context import evaluate
from pipeline.modalities.prepared import PreparedData
from pipeline.models.auxiliary import count_parameters
from pipeline.models.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from pipeline.tasks.task import Figures
from tests.stages.conftest import make_images, run

STORE = Path("data/logits/main.zarr")
TUTOR = Path("models/teachers/tutor.pt")
OWN = """
import torch
from pipeline.modalities.images.models.cifar import cifar_resnet

def teacher(path="models/teachers/tutor.pt"):
    network = cifar_resnet(8)(4)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network
"""


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch):
    """Each test has a working folder of its own, and modules of that name in it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own", None)


def metrics(name: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/metrics.json").read_text())


def preprocessing() -> dict[str, Any]:
    """The tutor's preprocessing, as one would write it into params.yaml."""
    return json.loads(TUTOR.with_suffix(".json").read_text())["preprocessing"]


def three_classes() -> None:
    """Make and prepare data of the tutor's classes 3, 1 and 2, under numbers of its own."""
    arrays = {}
    for split, seed, count in (("train", 0, 100), ("test", 1, 40)):
        images, labels = make_images(count, seed)
        kept = np.isin(labels, (3, 1, 2))
        arrays[f"{split}_images"] = images[kept]
        arrays[f"{split}_labels"] = labels[kept] % 3
    np.savez("data.npz", **arrays)
    assert run("prepare") == 0


# One's own code


def test_a_teacher_of_ones_own_code_is_dumped_and_decides_the_fingerprint(project, edit, capsys):
    Path("own.py").write_text(OWN)
    mine = {"model": "own:teacher", "weights": "pretrained", "preprocessing": preprocessing()}
    edit({"teachers": {"mine": mine}, "dumps": {"main": {"teacher": "mine", "codec": "features"}}})
    assert run("train-teacher", "mine") == 0
    assert metrics("teacher-mine")["top1"] == metrics("teacher-tutor")["top1"]
    assert metrics("teacher-mine")["epochs"] == 0
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("verify", STORE, "--replay", 8) == 1
    assert "a card alone runs no code" in (line := capsys.readouterr().err)
    assert line.endswith("add --trust-code own:teacher\n")
    assert run("verify", STORE, "--replay", 8, "--trust-code", "own:teacher") == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    state = read_tensors(TUTOR)
    state["head.bias"] += 0.01
    torch.save(state, TUTOR)
    assert run("train-teacher", "mine") == 0
    assert run("cache-logits", "main") == 1
    assert "a different teacher" in capsys.readouterr().err


def test_a_student_of_ones_own_code_is_trained(project, edit):
    Path("own.py").write_text(
        "from torch import nn\n\n"
        "def small(num_classes, width):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(width * 196, num_classes))\n"
    )
    edit({"students": {"mine": {"model": "own:small", "options": {"width": 4}}}})
    assert run("train-student", "mine", "scratch", 0) == 0
    trust = Trust(code=frozenset({"own:small"}))
    network, _ = load_checkpoint(Path("models/students/baseline-mine-scratch-0.pt"), trust=trust)
    assert network[4].out_features == 4


# Weights that were trained elsewhere


def test_a_state_dict_alone_is_a_teacher(project, edit):
    state = {f"module.{name}": tensor for name, tensor in read_tensors(TUTOR).items()}
    torch.save({"epoch": 9, "state_dict": state}, "elsewhere.pth")
    edit(
        {
            "teachers": {
                "raw": {"model": "resnet8", "weights": "elsewhere.pth", "preprocessing": preprocessing()}
            }
        }
    )
    assert run("train-teacher", "raw") == 0
    assert metrics("teacher-raw")["top1"] == metrics("teacher-tutor")["top1"]


# Class maps


@pytest.mark.parametrize("in_a_file", [False, True], ids=["inline", "file"])
def test_a_teacher_of_more_classes_is_mapped_and_dumped(project, edit, in_a_file, capsys):
    shutil.copy(TUTOR, "big.pt")
    shutil.copy(TUTOR.with_suffix(".json"), "big.json")
    three_classes()
    mapping: Any = {"0": 3, "1": "1", "2": 2}
    if in_a_file:
        Path("classes.yaml").write_text("0: 3\n1: '1'\n2: 2\n")
        mapping = "classes.yaml"
    edit({"teachers": {"mapped": {"model": "resnet8", "weights": "big.pt"}}})
    assert run("train-teacher", "mapped") == 1
    assert "has 4 classes, but the data has 3; map them (class_map)" in capsys.readouterr().err
    edit({"teachers": {"mapped": {"class_map": mapping}}})
    edit({"dumps": {"main": {"teacher": "mapped", "codec": "features"}}})
    assert run("train-teacher", "mapped") == 0
    network, card = load_checkpoint(Path("big.pt"))
    test = PreparedData.open(Path("data/prepared")).test
    with torch.no_grad():
        logits = network(card.preprocessing.normalise(torch.from_numpy(test.uniform[0].copy())))
    found = logits[:, [3, 1, 2]].argmax(1).numpy()
    assert metrics("teacher-mapped")["top1"] == pytest.approx((found == test.labels).mean())
    big, mapped = read_tensors(Path("big.pt")), read_tensors(Path("models/teachers/mapped.pt"))
    assert torch.equal(mapped["head.weight"], big["head.weight"][[3, 1, 2]])
    assert run("cache-logits", "main") == 0
    capsys.readouterr()
    assert run("inspect", STORE, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_classes"], summary["codec"]) == (3, "features")
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0


# Auxiliary heads


def test_a_student_with_auxiliary_heads_is_kept_without_them(project, edit):
    edit({"students": {"deep": {"model": "googlenet", "epochs": 1, "batch_size": 40}}})
    assert run("train-student", "deep", "scratch", 0) == 0
    network, card = load_checkpoint(Path("models/students/baseline-deep-scratch-0.pt"))
    assert network.aux1 is None
    assert metrics("baseline-deep-scratch-0")["parameters"] == count_parameters(network, card.architecture)


# Fine-tuning


@pytest.mark.parametrize("freeze", [False, True], ids=["all", "frozen"])
def test_a_teacher_is_fine_tuned_on_other_classes(project, edit, freeze):
    shutil.copy(TUTOR, "big.pt")
    shutil.copy(TUTOR.with_suffix(".json"), "big.json")
    three_classes()
    tuned = {"model": "resnet8", "weights": "big.pt", "fine_tune": True, "freeze": freeze, "epochs": 3}
    edit({"teachers": {"tuned": {**tuned, "layer_decay": 0.75, "head_rate_factor": 2}}})
    assert run("train-teacher", "tuned") == 0
    before, after = read_tensors(Path("big.pt")), read_tensors(Path("models/teachers/tuned.pt"))
    assert after["head.weight"].shape == (3, 64)
    changed = {name for name in before if name[:4] != "head" and not torch.equal(before[name], after[name])}
    assert bool(changed) is not freeze
    assert metrics("teacher-tuned")["top1"] > 0.6


def test_a_distilled_student_is_adapted_to_another_dataset_in_another_project(
    project, tmp_path, monkeypatch
):
    """Distil, then adapt: its head is replaced, how it wants its images stays."""
    assert run("cache-logits", "main") == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main") == 0
    student = project / "models/students/main-pupil-kd-0.pt"
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    params = yaml.safe_load((project / "params.yaml").read_text())
    pupil = {"model": "resnet8", "weights": str(student), "freeze": True}
    (other / "params.yaml").write_text(yaml.safe_dump({**params, "students": {"pupil": pupil}}))
    three_classes()
    assert run("train-student", "pupil", "scratch", 0) == 0
    adapted = Path("models/students/baseline-pupil-scratch-0.pt")
    before, after = read_tensors(student), read_tensors(adapted)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "head.weight",
        "head.bias",
    }
    _, card = load_checkpoint(student)
    network, adapted_card = load_checkpoint(adapted)
    assert adapted_card.preprocessing == card.preprocessing
    assert adapted_card.classes == ("0", "1", "2")
    assert network.head.out_features == 3


def test_a_run_that_began_with_other_weights_is_not_gone_on_with(project, edit, capsys, monkeypatch):
    edit({"students": {"pupil": {"model": "resnet8", "weights": str(TUTOR)}}})
    judged = iter(range(1, 100))

    def interrupted(*arguments: Any, **settings: Any) -> Figures:
        if next(judged) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **settings)

    monkeypatch.setattr("pipeline.training.run.evaluate", interrupted)
    student = ["train-student", "pupil", "scratch", 0]
    assert run(*student) == 130
    kept = Path("runs/.state/baseline-pupil-scratch-0.pt").read_bytes()
    assert run(*student) == 0
    assert "resuming after epoch 1" in capsys.readouterr().err
    Path("runs/.state/baseline-pupil-scratch-0.pt").write_bytes(kept)
    _, card = load_checkpoint(TUTOR)
    save_checkpoint(TUTOR, {name: tensor * 0.9 for name, tensor in read_tensors(TUTOR).items()}, card)
    assert run(*student) == 0
    assert "starting over" in capsys.readouterr().err


# What goes wrong


@pytest.fixture
def fails(capsys, edit):
    """Train a teacher of these parameters, which must fail in one line holding all the given words."""

    def check(spec: dict[str, Any], *words: str) -> None:
        edit({"teachers": {"wrong": spec}})
        capsys.readouterr()
        assert run("train-teacher", "wrong") == 1
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("pipeline: "), errors
        assert sum(line.startswith("pipeline: ") for line in errors) == 1
        for word in words:
            assert word in errors[-1], errors[-1]

    return check


def test_code_that_is_not_there(project, fails):
    fails({"model": "nowhere:net"}, "no module 'nowhere'", "run in the project folder")


def test_code_that_raises(project, fails, capsys):
    Path("own.py").write_text("def net():\n    raise OSError(28, 'No space left on device')\n")
    fails({"model": "own:net"}, "own:net", "raises OSError", "--debug shows the traceback")


def test_code_that_raises_shows_its_traceback_for_debugging(project, edit):
    Path("own.py").write_text("def net():\n    return 1 / 0\n")
    edit({"teachers": {"wrong": {"model": "own:net"}}})
    with pytest.raises(Exception, match="ZeroDivisionError") as caught:
        run("train-teacher", "wrong", "--debug")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_code_that_returns_no_network(project, fails):
    Path("own.py").write_text("def net():\n    return 'a network'\n")
    fails({"model": "own:net"}, "returns a str; expected a torch.nn.Module")


def test_timm_that_is_not_installed(project, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    fails({"model": "timm:resnet18"}, f"pip install -e '{Path(__file__).parents[2]}[timm]'")


def test_inception_of_small_images(project, fails):
    fails(
        {"model": "inception_v3", "preprocessing": {"size": 64}}, "64 pixels", "at least 299", "75 without"
    )


def test_weights_of_a_mistyped_name(project, fails):
    fails({"model": "resnet50", "weights": "IMAGENET1K_V3"}, "IMAGENET1K_V3", "did you mean 'IMAGENET1K_V")


def test_a_mistyped_key_of_the_preprocessing(project, fails):
    spec = {"model": "resnet18", "preprocessing": {"men": [0.5]}}
    fails(spec, "unknown key teachers.wrong.preprocessing.men", "did you mean 'mean'")


def test_preprocessing_out_of_range(project, fails):
    spec = {"model": "resnet18", "preprocessing": {"mean": [123.7, 116.3, 103.5]}}
    fails(spec, "teachers.wrong.preprocessing: mean is (123.7, 116.3, 103.5)", "between 0 and 1")


@pytest.mark.parametrize("changed", [{"freeze": True}, {"fine_tune": True}, {"class_map": {"a": "b"}}])
def test_what_needs_weights_without_them(project, fails, changed):
    (name,) = changed
    fails({"model": "resnet18", **changed}, "teachers.wrong", f"{name} is ", "weights is not")


def test_a_class_map_that_is_not_there(project, fails):
    spec = {"model": "resnet8", "weights": str(TUTOR), "class_map": "nowhere.json"}
    fails(spec, "nowhere.json: no such file; expected a class map")


def test_a_class_map_of_other_classes(project, fails):
    spec = {"model": "resnet8", "weights": str(TUTOR), "class_map": {"0": 0, "1": 1, "two": 2, "3": 3}}
    fails(spec, "class_map has 'two', which is not a class of the data")


def test_a_pickle_with_code(project, fails):
    class Danger:
        def __reduce__(self):
            return Path.touch, (Path("executed"),)

    torch.save({"state_dict": {}, "args": Danger()}, "bad.pth")
    spec = {"model": "resnet8", "weights": "bad.pth", "preprocessing": preprocessing()}
    fails(spec, "bad.pth: not a checkpoint of tensors only")
    assert not Path("executed").exists()
