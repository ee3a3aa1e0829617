"""Kinds of settings: the annotation of a loss's parameter says what it may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of numbers.

    Args:
        holds: whether a number lies in it.
        expected: the same in words.
    """

    holds: Callable[[float], bool]
    expected: str


# Beyond these, softened distributions are equal, or one-hot, to all digits.
Temperature = Annotated[float, Range(lambda value: 1e-3 <= value <= 1e3, "more than 0, from 0.001 to 1000")]
Weight = Annotated[float, Range(lambda value: 0 <= value < math.inf, "at least 0")]
Smoothing = Annotated[float, Range(lambda value: 0 <= value < 1, "at least 0 and below 1")]
Exponent = Annotated[float, Range(lambda value: 0 < value <= 1, "more than 0 and at most 1")]


def settings_of(function: Callable[..., object]) -> dict[str, Range]:
    """Return the settings of a function with what they may be, in the order of its parameters."""
    hints = get_type_hints(function, include_extras=True)
    return {name: kind.__metadata__[0] for name, kind in hints.items() if get_origin(kind) is Annotated}
