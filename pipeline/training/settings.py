"""Training settings as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from pipeline.core.errors import ConfigError
from pipeline.loading.order import GLOBAL, OrderKind, OrderSpec

Precision = Literal["fp32", "bf16"]
# Settings that older records lack.
_LATER = ("order", "order_window")
_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Optimisation of one run.

    Args:
        epochs: passes over the training split, at least 1.
        batch_size: samples per step, at least 2; ranks share it.
        order: order of the samples in an epoch: global (all shuffled at once), or blocks (blocks of samples
            are shuffled, then the samples of neighbouring blocks), so that each of several processes reads
            only its part of a large dataset.
        order_window: for order blocks, number of blocks of a stream that are shuffled together, at least 1.
        accumulate: number of parts in which a batch passes through the network, to save memory.
        optimizer: sgd (with Nesterov momentum) or adamw.
        learning_rate: peak learning rate, reached after warm-up; more than 0.
        schedule: cosine (down to zero), step (times `step_factor` at each of `milestones`), or constant.
        milestones: epochs of the steps, ascending, counted from 0; for schedule step only.
        step_factor: factor of each step, more than 0 and below 1.
        momentum: momentum of SGD, in [0, 1).
        weight_decay: decay of matrices and filters, at least 0; biases and norms have none.
        warmup_epochs: epochs of linear warm-up from zero; may be a fraction.
        clip_norm: largest norm of all gradients together; 0 for no clipping.
        precision: precision of forward and backward pass: fp32, or bf16 or fp16 autocast.
        compile: compile the network with torch.compile, for training and evaluation.
        ema_decay: decay per step of a running average of the weights, in [0, 1); the average is evaluated
            and saved. 0 for none.
        freeze: train the last layer only; all other layers keep their weights and norm statistics.
        layer_decay: ratio of the learning rates of neighbouring layers, in (0, 1]; earlier layers learn
            more slowly.
        head_rate_factor: factor on the learning rate of the last layer, more than 0.

    """

    epochs: int = 10
    batch_size: int = 128
    order: OrderKind = "global"
    order_window: int = GLOBAL.window
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    step_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    clip_norm: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    ema_decay: float = 0.0
    freeze: bool = False
    layer_decay: float = 1.0
    head_rate_factor: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(float(milestone) for milestone in self.milestones))
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "order_window": (self.order_window >= 1, "at least 1 block"),
            "accumulate": (1 <= self.accumulate <= self.batch_size, f"1 to batch_size ({self.batch_size})"),
            "milestones": (
                list(self.milestones) == sorted(set(self.milestones))
                and all(0 < milestone < self.epochs for milestone in self.milestones)
                and bool(self.milestones) == (self.schedule == "step"),
                f"ascending epochs above 0 and below {self.epochs} for schedule step, none for others",
            ),
            "step_factor": (0 < self.step_factor < 1, "more than 0 and below 1"),
            "clip_norm": (0 <= self.clip_norm < math.inf, "at least 0"),
            "learning_rate": (0 < self.learning_rate < math.inf, "more than 0"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warmup_epochs": (
                0 <= self.warmup_epochs <= self.epochs,
                f"0 to epochs ({self.epochs})",
            ),
            "ema_decay": (0 <= self.ema_decay < 1, "at least 0 and below 1"),
            "layer_decay": (0 < self.layer_decay <= 1, "more than 0 and at most 1"),
            "head_rate_factor": (0 < self.head_rate_factor < math.inf, "more than 0"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def autocast(self) -> torch.dtype:
        """The dtype of forward and backward pass."""
        return _AUTOCAST[self.precision]

    @property
    def order_spec(self) -> OrderSpec:
        """The order of the samples."""
        return OrderSpec(kind=self.order, window=self.order_window)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return as_recorded(asdict(self))


def as_recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that did not exist in older records, if they are the defaults.

    So records of runs that were made before stay equal.

    Args:
        settings: the fields of `TrainingSettings`, and perhaps others.
    """
    known = asdict(TrainingSettings())
    return {name: value for name, value in settings.items() if name not in _LATER or value != known[name]}
