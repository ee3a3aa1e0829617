"""What tests train: a small network, with settings that make it learn in seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.training.settings import TrainingSettings

BATCH = 16


def make_settings(**values: Any) -> TrainingSettings:
    """Return settings with some values changed."""
    return TrainingSettings(
        **{"epochs": 4, "batch_size": BATCH, "learning_rate": 0.05, "warmup_epochs": 1, **values}
    )


def make_network(seed: int = 0) -> nn.Module:
    """Return one with batch norm and dropout: state and random numbers beside the weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 3),
    ).to(memory_format=torch.channels_last)  # fmt: skip
