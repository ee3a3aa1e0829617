"""A run on the tiny dataset."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.evaluation.context import evaluate
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Division, Loader
from pipeline.losses import ScheduledLoss, scratch
from pipeline.modalities.images.augmentations import PadCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import TrainingResult
from tests.pipeline.training.runs import BATCH, make_network, make_settings

CPU = torch.device("cpu")
VIEWS = ViewSpec(seed=1, pad_crop=PadCrop(padding=1), flip="random")


@pytest.fixture
def run(tiny_data, tmp_path):
    """Train on the tiny dataset; keyword arguments change what `fit` is given."""
    preprocessing = Preprocessing(size=8, **tiny_data.statistics)

    def validate(network: nn.Module) -> Figures:
        feed = Feed(tiny_data.validation, None, preprocessing, device=CPU)
        return evaluate(network, feed, CLASSES, batch_size=64)

    def train(settings: TrainingSettings | None = None, **changed: Any) -> TrainingResult:
        seed, settings = changed.get("seed", 3), settings or make_settings()
        feed = Feed(tiny_data.train, VIEWS, preprocessing, device=CPU)
        given = {
            "network": make_network(),
            "loader": Loader(
                feed, None, batch_size=BATCH, seed=seed, division=Division(parts=settings.accumulate)
            ),
            "loss": scratch,
            "settings": settings,
            "device": CPU,
            "seed": seed,
            "evaluate": validate,
            "state_path": tmp_path / "state.pt",
            "identity": {"run": "test"},
            **changed,
        }
        loss = given.pop("loss")
        loss = loss if isinstance(loss, ScheduledLoss) else ScheduledLoss(loss)
        names = "settings", "seed", "state_path", "identity", "save_seconds"
        spec = RunSpec(loss=loss, **{name: given.pop(name) for name in names if name in given})
        return fit(given.pop("network"), given.pop("loader"), spec, **given)

    train.steps = len(tiny_data.train) // BATCH
    train.feed = lambda images: Feed(images, VIEWS, preprocessing, device=CPU)
    return train
