"""The claim that everything rests on: the student sees, byte for byte, what the teacher saw."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.models.shufflenetv2 import ShuffleNetV2

from pipeline.modalities.images.models.cifar import CifarResNet
from pipeline.modalities.images.spec import ViewSpec
from pipeline.models.checkpoint import load_checkpoint
from stages.paths import teacher_checkpoint
from tests.stages.conftest import VIEWS, run

Pixels = dict[tuple[int, int], Tensor]
TRAIN_SAMPLES = range(100)


class Recorder:
    """Everything that networks were given: the teacher in eval mode, the student while training."""

    def __init__(self) -> None:
        self.teacher: list[Tensor] = []
        self.student: list[Tensor] = []
        self.stop_after: int | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, CifarResNet) and not module.training:
            self._record(self.teacher, inputs[0])
        elif isinstance(module, ShuffleNetV2) and module.training:
            self._record(self.student, inputs[0])

    def _record(self, seen: list[Tensor], images: Tensor) -> None:
        if self.stop_after is not None and len(seen) >= self.stop_after:
            raise KeyboardInterrupt
        seen.append(images.detach().clone())


@pytest.fixture(autouse=True)
def _student_of_its_own_kind(project, edit) -> None:
    """Give the student another class than the teacher's, by which `Recorder` tells them apart."""
    edit({"students": {"pupil": {"model": "shufflenet_v2_x0_5"}}})


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    handle = register_module_forward_pre_hook(recorder)
    yield recorder
    handle.remove()


def pixels(images: Tensor) -> Tensor:
    """Undo the normalisation exactly: (B, 3, S, S) uint8."""
    preprocessing = load_checkpoint(teacher_checkpoint("tutor"))[1].preprocessing
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    values = (images * std + mean) * 255
    assert (values - values.round()).abs().max() < 1e-2
    return values.round().to(torch.uint8)


def number(image: Tensor) -> int:
    """Which sample a rendered image is, from its red and green at the centre."""
    red, green = (int(image[channel, 8, 8]) for channel in (0, 1))
    return (red - 100) // 8 + 16 * (green // 4)


def by_view_of_teacher(batches: list[Tensor]) -> Pixels:
    """(view, sample) -> pixels: the teacher meets a sample's views in order."""
    seen: dict[int, int] = {}
    result: Pixels = {}
    for batch in batches:
        for image in pixels(batch):
            sample = number(image)
            if sample in TRAIN_SAMPLES:
                view = seen.get(sample, -1) + 1
                seen[sample] = view
                result[view, sample] = image
    return result


