"""Small teacher and students on CIFAR-10, for experiments that a CPU can repeat many times.

The teacher (1.2 M parameters) is trained on all 50,000 images, students (71 k) on the first 10,000, both on
random resized crops and flips. Figures are the top-1 of the last epoch on the 10,000 test images; no choice
depends on the test images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.evaluation.context import RunContext
from pipeline.losses import ScheduledLoss, make_loss
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture
from pipeline.models.checkpoint import ModelCard, load_state, read_tensors
from pipeline.models.teacher import Teacher
from pipeline.tasks.table import find_task
from pipeline.training.loop import RunSpec
from pipeline.training.run import train
from pipeline.training.settings import TrainingSettings
from tests.benchmarks.datasets import prepared
from tests.benchmarks.rig import Rig

STUDENT_IMAGES = 10_000
VIEWS = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.35, 1.0)), flip="random")
TEACHER = TrainingSettings(epochs=10, batch_size=128, learning_rate=0.1, precision="bf16")
CPU = torch.device("cpu")


def network(*widths: int, stride: int, classes: int = 10) -> nn.Module:
    """Return a plain net of 3x3 convolutions: one layer, then two per further width at half the size."""
    layers = _convolution(3, widths[0], stride)
    for narrow, wide in pairwise(widths):
        layers += [*_convolution(narrow, wide, 2), *_convolution(wide, wide, 1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _convolution(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


def small_rig(npz: Path, folder: Path, *, epochs: int, loss: ScheduledLoss) -> Rig:
    """Prepare the data and train the teacher, or reuse those of an earlier run in `folder`."""
    if not (folder / "data" / "dataset.json").exists():
        source = open_source(f"npz:{npz}", ImageOptions())
        prepared(source, folder / "data", origin="cifar10")
    whole = PreparedData.open(folder / "data")
    context = RunContext(data=whole, task=find_task(), device=CPU, workers=1)
    teacher = _teacher(context, folder / "teacher.pt")
    some = replace(whole, train=whole.train.subset(np.arange(STUDENT_IMAGES)))
    return Rig(
        context=replace(context, data=some),
        teacher=teacher,
        views=VIEWS,
        student=student,
        settings=TrainingSettings(epochs=epochs, batch_size=128, learning_rate=0.1),
        loss=loss,
        folder=folder,
    )


def student(seed: int) -> nn.Module:
    """Return a student with the initial weights of a seed."""
    torch.manual_seed(seed)
    return network(16, 32, 64, stride=2)


def _teacher(context: RunContext, path: Path) -> Teacher:
    net = network(32, 64, 128, 256, stride=1)
    data = context.data
    card = ModelCard(
        architecture=Architecture(name="plain_net", num_classes=10),
        preprocessing=Preprocessing(size=32, **data.statistics),
        classes=data.classes,
    )
    if not path.exists():
        torch.manual_seed(0)
        result = train(
            context,
            net,
            card,
            RunSpec(
                loss=make_loss("scratch", {}),
                settings=TEACHER,
                seed=0,
                state_path=path.with_suffix(".state"),
            ),
            views=VIEWS,
            store=None,
        )
        torch.save(result.last, path)
    load_state(net, read_tensors(path), path)
    return Teacher(name="plain_net", network=net.eval(), card=card, precision="fp32")


def summary(runs: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, float]]:
    """Return each arm's mean and its paired difference to a reference, with standard errors, in percent."""
    table = {}
    for arm, values in runs.items():
        paired = [100 * (a - b) for a, b in zip(values, runs[reference], strict=False)]
        percent = [100 * value for value in values]
        table[arm] = {
            "mean": statistics.mean(percent),
            "standard_error": _standard_error(percent),
            "difference": statistics.mean(paired),
            "difference_standard_error": _standard_error(paired),
            "seeds": len(values),
        }
    return table


def figure(mean: float, error: float, *, signed: bool = False) -> str:
    """Return a mean with its standard error, which one seed does not have.

    >>> figure(92.984, 0.117), figure(0.61, float("nan"), signed=True)
    ('92.98 ± 0.12', '+0.61')
    """
    return f"{mean:{'+' if signed else ''}.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
