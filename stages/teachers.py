"""A teacher by name, from the checkpoint that `train-teacher` wrote."""

from __future__ import annotations

import torch

from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.teacher import Teacher
from pipeline.training.settings import Precision
from stages import layout


def load_teacher(name: str, precision: Precision, device: torch.device) -> Teacher:
    """Return a teacher that is ready to run on a device."""
    network, card = load_checkpoint(layout.teacher_checkpoint(name))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(name=name, network=network, card=card, precision=precision)
