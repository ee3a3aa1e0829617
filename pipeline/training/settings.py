"""How a network is trained, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Optimisation of one run.

    Args:
        epochs: passes over the training split, at least 1.
        batch_size: images a step, at least 2.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        learning_rate: the peak, after warm-up and before the cosine descent to zero.
        momentum: of SGD, in [0, 1).
        weight_decay: of matrices and filters; biases and norms have none.
        warmup_epochs: linear ascent from zero, may be a fraction of an epoch.
        precision: of forward and backward: "fp32", or "bf16" autocast.
        ema_decay: per step, of an average of the weights that is used instead of them; 0 for none.

    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    precision: Precision = "fp32"
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "learning_rate": (0 < self.learning_rate < math.inf, "more than 0"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warmup_epochs": (
                0 <= self.warmup_epochs <= self.epochs,
                f"0 to epochs ({self.epochs})",
            ),
            "ema_decay": (0 <= self.ema_decay < 1, "at least 0 and below 1"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)
