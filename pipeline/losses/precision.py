"""In what precision losses compute: single, whatever the network computed in; double where T is high."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
# Softened distributions are ever more alike, and T^2 lifts what their difference loses: in float32 a loss
# keeps four digits up to here, and one or none at T = 1000.
_HIGHEST_IN_SINGLE = 20.0


def in_single_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let a function of tensors, the student's first, compute in float32 outside autocast.

    Where the student's are float64 everything is. At a `temperature` above 20 it computes in float64 and
    gives what it would give in float32. Class indices stay what they are.
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
