"""Settings that change while a student is trained: temperatures that fall, weights that warm up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.losses.needs import FeatureNeeds

# Of student's logits, labels and teacher's logits, and where it compares them, of features.
LossFunction = Callable[..., Tensor]
_LINEAR, _WARMUP = {"from", "to", "epochs"}, {"warmup", "epochs"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A number that goes from one value to another, linearly, and stays there.

    Args:
        start: at epoch 0.
        end: from `epochs` on.
        epochs: how long it takes, may be a fraction; 0 for a number that does not change.

    Raises:
        ConfigError: values that are not finite, or negative epochs.
    """

    start: float
    end: float
    epochs: float

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (self.start, self.end, self.epochs))
        if not finite or self.epochs < 0:
            raise ConfigError(
                f"a schedule goes from {self.start} to {self.end} in {self.epochs} epochs; "
                "expected finite numbers and at least 0 epochs"
            )

    @classmethod
    def warmup(cls, value: float, epochs: float) -> Schedule:
        """Return what goes from 0 to a value."""
        return cls(0.0, value, epochs)

    @classmethod
    def parse(cls, value: Any) -> Schedule | None:
        """Return what params.yaml says, or None where that is no schedule.

        Args:
            value: a number, {from: A, to: B, epochs: E} or {warmup: B, epochs: E}, with E more than 0.
        """
        value = _number(value)
        if _is_number(value):
            return cls(value, value, 0)
        if not isinstance(value, Mapping):
            return None
        value = {key: _number(part) for key, part in value.items()}
        if not all(map(_is_number, value.values())):
            return None
        if set(value) not in (_LINEAR, _WARMUP) or value["epochs"] <= 0:
            return None
        return cls(value.get("from", 0.0), value["to" if "to" in value else "warmup"], value["epochs"])

    def at(self, epoch: float) -> float:
        """Return the value at an epoch, counted from 0, which may be a fraction."""
        if epoch >= self.epochs:
            return self.end
        return self.start + (self.end - self.start) * epoch / self.epochs


def _number(value: Any) -> Any:
    """Return what YAML takes for text, such as 3e-3, as the number that it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class ScheduledLoss:
    """A loss whose settings have a schedule each.

    A training loop calls what it is `at` each step.

    Args:
        function: (student, labels, teacher, **settings) to a scalar.
        settings: over the epochs; what is missing is as the function has it.
        features: what it needs of penultimate features, which are then its fourth argument; None for none.
    """

    function: Callable[..., Tensor]
    settings: Mapping[str, Schedule] = field(default_factory=dict)
    features: FeatureNeeds | None = None

    @property
    def epochs(self) -> float:
        """When the last of the schedules ends."""
        return max((schedule.epochs for schedule in self.settings.values()), default=0.0)

    def at(self, epoch: float) -> LossFunction:
        """Return the loss of a moment: epochs that are done, with the fraction of the one under way."""
        return partial(self.function, **{name: value.at(epoch) for name, value in self.settings.items()})

    def __call__(self, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the loss as it is when all schedules have ended."""
        return self.at(math.inf)(student, labels, teacher)
