"""The benchmarks keep up with the library: all scripts import, and the newest ones run at a small size."""

from __future__ import annotations

import importlib
import json
import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation.context import RunContext
from pipeline.losses import LOSSES, make_loss
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.samples import Sample
from pipeline.tasks.table import find_task
from pipeline.training.settings import TrainingSettings
from stages.params_file import load_params
from tests.benchmarks import (
    converged,
    early_guidance,
    hidden_labels,
    loading,
    loss_defaults,
    loss_table,
    project,
    resources,
    students_cost,
    tutorial,
    tutorial_nets,
    unlabelled_class,
    v2_loaders,
)
from tests.benchmarks.contest import Record
from tests.benchmarks.loading_job import Job, ours
from tests.benchmarks.resources import Memory
from tests.benchmarks.teacher_times import TEACHERS, Costs
from tests.benchmarks.turns import Contender, LoaderError, OpenLoader, Turn
from tests.benchmarks.whole_job import whole_costs

SCRIPTS = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))
CPU = torch.device("cpu")
OURS = Contender(name="ours", open=ours)
RECIPE = Contender(name="DataLoader + v2", open=v2_loaders.data_loader)


def missing(job: Job) -> object:
    """A loader with a missing package."""
    return importlib.import_module("no_such_loader")


@pytest.fixture(scope="module")
def colours(tmp_path_factory, prepare_quietly: Callable[..., Path]) -> Path:
    """Prepared data: ten colour images of 12 x 12 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3)).astype(np.uint8)
    samples = [Sample(f"train/{n}", n % 2, lambda image=image: image) for n, image in enumerate(pixels)]
    source = ImageSource(classes=("a", "b"), channels=3, train=samples, test=[])
    return prepare_quietly(source, tmp_path_factory.mktemp("colours") / "prepared", validation=0.0)


@pytest.fixture
def make_job(colours: Path) -> Callable[..., Job]:
    """Return a function that makes a job of 25 images per epoch, in batches of 4."""

    def make(padding: int | None = 2, size: int = 12) -> Job:
        rest = {"batch_size": 4, "device": CPU, "workers": 0}
        return Job(folder=colours, count=25, size=size, padding=padding, **rest)

    return make


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_imported(name):
    assert importlib.import_module(f"tests.benchmarks.{name}").__doc__


def test_a_job_has_its_number_of_images_each_with_a_key_of_its_own(make_job):
    images = make_job().images
    assert len(images) == len(set(images.keys.tolist())) == 25
    assert np.array_equal(images.array(3), images.array(23))


@pytest.mark.parametrize("padding", [2, None])
@pytest.mark.parametrize(
    "open_loader",
    [
        lambda job: ours(job, workers=2),
        lambda job: ours(job, workers=1, on_device=True),
        *(v2_loaders.data_loader, v2_loaders.tuned_data_loader, v2_loaders.timm),
    ],
    ids=["ours", "ours, resident", "recipe", "tuned", "timm"],
)
def test_loaders_do_the_same_job(make_job, open_loader, padding):
    job = make_job(padding, size=12 if padding else 8)
    batches = list(open_loader(job)(0))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, job.size, job.size)] * 6
    images, labels = map(torch.cat, zip(*batches, strict=True))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    # All pixels are noise of one distribution; a shift adds black, which is below the noise.
    lowest, highest = images.amin().item(), images.amax().item()
    mean, std = (np.array(moments) for moments in job.moments)
    assert lowest >= (-mean / std).min() - 1e-5
    assert highest <= ((1 - mean) / std).max() + 1e-5
    assert -0.7 < images.mean() < 0.2
    assert 0.4 < images.std() < 1.2


def test_a_turn_is_whole_epochs_with_what_they_are_of(make_job):
    loader = OpenLoader(RECIPE, make_job())
    with pytest.raises(LoaderError, match="requested before opening"):
        loader.turn(0.0)
    loader.open()
    turn = loader.turn(0.0)
    assert turn.images == 24
    assert 0 < turn.first_batch_seconds < turn.seconds
    assert (turn.mean, turn.std) != (0, 0)
    longer = loader.turn(3 * turn.seconds)
    assert longer.images % 24 == 0
    assert longer.seconds >= 3 * turn.seconds


def test_batches_of_another_kind_are_refused(make_job):
    half = Contender(name="half", open=v2_loaders.data_loader, precision=torch.float16)
    loader = OpenLoader(half, make_job())
    loader.open()
    with pytest.raises(LoaderError, match=r"batches are .*float32.*expected .*float16"):
        loader.turn(0.0)


def test_loaders_take_turns_in_processes_of_their_own(make_job):
    contenders = [OURS, Contender(name="missing", open=missing)]
    result = loading.measure(replace(make_job(), workers=1), contenders, rounds=2, turn_seconds=0.0)
    assert result["left_out"] == {"missing": "ModuleNotFoundError: No module named 'no_such_loader'"}
    row = result["loaders"]["ours"]
    assert row["ours_over_it"] == {"of_medians": 1.0, "of_fastest": 1.0}
    assert row["images_a_second"]["min"] > 0
    assert row["set_up_seconds"] >= 0
    assert "| ours |" in loading.table(result["loaders"])


def test_figures_are_of_all_rounds():
    """Three turns of 10, 20 and 40 images per second, against 30, 60 and 30 of ours."""
    turns = [
        Turn(images=n, seconds=1.0, first_batch_seconds=n / 100, cpu_seconds=2.0) for n in (10, 20, 40)
    ]
    record = Record(set_up_seconds=1.5, first=turns[2], memory=Memory(own=3_000_000, rss=5_000_000))
    record.turns = turns
    found = loading.figures(record, [10.0, 20.0, 40.0], [30.0, 60.0, 30.0])
    assert found["images_a_second"] == {"median": 20, "min": 10, "max": 40}
    assert found["ours_over_it"] == {"of_medians": 1.5, "of_fastest": 1.5}
    assert found["first_batch_milliseconds"] == {"first_epoch": 400.0, "later_epochs": 200.0}
    assert found["cpu_microseconds_an_image"] == 1e5
    assert found["memory_megabytes"] == {"own": 3, "rss": 5, "pinned": 0, "device": 0}


def test_own_memory_is_what_nobody_else_has(tmp_path):
    """Pages of a mapped file belong to the page cache, pages of an array to its process."""
    np.ones(20 << 20, np.uint8).tofile(tmp_path / "file")
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    before = resources.memory_of(os.getpid())
    assert mapped[::1024].sum() == 20 << 10
    after = resources.memory_of(os.getpid())
    assert (after - before).own < 2 << 20
    assert (after - before).rss > 18 << 20
    with resources.Peak.watch(os.getpid()) as peak:
        # mmap gives new pages; an ordinary array may reuse freed pages of this process.
        block = np.frombuffer(
            mmap.mmap(-1, 20 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8
        )
        block[::1024] = 1
    assert block[0] == 1
    assert (peak.memory - before).own > 18 << 20


def test_a_whole_job_costs_what_its_parts_cost():
    """Seconds per image: teacher 10, student 1 forward and 3 per step; two views, six epochs."""
    parts = Costs(
        teacher="t",
        teacher_forward=10.0,
        student_forward=1.0,
        student_step=3.0,
        teacher_flops=1,
        student_flops=1,
    )
    assert parts.cached_over_online() == 3 / 13
    seconds = {"dump": [20.0], "cached": [18.0] * 3, "online": [78.0] * 3}
    found = whole_costs(seconds, parts, epochs=6, views=2)
    assert list(found) == ["1", "3"]
    for students, row in found.items():
        assert row["cached_over_online"] == pytest.approx(row["bound"])
        assert row["bound"] == pytest.approx((20 + int(students) * 18) / (int(students) * 78))


def test_students_cost_runs(colours, tmp_path):
    context = RunContext(data=PreparedData.open(colours), task=find_task(), device=CPU, workers=1)
    settings = TrainingSettings(epochs=1, batch_size=4, learning_rate=0.05)
    teachers = tuple(TEACHERS)[:2]
    rig, parts = students_cost.make_rig(context, "mobilenet", settings, tmp_path, teachers)
    assert rig.teacher.name == parts.teacher
    assert parts.teacher in teachers
    assert parts.teacher_flops > parts.student_flops > 1e5
    assert 0 < parts.cached_over_online() < 1
    result = students_cost.measure(rig, parts, rounds=1, students=1, epochs=1, views=1)
    assert set(result["loader_over_one_batch"]) == {"staged", "resident"}
    assert result["whole_job"]["by_students"]["1"]["bound"] == pytest.approx(1.0)
    assert "÷ online, students: 1 |" in students_cost.table(result)


def test_hidden_labels_go_on_where_they_were(tmp_path, monkeypatch):
    """The third of twelve runs fails; the next call makes the remaining ten."""
    made: list[dict[str, object]] = []

    def measured(project: Path, run: dict[str, object]) -> dict[str, object]:
        if len(made) == 2 and not failed:
            failed.append(True)
            raise RuntimeError("stopped")
        made.append(run)
        return {**run, "top1": 0.5 + 0.1 * (run["recipe"] == "kd") + 0.02 * int(str(run["seed"]))}

    failed: list[bool] = []
    monkeypatch.setattr(hidden_labels, "set_up", lambda project, params: None)
    monkeypatch.setattr(hidden_labels, "measured", measured)
    runs, out = hidden_labels.planned([10, 100], ["small"], 3), tmp_path / "found.json"
    with pytest.raises(RuntimeError, match="stopped"):
        hidden_labels.measure(runs, tmp_path, out)
    assert len(json.loads(out.read_text())["runs"]) == 2
    found = hidden_labels.measure(runs, tmp_path, out)
    assert made == runs
    assert [{key: run[key] for key in hidden_labels.KEYS} for run in found] == runs
    table = hidden_labels.table(found)
    assert "| 10 | small | 52.00 ± 1.15 | 62.00 ± 1.15 | +10.00 ± 0.00 |" in table
    assert table.count("| small |") == 2


def test_the_table_of_losses_has_means_and_paired_differences():
    top1 = {"scratch": (0.80, 0.82), "kd": (0.83, 0.84)}
    runs = [
        {"recipe": recipe, "student": "small", "seed": seed, "best": value, "last": value - 0.01}
        for recipe, values in top1.items()
        for seed, value in enumerate(values)
    ]
    lines = loss_table.table(runs[::-1]).splitlines()
    assert lines[2] == "| `kd` | 83.50 ± 0.50 | +2.50 ± 0.50 | 82.50 ± 0.50 |"
    assert lines[3] == "| `scratch` | 81.00 ± 1.00 |  | 80.00 ± 1.00 |"


def test_the_table_of_losses_has_all_of_a_softmax():
    params = load_params(loss_table.PARAMS)
    served = {name for name, loss in LOSSES.items() if "softmax" in loss.links}
    assert {params.recipes[name].loss for name in params.recipes} == served
    assert {run["recipe"] for run in loss_table.wanted(params)} == served


def test_a_file_of_runs_is_resumed(tmp_path):
    wanted, made = [{"recipe": recipe, "seed": 0} for recipe in ("scratch", "kd")], []

    def make(run):
        made.append(run)
        if run["recipe"] == "kd" and len(made) == 2:
            raise RuntimeError("stopped")
        return {"top1": 0.5}

    with pytest.raises(RuntimeError, match="stopped"):
        project.resume(tmp_path / "runs.json", wanted, make)
    found = project.resume(tmp_path / "runs.json", wanted, make)
    assert made == [*wanted, wanted[1]]
    assert found == [{**run, "top1": 0.5, "minutes": 0} for run in wanted]


def test_epochs_to_a_target_count_from_the_best_of_scratch():
    rising = {"scratch": [0.5, 0.7, 0.8], "guided": [0.75, 0.8, 0.8], "kd": [0.1, 0.2, 0.3]}
    runs = [
        {"student": "small", "recipe": recipe, "seed": seed, "top1": top1[-1], "validation_top1": top1}
        for recipe, top1 in rising.items()
        for seed in (1, 0)
    ]
    cells = [line.split(" | ")[1:3] for line in early_guidance.table(runs).splitlines()[2:]]
    assert cells == [["`scratch`", "3.0 ± 0.0"], ["`guided`", "2.0 ± 0.0"], ["`kd`", "4.0 ± 0.0"]]


def test_the_class_without_labels_has_labels_in_the_test_images_alone():
    found = unlabelled_class.images()
    hidden = found.classes.index(unlabelled_class.HIDDEN)
    for split, share in ((found.train, 0), (found.test, 0.1)):
        assert sum(sample.label == hidden for sample in split) == share * len(split)
    assert sum(sample.label == -1 for sample in found.train) == 0.1 * len(found.train)


@pytest.mark.parametrize(
    ("make", "millions"), [(tutorial_nets.teacher, 1.19), (tutorial_nets.student, 0.27)]
)
def test_the_tutorials_networks_have_the_sizes_of_its_text(make, millions):
    network = make(num_classes=10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_tutorials_table_pairs_seeds_and_names_what_was_published():
    top1 = {"teacher": (0.76,), "scratch": (0.70, 0.72), "tutorial": (0.71, 0.73), "kd": (0.72, 0.76)}
    runs = [
        {"images": images, "recipe": recipe, "seed": seed, "top1": value}
        for images in ("plain", "views")
        for recipe, values in top1.items()
        for seed, value in enumerate(values)
    ]
    lines = tutorial.table(runs).splitlines()
    assert lines[2] == "| teacher | 75.60 | 76.00 | 76.00 |"
    gain = "72.00 ± 1.00 (+1.00 ± 0.00)"
    assert lines[4] == f"| student, the tutorial's soft labels | 70.19 | {gain} | {gain} |"


def test_settings_of_a_loss_are_ranked_by_their_worst_cell():
    top1 = {("scratch", 0): (0.5, 0.5), ("nkd", 1): (0.4, 0.9), ("nkd", 2): (0.52, 0.53)}
    runs = [
        {
            "loss": loss,
            "settings": {"gamma": gamma} if gamma else {},
            "student": student,
            "seed": 100,
            "validation_top1": value,
        }
        for (loss, gamma), values in top1.items()
        for student, value in zip(("a", "b"), values, strict=True)
    ]
    first, second = loss_defaults.ranking({"data": runs}).splitlines()[2:]
    assert first == '| `nkd` | `{"gamma": 2}` | +2.00 | +2.50 | data a +2.00, data b +3.00 |'
    assert '"gamma": 1' in second


def test_every_candidate_of_a_default_is_a_setting_of_its_loss():
    for loss, candidates in loss_defaults.CANDIDATES.items():
        for settings in candidates:
            assert make_loss(loss, settings).over(4).epochs <= 4


def test_differences_of_converged_students_are_paired_with_a_t_interval():
    top1 = {"scratch": (0.80, 0.82, 0.84), "label_smoothing": (0.7, 0.7, 0.7), "kd": (0.81, 0.84, 0.87)}
    runs = [
        {"student": "resnet8", "recipe": recipe, "epochs": converged.EPOCHS, "seed": seed, "top1": value}
        for recipe, values in top1.items()
        for seed, value in enumerate(values)
    ]
    lines = converged.table(runs[::-1]).splitlines()
    assert lines[4] == "| resnet8 | `kd` | 84.00 ± 1.73 | +2.00 ± 0.58 | -0.48 to +4.48 |"
    (line,) = converged.curve(runs).splitlines()[2:]
    assert line == "| 60 | 82.00 ± 1.15 | 84.00 ± 1.73 | +2.00 ± 0.58 |"


def test_every_run_of_converged_students_is_named_once():
    runs = [*converged.table_runs(5), *converged.curve_runs()]
    params = load_params(converged.PARAMS)
    assert {run["student"] for run in runs} == set(params.students)
    assert {run["recipe"] for run in runs} == set(params.recipes)
    assert len(list(converged.table_runs(5))) == 5 * (3 * 3 + 2)
