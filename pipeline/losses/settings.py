"""A loss's declarations: kinds of settings, schedules, feature needs, and precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ParamSpec, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from pipeline.codecs.rule import Link
from pipeline.core.errors import ConfigError, did_you_mean

P = ParamSpec("P")
# At a high temperature, distributions become alike, and T^2 magnifies the rounding of their difference. In
# float32 a loss keeps four digits up to T = 20, and one or none at T = 1000.
_HIGHEST_IN_SINGLE = 20.0
# (student's logits, labels, teacher's logits) and, for losses that compare features, `Features`.
LossFunction = Callable[..., Tensor]
# A schedule's length: in epochs, or as a share of the run.
_LENGTHS = ("epochs", "share")


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of numbers.

    Args:
        holds: whether a number lies in it.
        expected: the same in words, for messages.
    """

    holds: Callable[[float], bool]
    expected: str


# Beyond these temperatures, softened distributions are equal, or one-hot, to all digits.
Temperature = Annotated[float, Range(lambda value: 1e-3 <= value <= 1e3, "more than 0, from 0.001 to 1000")]
Weight = Annotated[float, Range(lambda value: 0 <= value < math.inf, "at least 0")]
Positive = Annotated[float, Range(lambda value: 0 < value < math.inf, "more than 0")]
Smoothing = Annotated[float, Range(lambda value: 0 <= value < 1, "at least 0 and below 1")]
Exponent = Annotated[float, Range(lambda value: 0 < value <= 1, "more than 0 and at most 1")]


def settings_of(function: Callable[..., object]) -> dict[str, Range]:
    """Return the settings of a function with their ranges, in the order of its parameters."""
    hints = get_type_hints(function, include_extras=True)
    return {name: kind.__metadata__[0] for name, kind in hints.items() if get_origin(kind) is Annotated}


def in_single_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Make a function of tensors, the student's first, compute in float32 outside autocast.

    With a float64 student, everything is float64. At a `temperature` above 20, the function computes in
    float64 and returns float32. Class indices keep their type.
    """

    @functools.wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        student = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        temperature: Any = kwargs.get("temperature", 1.0)
        wide = torch.float64 if temperature > _HIGHEST_IN_SINGLE else dtype
        given: Any = [_as(wide, value) for value in args]
        named: Any = {name: _as(wide, value) for name, value in kwargs.items()}
        with torch.autocast(student.device.type, enabled=False):
            return loss(*given, **named).to(dtype)

    return computed


def _as(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureNeeds:
    """Declare the needs of a loss that compares penultimate features; it always gets the batch's features.

    Args:
        projection: function from Ds and Dt, the numbers of features, to a module from `Features` to
            `Features` that is trained with the student; None for no projection.
        negatives: number of the teacher's features from other samples of the view.
        centres: whether the loss needs the teacher's mean features per class.
    """

    projection: Callable[[int, int], nn.Module] | None = None
    negatives: int = 0
    centres: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """A number that changes linearly from one value to another during training, and then stays constant.

    Args:
        start: at epoch 0.
        end: from `epochs` on.
        epochs: length of the change, maybe a fraction; 0 for a constant number.
        share: length of the change as a share of the run, at most 1; 0 if `epochs` gives the length.
            Such a schedule has values after `over`.

    Raises:
        ConfigError: values that are not finite, negative epochs, or a share above 1.

    >>> Schedule(0.0, 0.9, share=0.5).over(run_epochs=40).at(10)
    0.45
    """

    start: float
    end: float
    epochs: float = 0.0
    share: float = 0.0

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (self.start, self.end, self.epochs))
        if not finite or self.epochs < 0:
            raise ConfigError(
                f"a schedule goes from {self.start} to {self.end} in {self.epochs} epochs; expected "
                "finite numbers, and at least 0 epochs"
            )
        if not 0 <= self.share <= 1:
            raise ConfigError(f"a schedule takes {self.share} of a run; expected a share from 0 to 1")

    @classmethod
    def warmup(cls, value: float, *, share: float) -> Schedule:
        """Return a schedule from 0 to a value in the first part of a run."""
        return cls(0.0, value, share=share)

    @classmethod
    def parse(cls, value: Any) -> Schedule | None:
        """Return a schedule from its form in params.yaml, or None if the value has another form.

        Args:
            value: a number, {from: A, to: B, epochs: E} or {warmup: B, epochs: E}, with E more than 0; or
                with `share: S` in place of the epochs, with S more than 0 and at most 1.
        """
        value = as_number(value)
        if _is_number(value):
            return cls(value, value, 0)
        if not isinstance(value, Mapping):
            return None
        value = {key: as_number(part) for key, part in value.items()}
        if not all(map(_is_number, value.values())):
            return None
        length = {key: value.pop(key) for key in _LENGTHS if key in value}
        if set(value) not in ({"from", "to"}, {"warmup"}) or len(length) != 1:
            return None
        if min(length.values()) <= 0 or length.get("share", 1) > 1:
            return None
        return cls(value.get("from", 0.0), value["to" if "to" in value else "warmup"], **length)

    def over(self, run_epochs: float) -> Schedule:
        """Return the same schedule with its length in epochs, for a run of this length."""
        return self if not self.share else Schedule(self.start, self.end, self.share * run_epochs)

    def at(self, epoch: float) -> float:
        """Return the value at an epoch, a number from 0 that may be a fraction.

        Raises:
            ConfigError: the length is a share of a run of unknown length.
        """
        if epoch >= self.epochs and (not self.share or math.isinf(epoch)):
            return self.end
        if self.share:
            raise ConfigError(
                f"a schedule takes {self.share:g} of a run whose length is unknown; "
                "call the loss's `over(epochs)` first"
            )
        return self.start + (self.end - self.start) * epoch / self.epochs


def as_number(value: Any) -> Any:
    """Return a number that YAML reads as text, e.g. 3e-3, as a float; return other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_settings(name: str, settings: Mapping[str, Any], accepted: Sequence[str]) -> None:
    """Refuse a setting that a loss does not have.

    Raises:
        ConfigError: names the loss and its settings.
    """
    for key in settings:
        if key not in accepted:
            raise ConfigError(
                f"loss {name!r} has no setting {key!r}; expected "
                f"{', '.join(accepted) or 'none'}{did_you_mean(key, accepted)}"
            )


