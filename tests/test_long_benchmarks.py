"""The benchmarks of hours, end to end at a small size: every unit, the budget, another machine."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.benchmarks import airbench_net, pairs, parity_full, project, speedrun
from tests.benchmarks.datasets import patterned
from tests.benchmarks.small_students import figure
from tests.stages.conftest import run

pytestmark = pytest.mark.usefixtures("preloaded")

SMALL = (
    *("--set", "training.batch_size=20", "--set", "training.learning_rate=0.05"),
    *("--set", "teachers.trained.batch_size=20", "--set", "teachers.trained.learning_rate=0.05"),
    *("--set", "teachers.trained.epochs=3", "--set", "teachers.trained.warmup_epochs=1"),
    *("--set", "dumps.main.allow_poor_teacher=true"),
)
RESNET8 = (
    *("--set", "teachers.trained.model=resnet8", "--set", "teachers.teacher.model=resnet8"),
    *("--set", "students.student.model=resnet8"),
)


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Path:
    """Sixty images like those of CIFAR-10; commands run in this process."""
    arrays = {}
    for name, count in (("train", 60), ("test", 20)):
        split = patterned(count, 32, classes=10, name=name)
        arrays |= {f"{name}_images": split.values.reshape(count, 32, 32, 3), f"{name}_labels": split.labels}
    np.savez(tmp_path / "cifar.npz", **arrays)

    def call(folder: Path, *arguments: str) -> None:
        with monkeypatch.context() as inside, redirect_stdout(sys.stderr):
            inside.chdir(folder)
            assert run(*arguments) == 0

    monkeypatch.setattr(project, "pipeline", call)
    return tmp_path / "cifar.npz"


@pytest.fixture
def call(cifar, tmp_path, capsys) -> Callable[..., list[str]]:
    """Return a function that runs a benchmark on the small images, and returns the lines that it prints."""

    def made(main: Callable[[list[str]], None], folder: str, *arguments: str) -> list[str]:
        capsys.readouterr()
        main([str(cifar), str(tmp_path / folder), "--device", "cpu", *SMALL, *arguments])
        return capsys.readouterr().out.splitlines()

    return made


def runs_of(out: Path) -> list[dict]:
    """Return the runs of a results file."""
    return json.loads(out.read_text())["runs"]


def top1_of(runs: list[dict]) -> dict[tuple[str, int], float | None]:
    """Return the top-1 of each arm and seed."""
    return {(one["arm"], one["seed"]): one.get("top1") for one in runs}


def test_a_pair_has_a_teacher_a_dump_and_a_student_of_every_loss(call, tmp_path):
    out = tmp_path / "pairs.json"
    small = (*RESNET8, "--epochs", "2", "--set", "dumps.main.views.count=2", "--out", str(out))
    lines = call(pairs.main, "pairs", *small)
    assert sum(line.startswith("| ") for line in lines) == 2 + len(pairs.RECIPES)
    assert lines[2].startswith("| teacher | 93.86 | ")
    teacher, dump, *students = runs_of(out)
    assert [one["recipe"] for one in students] == list(pairs.RECIPES)
    assert 2 * teacher["parameters"] < teacher["checkpoint_bytes"] < 3 * teacher["parameters"]
    assert dump["views"] == 2
    assert call(pairs.main, "pairs", *small, "--seeds", "2", "--minutes", "0") == lines
    with pytest.raises(SystemExit, match=r"epochs=2.*expected training.epochs=3 .*name another folder"):
        call(pairs.main, "pairs", *RESNET8, "--epochs", "3", "--out", str(out))


def test_parity_is_resumed_on_another_machine_with_equal_students(call, tmp_path):
    """The second machine has the results and the teacher's checkpoint alone."""
    out = tmp_path / "parity.json"
    small = (*RESNET8, "--pairs", "2", "--seeds", "1", "--epochs", "5", "--out", str(out))
    lines = call(parity_full.main, "first", *small)
    assert [line.split(" | ")[0][2:] for line in lines[2:8]] == list(parity_full.ARMS)
    assert "Standard errors of the difference in points, cached: ± " in lines[9]
    whole = json.loads(out.read_text())
    lost = ("cached V=1", "mistake", parity_full.ONLINE)
    kept = [one for one in whole["runs"] if one["arm"] not in lost]
    out.write_text(json.dumps({**whole, "runs": kept}))
    shutil.rmtree(tmp_path / "first")
    assert call(parity_full.main, "second", *small) == lines
    assert top1_of(runs_of(out)) == top1_of(whole["runs"])
    assert not (tmp_path / "second" / "runs" / "teacher-trained").exists()


