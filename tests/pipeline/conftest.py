"""A small teacher over the small dataset, and what to dump of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.codecs.spec import CodecSpec
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.models.heads import head_of
from pipeline.models.teacher import Teacher
from pipeline.tasks.table import find_task

VIEWS = ViewSpec(seed=9, random_resized_crop=RandomResizedCrop(), flip="random")


@pytest.fixture(scope="session")
def context(tiny_data: PreparedData) -> RunContext:
    return RunContext(data=tiny_data, task=find_task(), device=torch.device("cpu"), workers=2)


@pytest.fixture(scope="session")
def teacher(tiny_data: PreparedData) -> Teacher:
    torch.manual_seed(0)
    channels, classes = tiny_data.train.form.unit[-1], tiny_data.classes
    architecture = Architecture(name="resnet8", num_classes=len(classes), channels=channels, stem_stride=1)
    preprocessing = Preprocessing(size=12, **tiny_data.statistics)
    card = ModelCard(architecture=architecture, preprocessing=preprocessing, classes=classes)
    return Teacher(name="t", network=build(architecture).eval(), card=card, precision="fp32")


@pytest.fixture(scope="session")
def decided_teacher(teacher: Teacher) -> Teacher:
    """One that is sure of what it says: its features matter, so that a codec keeps them finely."""
    network = copy.deepcopy(teacher.network)
    _, head = head_of(network)
    with torch.no_grad():
        head.weight.mul_(50)
    return dataclasses.replace(teacher, name="decided", network=network)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., DumpSpec]:
    """Return a function from changes to what to dump: 3 views in shards of 16 rows; codec by its name."""

    def make(codec: str = "fp16", max_kl: float | None = None, **changes: Any) -> DumpSpec:
        settings = {"views": VIEWS, "view_count": 3, "batch_size": 8, "shard_rows": 16}
        chosen = {"codec": CodecSpec(name=codec, max_kl=max_kl), "allow_poor_teacher": True}
        return DumpSpec(**{**settings, **chosen, **changes})

    return make