def number_or_schedule(name: str, key: str, value: Any, allowed: Range) -> Schedule:
    """Return a setting of a loss as a schedule.

    Args:
        name: of the loss, for errors.
        key: of the setting.
        value: in its form in params.yaml: see `Schedule.parse`.
        allowed: range of the number.

    Raises:
        ConfigError: the value is neither number nor schedule, or out of range.
    """
    schedule = Schedule.parse(value)
    if schedule is None or not (allowed.holds(schedule.start) and allowed.holds(schedule.end)):
        raise ConfigError(
            f"loss {name!r}: {key} is {value!r}; expected a number {allowed.expected}, or a schedule of "
            "such numbers: {from: A, to: B, epochs: E}, or {warmup: B, epochs: E}, which starts at 0; E is "
            "more than 0; share: S, a part of the run, may replace epochs"
        )
    return schedule


@dataclass(frozen=True, slots=True)
class Loss:
    """A line in the table of losses.

    Args:
        function: (student (B, C), labels, teacher (B, C) or None, **settings) to a scalar; settings are
            keyword-only, and their annotations declare the ranges.
        needs_teacher: True for a distillation loss, False for a baseline.
        one_target: whether each sample must have one class, so that views must not mix.
        schedules: schedules of settings that a recipe may override.
        features: needs of a loss that compares penultimate features; its function takes projected
            `Features` as a fourth argument.
        links: links of the outputs that the loss serves.
        projects: whether a linear layer, trained with the student, maps its outputs to the teacher's number
            of outputs where they differ.
        row_wise: whether the loss is a mean over samples that are not compared with each other. Processes
            that share a batch then need their own rows alone.
        reads_codes: whether the teacher's codewords (B, M) int64 take the place of its outputs.

    """

    function: Callable[..., Tensor]
    needs_teacher: bool
    one_target: bool = False
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    features: FeatureNeeds | None = None
    links: tuple[Link, ...] = ("softmax",)
    projects: bool = False
    row_wise: bool = False
    reads_codes: bool = False


@dataclass(frozen=True, slots=True)
class ScheduledLoss:
    """A loss whose settings have a schedule each.

    In each step a training loop calls the loss `at` the current epoch.

    Args:
        function: (student, labels, teacher, **settings) to a scalar.
        settings: schedules by name; missing settings keep the function's defaults.
        features: needs of penultimate features, the function's fourth argument; None for none.
        projects, row_wise, reads_codes: see `Loss`.
    """

    function: Callable[..., Tensor]
    settings: Mapping[str, Schedule] = field(default_factory=dict)
    features: FeatureNeeds | None = None
    projects: bool = False
    row_wise: bool = False
    reads_codes: bool = False

    @property
    def epochs(self) -> float:
        """The epoch at which the last schedule ends, apart from schedules over a share of the run."""
        return max((schedule.epochs for schedule in self.settings.values()), default=0.0)

    def over(self, epochs: float) -> ScheduledLoss:
        """Return the loss for a run of this many epochs: shares of the run become epochs."""
        return replace(self, settings={name: value.over(epochs) for name, value in self.settings.items()})

    def at(self, epoch: float) -> LossFunction:
        """Return the loss at an epoch, including the fraction of the current one."""
        return partial(self.function, **{name: value.at(epoch) for name, value in self.settings.items()})

    def __call__(self, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the loss with its final settings, after all schedules."""
        return self.at(math.inf)(student, labels, teacher)
