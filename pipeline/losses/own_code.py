"""Losses from the user's own code: a recipe's `package.module:NAME`, a function or a class.

A function has the table's signature: (student (B, C), labels, teacher (B, C) or None, **settings) to a
scalar. A class is called with the settings, and its instance with the three tensors. Attributes of either
declare its needs:

    needs_teacher = True    False for a baseline, whose teacher argument is None
    one_target = False      True if labels must be one class each (B,), so that views must not mix
    features = None         a `FeatureNeeds`; the fourth argument is then `Features`
    row_wise = False        True if it is a mean over samples that are not compared with each other
    links = ("softmax",)    links of the outputs that it serves, e.g. ("sigmoid",) for many labels
    projects = False        True if a linear layer maps the student's outputs to the teacher's width

Settings are the recipe's other keys. A function's numbers may have schedules; a class's stay constant. A
loss computes in float32 outside autocast, like the table's. It keeps no state between steps, because a
resumed run would lose it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.core.own_code import Kind, call, find_callable, parameters_of, running
from pipeline.losses.settings import (
    FeatureNeeds,
    Loss,
    Range,
    Schedule,
    ScheduledLoss,
    as_number,
    in_single_precision,
    number_or_schedule,
    require_settings,
    settings_of,
)

_BY_PLACE, _BY_EITHER = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
_BY_NAME, _ANY = Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD
LOSS = Kind(noun="loss", returns="the loss of a batch", plural="losses")
T = TypeVar("T")


def own_loss(name: str) -> Loss:
    """Import a loss from the user's own code.

    Args:
        name: `package.module:NAME`.

    Raises:
        ConfigError: the import fails, or an attribute has the wrong type.
    """
    code = find_callable(name, LOSS)
    return Loss(
        code,  # type: ignore[arg-type]  # each result is checked
        needs_teacher=_said(name, code, "needs_teacher", bool, True),
        one_target=_said(name, code, "one_target", bool, False),
        features=_said(name, code, "features", FeatureNeeds, None),
        row_wise=_said(name, code, "row_wise", bool, False),
        links=_said(name, code, "links", tuple, ("softmax",)),
        projects=_said(name, code, "projects", bool, False),
    )


def fill_own(name: str, loss: Loss, settings: Mapping[str, Any]) -> ScheduledLoss:
    """Fill in the settings of a loss from the user's own code.

    Args:
        name: `package.module:NAME`.
        loss: from `own_loss`.
        settings: as params.yaml has them.

    Raises:
        ConfigError: a setting is missing or unknown, or the class makes no loss.
    """
    code, inputs = loss.function, 3 if loss.features is None else 4
    if inspect.isclass(code):
        _require_settings(name, parameters_of(code), settings)
        made = call(name, LOSS, code, {key: as_number(value) for key, value in settings.items()})
        return ScheduledLoss(
            _Checked(name, _stateless(name, made)), {}, loss.features, loss.projects, loss.row_wise
        )
    _require_settings(name, parameters_of(code), settings, inputs)
    scheduled = _schedules(name, code, settings)
    plain = {key: value for key, value in settings.items() if key not in scheduled}
    return ScheduledLoss(
        _Checked(name, partial(code, **plain)), scheduled, loss.features, loss.projects, loss.row_wise
    )


@dataclass(frozen=True, slots=True)
class _Checked:
    """Call a loss of the user's own code, and report its failures in one line.

    Args:
        name: `package.module:NAME`.
        function: (student, labels, teacher, [features], **settings) to anything.
    """

    name: str
    function: Callable[..., object]

    def __call__(self, *inputs: Any, **settings: Any) -> Tensor:
        return in_single_precision(partial(self._of, settings))(*inputs)

    def _of(self, settings: Mapping[str, Any], student: Tensor, *others: Any) -> Tensor:
        with running(self.name, LOSS):
            value = self.function(student, *others, **settings)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            raise ConfigError(
                f"loss {self.name!r} returns {_described(value)}; expected a scalar float tensor, the "
                "mean over the batch; fix the code"
            )
        if torch.is_grad_enabled() and student.requires_grad and not value.requires_grad:
            raise ConfigError(
                f"loss {self.name!r} returns a value without a gradient; expected a function of the "
                "student's logits, not detached; fix the code"
            )
        return value


def _said(name: str, code: object, attribute: str, kind: type[T], default: T | None) -> Any:
    """Return an attribute in which a loss declares a need."""
    value = getattr(code, attribute, default)
    if value is not default and not isinstance(value, kind):
        raise ConfigError(
            f"loss {name!r}: attribute {attribute} is a {type(value).__name__}; expected a "
            f"{kind.__name__}; fix the code"
        )
    return value


def _require_settings(
    name: str, parameters: Mapping[str, Parameter], settings: Mapping[str, Any], inputs: int = 0
) -> None:
    """Refuse settings that the code does not take, and missing ones without a default.

    Args:
        name: of the loss.
        parameters: of the code.
        settings: to pass to the code.
        inputs: number of leading parameters that are no settings.
    """
    by_place = [key for key, one in parameters.items() if one.kind in (_BY_PLACE, _BY_EITHER)]
    taken = {
        key: one
        for key, one in parameters.items()
        if one.kind is _BY_NAME or (one.kind is _BY_EITHER and key in by_place[inputs:])
    }
    if parameters and not any(one.kind is _ANY for one in parameters.values()):
        require_settings(name, settings, list(taken))
    for key, one in taken.items():
        if one.default is one.empty and key not in settings:
            raise ConfigError(f"loss {name!r} needs the setting {key!r}, which has no default; add it")


def _schedules(name: str, code: Callable[..., object], settings: Mapping[str, Any]) -> dict[str, Schedule]:
    """Return the numeric settings as schedules over the epochs; annotated ones must be in their ranges."""
    ranges, scheduled = _ranges(code), {}
    for key, value in settings.items():
        if key in ranges:
            scheduled[key] = number_or_schedule(name, key, value, ranges[key])
        elif schedule := Schedule.parse(value):
            scheduled[key] = schedule
    return scheduled


def _ranges(code: Callable[..., object]) -> dict[str, Range]:
    try:
        return settings_of(code)
    except Exception:  # the user's annotations may not be evaluable: then there are no ranges
        return {}


def _stateless(name: str, made: object) -> Callable[..., object]:
    if not callable(made):
        raise ConfigError(
            f"loss {name!r} returns a {type(made).__name__}, which is not callable; expected a callable "
            "(student, labels, teacher); add __call__"
        )
    if isinstance(made, nn.Module) and any(True for _ in made.parameters()):
        raise ConfigError(
            f"loss {name!r} has trainable weights, but the optimiser does not train them; declare them in "
            "`features`, as FeatureNeeds(projection=...)"
        )
    return made


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return f"a {type(value).__name__}"
