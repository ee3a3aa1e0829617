"""Choose the parameters for a folder of photographs, and render the text of `params.yaml`.

Owns each choice and its reason. `init.py` reads the folder and writes files; `params.py` and
`data_params.py` define the keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.modalities.families import Installed
from pipeline.models.architecture import source_of
from stages.render import quoted_yaml

# Sides of a model's input, in pixels: multiples of 16, which suit networks with five halvings.
_SIDES = (224, 192, 160, 128, 96, 64, 48, 32)
_LARGEST_SIDE, _SMALLEST_SIDE = _SIDES[0], 8
# Above this size pixels are not packed, and the files stay encoded.
_MOST_PACKED_BYTES = 16 << 30
_FEW, _SOME, _MANY = 1_000, 10_000, 50_000
# Limit for one forward pass at 224 pixels: ResNet-50 fits on a CPU, all common networks on a GPU.
_MOST_FLOPS = {"cpu": 9e9, "cuda": 4e10}
# Weights to download, where a machine has none: 97 MB, good on any photographs.
_ADVISED = Installed(model="resnet50", weights="IMAGENET1K_V2", top1=0.809, forward_flops=8.2e9)
# Below this, a fifth of the images would choose an epoch by chance, and training needs them more.
_CHOOSING = 250
# Below this, accuracy on held-out images has a standard error of 4 points or more.
_TELLING = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The part of a project that its task decides.

    Args:
        noun: the outputs in words.
        budget: key of a dump's error budget.
        baseline, recipe: name of a recipe of labels alone, and of one with a teacher.
        recipes: both, name -> settings as YAML.
    """

    noun: str
    budget: str
    baseline: str
    recipe: str
    recipes: Mapping[str, str]