def test_a_speedrun_compares_equal_lengths_and_equal_seconds(call, tmp_path):
    out = tmp_path / "speedrun.json"
    net = 'model: "tests.benchmarks.airbench_net:student", warmup_epochs: 0'
    students = f"students={{short: {{{net}, epochs: 1}}, long: {{{net}, epochs: 3}}}}"
    small = ("--set", students, "--set", "dumps.main.views.count=3", "--out", str(out))
    lines = call(speedrun.main, "speedrun", *small, "--seeds", "1", "--target", "0")
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 1", "| 3"]
    assert lines[5].startswith("Time to 0 %: labels ")
    assert lines[6].startswith("Teacher: ")
    assert lines[7].startswith("Dump of 3 views: ")
    trained = [one for one in runs_of(out) if "epochs" in one]
    assert [(one["epochs"], one["recipe"]) for one in trained] == [
        *((1, "labels"), (1, "cached")),
        *((3, "labels"), (3, "cached")),
    ]


def test_a_speedrun_interpolates_between_lengths():
    runs = [
        {"recipe": recipe, "student": "s", "seed": 0, "epochs": epochs, "top1": top1, "training_seconds": s}
        for recipe, points in {
            "labels": [(8, 2.0, 0.92), (16, 4.0, 0.94)],
            "cached": [(8, 3.0, 0.935), (16, 5.0, 0.945)],
        }.items()
        for epochs, s, top1 in points
    ]
    lines = speedrun.table(runs, 94).splitlines()
    assert lines[2] == "| 8 | 2.00 | 92.00 | 3.00 | 93.50 | +1.50 | +0.50 |"
    assert lines[3] == "| 16 | 4.00 | 94.00 | 5.00 | 94.50 | +0.50 | +0.50 |"
    assert lines[5] == "Time to 94 %: labels 4.00 s; cached 4.00 s."
    assert "cached not reached" in speedrun.table(runs, 96)


def test_a_budget_starts_no_run_that_would_not_finish(tmp_path):
    """Ten minutes: two runs of 240 s fit, a third does not, nor does any kind behind it."""
    now = [0.0]
    kinds = [("long", 0), ("long", 1), ("long", 2), ("new", 0)]
    wanted = [{"arm": arm, "seed": seed} for arm, seed in kinds]

    def make(one: dict) -> dict:
        now[0] += 240.0
        return {"top1": 0.5}

    def resumed(runs: list[dict], minutes: float) -> list[dict]:
        budget = project.Budget(kind="arm", minutes=minutes, unit_minutes=4, clock=lambda: now[0])
        return project.resume(tmp_path / "runs.json", runs, make, budget)

    found = [{key: value for key, value in one.items() if key != "minutes"} for one in resumed(wanted, 10)]
    assert found == [{**one, "top1": 0.5, "seconds": 240.0} for one in wanted[:2]]
    assert resumed(wanted[3:], 3.9) == []  # no run of its kind is finished: `unit_minutes`
    assert [one["arm"] for one in resumed(wanted[3:], 4)] == ["new"]


def test_one_seed_has_no_error():
    assert figure(92.984, 0.117) == "92.98 ± 0.12"
    assert figure(0.6, math.nan, signed=True) == "+0.60"


def test_the_first_layer_whitens_patches_and_stays():
    images = F.avg_pool2d(torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 3, 1, 1)
    network = airbench_net.student(10).train()
    network(5 * images)
    layer = network.body[0]
    patches = F.conv2d(5 * images, layer.weight[:12]).transpose(0, 1).flatten(1)
    assert torch.allclose(patches.cov(), torch.eye(12), atol=0.02)
    assert torch.equal(layer.weight[12:], -layer.weight[:12])
    other = airbench_net.student(10).train()
    other.load_state_dict(network.state_dict())
    other(images)
    assert torch.equal(other.body[0].weight, layer.weight)


def test_biases_of_norms_learn_64_times_as_fast():
    norm = airbench_net.Norm(4)
    norm(torch.randn(8, 4, 5, 5)).sum().backward()
    step = norm.bias.grad / (8 * 5 * 5)  # of a plain bias: 1
    assert torch.allclose(airbench_net._BIAS_SCALE * step, torch.full((4,), 64.0))


def test_convolutions_begin_as_partial_identities():
    images = torch.randn(2, 24, 8, 8)
    group = airbench_net._group(24, 32)
    assert torch.allclose(group[0](images)[:, :24], images, atol=1e-6)
