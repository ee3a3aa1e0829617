"""Parameters that fit a folder: whatever its size, they load, agree, and ask for no more than it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from pipeline.modalities.families import Installed
from stages.fit import Survey, find_teacher, fit, schedule
from stages.params import Params
from stages.params_file import load_params
from stages.render import quoted_yaml, render

SMALL = Installed(model="resnet18", weights="IMAGENET1K_V1", top1=0.698, forward_flops=3.6e9)
LARGE = Installed(model="resnet152", weights="IMAGENET1K_V2", top1=0.823, forward_flops=23e9)


def survey(train: int, *, classes: int = 4, size: tuple[int, int] = (375, 500), **changed) -> Survey:
    values = {"validation": None, "test": train // 4, "sizes": np.array([size] * 9), **changed}
    return Survey(source="folder:photos", watch="photos", classes=classes, train=train, **values)


@pytest.fixture
def fitted(tmp_path):
    """Return a function from a survey, installed weights and a device to parameters that were read back."""

    def run(found: Survey, installed=(), device: str = "cpu") -> Params:
        path = tmp_path / "params.yaml"
        path.write_text(render("params.yaml.j2", **fit(found, installed, device)))
        assert max(map(len, path.read_text().splitlines())) <= 120
        return load_params(path)

    return run


@pytest.mark.parametrize("installed", [(), (SMALL, LARGE)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [3, 48, 399, 900, 5_000, 20_000, 100_000, 1_281_167])
def test_parameters_load_and_agree(fitted, count, device, installed):
    params = fitted(survey(count), installed, device)
    dump, training = params.dump("main"), params.student("student").training
    assert training.epochs % dump.views.count == 0
    assert training.warmup_epochs < training.epochs
    assert dump.codec == "auto"
    assert params.data.options.image_size <= 224
    assert dump.views.spec == params.training.views


@pytest.mark.parametrize(
    ("task", "losses"), [("multilabel", ("bce", "binary_kd")), ("scores", ("squared_error", "l2"))]
)
def test_tags_and_numbers_get_their_task_their_budget_and_their_losses(fitted, task, losses):
    params = fitted(survey(300, task=task))
    assert params.data.task == task
    baseline, taught = params.sweep.baselines[0], params.sweep.recipes[0]
    assert (params.recipe(baseline).loss, params.recipe(taught).loss) == losses
    assert params.dump("main").max_error == 0.001


def test_few_photographs_get_small_networks_and_many_passes(fitted):
    params = fitted(survey(48))
    assert params.data.validation == 0
    assert (params.data.options.image_size, params.data.options.short_side) == (64, 128)
    assert (params.student("student").model, params.teacher("teacher").model) == (
        "shufflenet_v2_x0_5",
        "resnet18",
    )
    assert (params.training.epochs, params.training.batch_size) == (64, 16)
    assert params.dump("main").allow_poor_teacher


def test_many_photographs_stay_encoded_and_get_large_batches(fitted):
    params = fitted(survey(100_000))
    assert params.data.options.keep == "encoded"
    assert (params.data.options.image_size, params.data.options.short_side) == (224, 256)
    assert params.training.batch_size == 256
    assert not params.dump("main").allow_poor_teacher
    assert fitted(survey(100_000, size=(32, 32))).data.options.keep == "pixels"


@pytest.mark.parametrize("side", [9, 28, 32, 40, 64, 100, 4000])
def test_the_input_is_no_larger_than_the_photographs(fitted, side):
    params = fitted(survey(5_000, size=(side, side)))
    assert params.data.options.image_size <= side
    stem = params.student("student").stem_stride
    assert stem == (1 if side < 48 else 2)
    shifts = params.training.views.pad_crop is not None
    assert shifts == (params.data.options.image_size == side)


def test_sizes_that_no_header_tells_are_taken_for_large(fitted):
    params = fitted(survey(48, sizes=np.empty((0, 2), np.int64)))
    assert params.data.options.image_size == 64


def test_a_split_of_its_own_chooses_the_epoch(fitted):
    assert fitted(survey(5_000, validation=100)).data.validation == 0.1


def test_the_teacher_is_the_best_that_the_device_can_run(fitted):
    assert find_teacher([SMALL, LARGE], "cpu") == SMALL
    assert find_teacher([SMALL, LARGE], "cuda") == LARGE
    assert find_teacher([LARGE], "cpu") is None
    few, many = fitted(survey(48), [SMALL]), fitted(survey(20_000), [SMALL])
    for params in (few, many):
        teacher = params.teacher("teacher")
        assert (teacher.model, teacher.weights, teacher.fine_tune) == ("resnet18", "IMAGENET1K_V1", True)
    assert few.teacher("teacher").training.freeze
    assert not many.teacher("teacher").training.freeze
    assert few.data.options.image_size == 128


@pytest.mark.parametrize("count", [48, 5_000])
def test_the_advice_for_a_fresh_teacher_is_that_for_found_weights(tmp_path, fitted, count):
    found = survey(count)
    text = render("params.yaml.j2", **fit(found, (), "cpu"))
    advice = text.partition("# set data.image_size")[2].partition("    model: ")[0]
    sizes, *lines = advice.splitlines()
    installed = Installed(model="resnet50", weights="IMAGENET1K_V2", top1=0.8, forward_flops=8e9)
    expected = fitted(found, [installed])
    options = expected.data.options
    assert sizes == f": {options.image_size} and data.short_side: {options.short_side}:"
    teacher = yaml.safe_load("\n".join(line.strip().removeprefix("# ") for line in lines))
    written = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert teacher == written["teachers"]["teacher"]


def test_more_photographs_take_fewer_passes_in_larger_batches():
    plans = [schedule(count) for count in (100, 800, 5_000, 20_000)]
    assert [plan.epochs for plan in plans] == sorted((plan.epochs for plan in plans), reverse=True)
    assert [plan.batch_size for plan in plans] == sorted(plan.batch_size for plan in plans)


@pytest.mark.parametrize(
    "text", ["a: b", "#x", '"', "\\", " é ", "日本", "\U0001f600", "- x", "~", "no", "${x}"]
)
def test_any_path_is_quoted(text):
    assert yaml.safe_load(quoted_yaml(text)) == text


def test_images_that_are_no_files_are_packed():
    found = survey(10**7)
    assert fit(found, [], "cpu")["keep"] == "encoded"
    assert fit(replace(found, can_stay=False), [], "cpu")["keep"] == "pixels"