_JOBS: Mapping[str, Job] = {
    "classes": Job(
        noun="classes",
        budget="max_kl",
        baseline="scratch",
        recipe="kd",
        recipes={
            "scratch": "{loss: scratch}",
            "kd": "{loss: kd, temperature: 4, ce_weight: 0.1, kd_weight: 0.9}",
        },
    ),
    "multilabel": Job(
        noun="tags",
        budget="max_error",
        baseline="bce",
        recipe="kd",
        recipes={
            "bce": "{loss: bce}",
            "kd": "{loss: binary_kd, temperature: 1, ce_weight: 0.1, kd_weight: 0.9}",
        },
    ),
    "scores": Job(
        noun="numbers",
        budget="max_error",
        baseline="squared_error",
        recipe="l2",
        recipes={
            "squared_error": "{loss: squared_error}",
            "l2": "{loss: l2, label_weight: 0.1, kd_weight: 0.9}",
        },
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Counts and sizes of photographs.

    Args:
        source: value of `data.source`.
        options: further keys of `data` that tell how to read it.
        watch: file or folder that DVC watches.
        classes: C, the number of classes.
        train, validation, test: images per split; validation is None if it is drawn from train.
        sizes: (n, 2) height and width in pixels of some images, evenly spread; n may be 0.
        task: that of the labels: classes, multilabel or scores.
        can_stay: whether the images are files, or in files, that can stay encoded.
    """

    source: str
    watch: str
    classes: int
    train: int
    validation: int | None
    test: int
    sizes: NDArray[np.int64]
    task: str = "classes"
    can_stay: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short_sides(self) -> NDArray[np.int64]:
        """Shorter sides (n,) in pixels; a single 224 if no size is known."""
        return self.sizes.min(1) if len(self.sizes) else np.array([_LARGEST_SIDE])

    @property
    def sides(self) -> str:
        """The shorter sides in words, e.g. "64 to 500, median 375"."""
        low, middle, high = (int(q) for q in np.quantile(self.short_sides, [0, 0.5, 1]))
        return f"{middle}" if low == high else f"{low} to {high}, median {middle}"

    def packed_bytes(self, short_side: int | None) -> int:
        """Return the size of all images as RGB pixels, shrunk to this shorter side."""
        sizes = self.sizes if len(self.sizes) else np.array([[_LARGEST_SIDE, _LARGEST_SIDE]])
        factors = np.minimum(1, (short_side or np.inf) / sizes.min(1))
        pixels = float((sizes.prod(1) * factors**2).mean())
        return int(3 * pixels * (self.train + (self.validation or 0) + self.test))

    def __str__(self) -> str:
        """Return one line: classes, images per split, sizes."""
        validation = "" if self.validation is None else f", validation {self.validation:,}"
        noun = _JOBS[self.task].noun
        return (
            f"{self.classes} {noun}; train {self.train:,}{validation}, test {self.test:,} images; "
            f"shorter side {self.sides} pixels"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The length of training; `epochs` is a multiple of `views`, so each view is used equally often.

    Args:
        epochs: passes over the training split.
        batch_size: images per step; small for few images, which gives more steps per epoch.
        views: V, of the dump.
    """

    epochs: int
    batch_size: int
    views: int


def schedule(count: int) -> Schedule:
    """Choose the length of training for `count` images; fewer images need more passes."""
    if count < _FEW:
        return Schedule(epochs=64, batch_size=16 if count < 400 else 32, views=16)
    if count < _SOME:
        return Schedule(epochs=48, batch_size=64, views=12)
    if count < _MANY:
        return Schedule(epochs=40, batch_size=128, views=10)
    return Schedule(epochs=60, batch_size=256, views=20)


def image_size(survey: Survey, *, pretrained: bool) -> int:
    """Choose the side of the models' input: the images' median short side, with an upper bound.

    Trained from scratch on few images, a network gains little from larger inputs, and their cost is
    quadratic. A pretrained teacher makes use of them, so its bound is higher.
    """
    count, middle = survey.train, int(np.median(survey.short_sides))
    if pretrained:
        most = 128 if count < _SOME else _LARGEST_SIDE
    else:
        most = 64 if count < _FEW else 96 if count < _SOME else 128 if count < _MANY else _LARGEST_SIDE
    below = [side for side in _SIDES if side <= min(most, middle)]
    return below[0] if below else max(_SMALLEST_SIDE, middle)


def find_teacher(installed: Sequence[Installed], device: str) -> Installed | None:
    """Return the most accurate pretrained network that a device runs in reasonable time, or None."""
    affordable = [one for one in installed if one.forward_flops <= _MOST_FLOPS[device]]
    return max(affordable, key=lambda one: one.top1, default=None)


def fresh_teacher(count: int, side: int) -> str:
    """Choose the model of a teacher without weights; its size follows the amount of data."""
    if side <= 48:  # the usual nets for small images, with 0.7, 2.2 and 7.4 million parameters
        return "wrn_16_2" if count < _FEW else "wrn_40_2" if count < _MANY else "resnet32x4"
    return "resnet18" if count < _MANY else "resnet50"


def fresh_student(count: int) -> str:
    """Choose the model of a student: 0.35, 1.3 or 2.2 million parameters without the last layer."""
    if count < _SOME:
        return "shufflenet_v2_x0_5"
    return "shufflenet_v2_x1_0" if count < _MANY else "mobilenet_v2"


def fit(survey: Survey, installed: Sequence[Installed], device: str) -> dict[str, Any]:
    """Choose all values of the template of `params.yaml`.

    Args:
        survey: of the photographs.
        installed: pretrained networks on this machine.
        device: cpu or cuda.
    """
    count, plan = survey.train, schedule(survey.train)
    known = find_teacher(installed, device)
    side = image_size(survey, pretrained=known is not None)
    short_side = _short_side(survey, side)
    packed = survey.packed_bytes(short_side)
    share = _validation(count)
    held_out = survey.test + (round(share * count) if survey.validation is None else survey.validation)
    return {
        "summary": str(survey),
        "task": survey.task,
        "job": _JOBS[survey.task],
        "source": quoted_yaml(survey.source),
        "options": {name: quoted_yaml(value) for name, value in survey.options.items()},
        "watch": quoted_yaml(survey.watch),
        "image_size": side,
        "short_side": short_side,
        "keep": "encoded" if packed > _MOST_PACKED_BYTES and survey.can_stay else "pixels",
        "packed": f"{packed / 1e9:,.1f} GB" if packed >= 1e8 else f"{packed / 1e6:,.1f} MB",
        "has_validation": survey.validation is not None,
        "validation": share,
        "advised": None if known else _advised(survey, plan),
        "device": "a CPU" if device == "cpu" else "a GPU",
        "precision": "fp32" if device == "cpu" else "bf16",
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "learning_rate": _rate(0.1, plan.batch_size),
        "warmup_epochs": max(1, plan.epochs // 16),
        "crop": _crop(survey, side),
        "teacher": _fresh(fresh_teacher(count, side), side)
        if known is None
        else _tuned(known, count, plan),
        "student": _fresh(fresh_student(count), side),
        "dump_batch_size": 64 if device == "cpu" else 256,
        "held_out": held_out if held_out < _TELLING else None,
        "view_count": plan.views,
        "passes": plan.epochs // plan.views,
    }


def _short_side(survey: Survey, side: int) -> int | None:
    """Choose the size that larger images are shrunk to: twice the input's; None if few are larger."""
    room = 256 if side == _LARGEST_SIDE else 2 * side
    return room if np.quantile(survey.short_sides, 0.95) > room else None


def _validation(count: int) -> float:
    """Return the validation share of the training images: 0, or at least 50 images."""
    if count < _CHOOSING:
        return 0.0
    return 0.2 if count < _FEW else 0.1 if count < _MANY else 0.02


def _rate(rate: float, batch_size: int) -> float:
    return round(rate * math.sqrt(batch_size / 128), 3)


def _crop(survey: Survey, side: int) -> str:
    """Choose the views' crop: shifts for images of the input's size, random boxes for all others."""
    if len(survey.sizes) and (survey.sizes == side).all():
        return f"pad_crop: {{padding: {max(1, side // 8)}}}"
    smallest = 0.35 if survey.train < _SOME else 0.25 if survey.train < _MANY else 0.08
    return f"random_resized_crop: {{scale: [{smallest}, 1.0]}}"


def _fresh(model: str, side: int) -> dict[str, Any]:
    stem = source_of(model).stem_stride(model, side)
    has_one = source_of(model).stem_stride(model, 1) != source_of(model).stem_stride(model, _LARGEST_SIDE)
    return {"model": model, "weights": None, "stem_stride": stem if has_one else None}


def _advised(survey: Survey, plan: Schedule) -> dict[str, Any]:
    """Return the teacher to replace a fresh one, with the sizes of `data` that suit it."""
    side = image_size(survey, pretrained=True)
    sizes = {"image_size": side, "short_side": _short_side(survey, side)}
    return {**_tuned(_ADVISED, survey.train, plan), **sizes}


def _tuned(known: Installed, count: int, plan: Schedule) -> dict[str, Any]:
    frozen = count < _FEW
    return {
        "model": known.model,
        "weights": known.weights,
        "freeze": frozen,
        "epochs": 32 if frozen else 16,
        "learning_rate": _rate(0.01, plan.batch_size),
    }
