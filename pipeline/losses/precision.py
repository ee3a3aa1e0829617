"""In what precision losses compute: single, whatever the network computed in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def in_single_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let a function of tensors, the student's first, compute in float32 outside autocast.

    Where the student's are float64 everything is. Class indices stay what they are.
    """

    @functools.wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        student = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        given: Any = [_as(dtype, value) for value in args]
        named: Any = {name: _as(dtype, value) for name, value in kwargs.items()}
        with torch.autocast(student.device.type, enabled=False):
            return loss(*given, **named)

    return computed


def _as(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