def by_view_of_student(batches: list[Tensor], epochs: int) -> Pixels:
    steps = len(batches) // epochs
    return {
        (step // steps, number(image)): image
        for step, batch in enumerate(batches)
        for image in pixels(batch)
    }


def is_training_view(shard_pixels: Pixels, validation: set[int]) -> Pixels:
    return {key: image for key, image in shard_pixels.items() if key[1] not in validation}


def split_numbers() -> tuple[set[int], set[int]]:
    from pipeline.modalities.prepared import PreparedData

    data = PreparedData.open(Path("data/prepared"))
    numbers = [{int(n.split("/")[1]) for n in s.names} for s in (data.train, data.validation)]
    return numbers[0], numbers[1]


def assert_same(teacher: Pixels, student: Pixels, expected: int) -> None:
    assert len(student) == expected
    for key, image in student.items():
        assert torch.equal(image, teacher[key]), key


@pytest.fixture
def teacher_pixels(project, recorder) -> Pixels:
    assert run("cache-logits", "main", "--workers", 2) == 0
    _, validation = split_numbers()
    return is_training_view(by_view_of_teacher(recorder.teacher), validation)


def student_pixels(recorder: Recorder, batch_size: int, workers: int) -> Pixels:
    recorder.student.clear()
    status = run(
        *("train-student", "pupil", "kd", 0, "--dump", "main", "--workers", workers),
        *("--set", f"students.pupil.epochs={VIEWS}", "--set", f"students.pupil.batch_size={batch_size}"),
    )
    assert status == 0
    return by_view_of_student(recorder.student, VIEWS)


@pytest.mark.parametrize(("batch_size", "workers"), [(7, 2), (64, 1), (256, 2)])
def test_student_sees_what_teacher_saw(teacher_pixels, recorder, batch_size, workers):
    train, _ = split_numbers()
    assert len(teacher_pixels) == VIEWS * len(train)
    student = student_pixels(recorder, batch_size, workers)
    used = min(batch_size, len(train))
    assert_same(teacher_pixels, student, VIEWS * (len(train) // used * used))


def test_views_differ_from_each_other(teacher_pixels):
    train, _ = split_numbers()
    changed = [not torch.equal(teacher_pixels[0, n], teacher_pixels[1, n]) for n in train]
    assert sum(changed) == len(train)


def test_same_pixels_after_an_interrupted_dump(project, recorder, teacher_pixels):
    import shutil

    shutil.rmtree("data/logits")
    recorder.teacher.clear()
    recorder.stop_after = 9
    assert run("cache-logits", "main") == 130
    recorder.stop_after = None
    assert run("cache-logits", "main") == 0
    student = student_pixels(recorder, 64, 1)
    train, _ = split_numbers()
    assert_same(teacher_pixels, student, VIEWS * (len(train) // 64 * 64))


def test_same_pixels_after_an_interrupted_student(teacher_pixels, recorder):
    train, _ = split_numbers()
    steps = len(train) // 16
    recorder.stop_after = steps + 2
    arguments = ("train-student", "pupil", "kd", 0, "--dump", "main")
    assert run(*arguments, "--set", f"students.pupil.epochs={VIEWS}") == 130
    first = recorder.student[:steps]
    recorder.student.clear()
    recorder.stop_after = None
    assert run(*arguments, "--set", f"students.pupil.epochs={VIEWS}") == 0
    assert len(recorder.student) == (VIEWS - 1) * steps
    student = by_view_of_student(first + recorder.student, VIEWS)
    assert_same(teacher_pixels, student, VIEWS * steps * 16)


EVERYTHING = {
    "mixed": {
        "random_resized_crop": {"scale": [0.3, 1.0]},
        "rand_augment": {"num_ops": 2, "magnitude": 12},
        "random_erasing": {"probability": 0.5},
        "mixup": {"alpha": 0.8, "probability": 0.5},
        "cutmix": {"probability": 0.5},
    },
    "trivial": {"pad_crop": {"padding": 3}, "flip": "alternating", "trivial_augment": {}},
    "one by one": {
        "random_affine": {"degrees": 20, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": [5, 5]},
        "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        **{name: {} for name in ("grayscale", "posterize", "solarize", "sharpness")},
        **{name: {} for name in ("autocontrast", "equalize")},
    },
}


def test_every_operation_is_among_them():
    tried = {name for views in EVERYTHING.values() for name in views}
    assert tried == {field.name for field in fields(ViewSpec)} - {"seed", "own"}


def images_of(batches: list[Tensor]) -> list[bytes]:
    return [image.numpy().tobytes() for batch in batches for image in batch]


@pytest.mark.parametrize("views", EVERYTHING.values(), ids=EVERYTHING)
def test_any_augmentation_takes_a_line_of_params_alone(project, recorder, views):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["dumps"]["main"]["views"] = {"count": VIEWS, "seed": 5, **views}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert run("cache-logits", "main", "--workers", 2) == 0
    shown = set(images_of(recorder.teacher))
    rendered_elsewhere = ("--render", "device", "--set", "students.pupil.batch_size=20")
    assert run("train-student", "pupil", "kd", 0, "--dump", "main", *rendered_elsewhere) == 0
    seen = images_of(recorder.student)
    train, _ = split_numbers()
    assert len(seen) == 2 * (len(train) // 20 * 20)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= shown


def test_the_report_shows_what_mixed_pictures_are_of(project):
    views = ("--set", "dumps.main.views.cutmix={probability: 1.0}")
    assert run("cache-logits", "main", *views) == 0
    assert run("train-student", "pupil", "kd", 0, "--dump", "main", *views) == 0
    assert run("report", *views, "--set", "sweep.baselines=[]") == 0
    page = Path("reports/index.html").read_text()
    assert len(re.findall(r"\d+ % \w+, \d+ % \w+", page)) > 3
