"""A teacher by name, from the checkpoint that `train-teacher` wrote."""

from __future__ import annotations

import torch

from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.teacher import Teacher
from pipeline.models.trust import NOTHING, Trust
from pipeline.training.settings import Precision
from stages import layout
from stages.params import Params


def load_teacher(
    name: str, precision: Precision, device: torch.device, *, trust: Trust = NOTHING
) -> Teacher:
    """Return a teacher that is ready to run on a device.

    Args:
        name: of a checkpoint in models/teachers.
        precision: of its forward pass.
        device: to run on.
        trust: the code of one's own that may run.

    Raises:
        ConfigError: a name that could lead elsewhere.
        ModelError: no checkpoint, a damaged one, or one of code that the user did not name.
    """
    network, card = load_checkpoint(layout.teacher_checkpoint(name), trust=trust)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(name=name, network=network, card=card, precision=precision)


def trust_in(params: Params, teacher: str) -> Trust:
    """Return the code that params.yaml names for a teacher."""
    spec = params.teacher(teacher)
    remedy = f"name it in teachers.{teacher}.model, or run: pipeline train-teacher {teacher}"
    return Trust(models={spec.model: spec.options}, remedy=remedy)
